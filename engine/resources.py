"""Finds the configuration that ships with the package, in a source tree and in an installed share directory."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

from engine.errors import InvalidInput, Problem

PACKAGE = 'cosmos3_ros'
_SUFFIX = '.yaml'
_WHOLE = 'model_index.json'  # of a checkpoint


def find_config(kind: str, name: str) -> Path:
    """Locate one configuration file of the package.

    Args:
        kind: Folder below `config`: 'robots' or 'contracts'.
        name: Bare name of a file that ships with the package ('panda'), or a path to a file of the user's own. Whatever
            holds a path separator or ends in '.yaml' or '.yml' is a path; relative paths start at the working
            directory.

    Returns:
        Absolute path of an existing file.

    Raises:
        InvalidInput: There is no such file; the error says where it was looked for and which names there are.
    """
    if _is_path(name):
        return _existing(kind, Path(name).expanduser())
    folders = config_folders(kind)
    for folder in folders:
        candidate = folder / f'{name}{_SUFFIX}'
        if candidate.is_file():
            return candidate.resolve()
    raise InvalidInput(f'configuration {kind}/{name}', [_unknown(kind, name, folders)])


def find_model(name: str) -> Path | None:
    """Directory of a checkpoint that ships with the package; None if there is none of that name."""
    if name not in model_names():
        return None
    return next(root / name for root in _model_roots() if (root / name / _WHOLE).is_file()).resolve()


def model_names() -> list[str]:
    """Names that `find_model` knows, sorted; parts of a checkpoint are none."""
    return sorted({path.parent.name for root in _model_roots() for path in root.glob(f'*/{_WHOLE}')})


def config_names(kind: str) -> list[str]:
    """Names that `find_config` knows for a kind, sorted."""
    return sorted({path.stem for folder in config_folders(kind) for path in folder.glob(f'*{_SUFFIX}')})


def config_folders(kind: str) -> list[Path]:
    """Existing folders that hold configuration of one kind, the nearest first.

    The source tree comes first, so that a developer's edit counts even when the package is installed as well.
    """
    unique = dict.fromkeys(root / kind for root in _config_roots())
    return [folder for folder in unique if folder.is_dir()]


def _config_roots() -> Iterator[Path]:
    return _roots('config')


def _model_roots() -> list[Path]:
    return list(dict.fromkeys(_roots('models')))


def _roots(folder: str) -> Iterator[Path]:
    """Where a folder of the package may be: beside the code, or in a share directory."""
    here = Path(__file__).resolve()
    yield here.parents[1] / folder
    for prefix in here.parents:
        yield prefix / 'share' / PACKAGE / folder
    share = _ament_share()
    if share is not None:
        yield share / folder


def _ament_share() -> Path | None:
    try:
        from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
    except ImportError:
        return None  # a machine without ROS: the folders beside the code are all there is
    try:
        return Path(get_package_share_directory(PACKAGE))
    except (PackageNotFoundError, LookupError, ValueError, OSError):
        return None  # ROS is there, the package is not installed in it (or no prefix is sourced)


def _is_path(name: str) -> bool:
    return '/' in name or '\\' in name or name.endswith(('.yaml', '.yml'))


def _existing(kind: str, path: Path) -> Path:
    if path.is_file():
        return path.resolve()
    what = 'is a directory, not a file' if path.is_dir() else 'no such file'
    names = ', '.join(config_names(kind)) or 'none found'
    problem = Problem(str(path.absolute()), what, remedy=f'give the path of a file, or one of the names: {names}')
    raise InvalidInput(f'configuration {kind}', [problem])


def _unknown(kind: str, name: str, folders: list[Path]) -> Problem:
    names = config_names(kind)
    near = difflib.get_close_matches(name, names, n=1)
    remedy = f'did you mean {near[0]!r}?' if near else 'give one of these names, or the path of a file'
    looked = (
        ', '.join(str(folder) for folder in folders) or 'no config folder was found beside the code or in a ROS prefix'
    )
    return Problem(f'{kind} (looked in {looked})', 'unknown name', repr(name), ', '.join(names) or 'none found', remedy)
