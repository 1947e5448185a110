"""From what the user names, a directory or a hub id, to a directory on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from engine.errors import CheckpointError, Problem
from engine.resources import find_model, model_names

_HUB_ID = re.compile(r'[\w.-]+/[\w.-]+')


def resolve(source: str | Path) -> Path:
    """The directory of a checkpoint: as it is named, one that ships with the package, or a hub id.

    What is on the hub is downloaded first, or found in the local cache.

    Raises:
        CheckpointError: There is no such directory, and the hub id cannot be had: why, and what to do.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve()
    name = str(source)
    if not path.exists() and (shipped := find_model(name)) is not None:
        return shipped
    if path.exists() or not _HUB_ID.fullmatch(name):
        what = 'is not a directory' if path.exists() else 'does not exist'
        known = ', '.join(model_names())
        remedy = 'name a checkpoint directory or a hub id such as nvidia/Cosmos3-Nano'
        remedy += f', or what ships with the package: {known}' if known else ''
        raise CheckpointError('checkpoint', [Problem(name, what, remedy=remedy)])
    return _download(name)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(hub_id))
    except GatedRepoError as error:
        what, remedy = 'needs its terms to be accepted', 'accept them on huggingface.co, then run `hf auth login`'
        problem = Problem(hub_id, what, remedy=remedy)
        raise CheckpointError('checkpoint', [problem]) from error
    except RepositoryNotFoundError as error:
        what, remedy = 'is neither a directory here nor on the hub', 'check the spelling, or run `hf auth login`'
        raise CheckpointError('checkpoint', [Problem(hub_id, what, remedy=remedy)]) from error
    except (OSError, ValueError) as error:
        what = 'is no directory here and cannot be downloaded'
        remedy = f'go online, or copy the checkpoint to this machine (`hf download {hub_id}`) and name its directory'
        problem = Problem(hub_id, what, f'{type(error).__name__}: {str(error).splitlines()[0]}', remedy=remedy)
        raise CheckpointError('checkpoint', [problem]) from error
