"""The commands `cosmos3 imagine` and `cosmos3 infer-actions`: forward and inverse dynamics on files."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import InvalidInput, Problem

if TYPE_CHECKING:
    from engine.dynamics import Dynamics, DynamicsTerms

Bars = Callable[[], AbstractContextManager[Callable[[str, float], None]]]
Commands = Any  # argparse has no public name for what add_subparsers returns

_VIDEOS = ('.mp4', '.mkv', '.mov', '.avi', '.webm')


def add_imagine(commands: Commands, bars: Bars) -> None:
    """Add `cosmos3 imagine`."""
    imagine = commands.add_parser('imagine', help='imagine the video that a file of actions causes')
    imagine.add_argument('checkpoint', help='directory or hub id')
    imagine.add_argument('--image', type=Path, required=True, help='picture of now; of a video, its first frame')
    imagine.add_argument(
        '--actions', type=Path, required=True, help="JSON list of rows in the model's space, one a frame"
    )
    imagine.add_argument('--overlap', type=int, default=1, help='frames that windows share: 1 (default), 5, 9, ...')
    imagine.add_argument('--windows', type=int, help='imagine no more than so many')
    imagine.add_argument(
        '--detail', action='store_true', help='what changes little keeps the detail of the first picture'
    )
    imagine.add_argument('-o', '--output', type=Path, required=True, help='MP4 to write')
    _add_terms(imagine)
    imagine.set_defaults(run=lambda arguments: _imagine(arguments, bars))


def add_infer_actions(commands: Commands, bars: Bars) -> None:
    """Add `cosmos3 infer-actions`."""
    infer = commands.add_parser('infer-actions', help='find the actions behind a video')
    infer.add_argument('checkpoint', help='directory or hub id')
    infer.add_argument('--video', type=Path, required=True, help='video at the rate of the actions')
    infer.add_argument('--frames', type=int, help='of the video, so many from its beginning; left out: all')
    infer.add_argument('-o', '--output', type=Path, required=True, help='JSON to write: rows as imagine takes them')
    _add_terms(infer)
    infer.set_defaults(run=lambda arguments: _infer(arguments, bars))


def _add_terms(command: argparse.ArgumentParser) -> None:
    whose = command.add_mutually_exclusive_group(required=True)
    whose.add_argument('--domain', help='embodiment, such as droid_lerobot, umi or av')
    whose.add_argument('--contract', help='name in config/contracts or a path: its embodiment, rate, tier and prompt')
    command.add_argument('--prompt', default='', help='what is going on, in words')
    command.add_argument('--seed', type=int, default=0, help='of the first window; the others follow (default: 0)')
    terms = command.add_argument_group('terms', "left out: those of the contract, or the embodiment's own")
    terms.add_argument('--chunk', type=int, help='rows of a window, a multiple of 4')
    terms.add_argument('--fps', type=float, help='rows per second')
    terms.add_argument('--tier', type=int, help='resolution tier: 256, 480, 704 or 720')
    terms.add_argument('--viewpoint', help='ego_view, third_person_view, wrist_view or concat_view')
    terms.add_argument('--steps', type=int, help='denoising steps of a window (30)')
    terms.add_argument('--guidance', type=float, help='guidance scale (1: none)')
    terms.add_argument('--shift', type=float, help='of the schedule (10)')
    runs = command.add_argument_group('where it runs')
    runs.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, ... (default: cpu)')
    runs.add_argument('--dtype', default='float32', help='float32, bfloat16, float16 or fp8 (default: float32)')
    runs.add_argument('--backend', default='auto', help='auto, torch or torch-compiled (default: auto)')


def _imagine(arguments: argparse.Namespace, bars: Bars) -> int:
    from engine.dynamics import check_request
    from engine.evaluation.video import VideoWriter

    rows = _read_rows(arguments.actions)
    terms = _terms(arguments, rows.shape[1])
    check_request(terms, rows, arguments.overlap, arguments.windows, arguments.seed)
    picture = read_picture(arguments.image)
    check_output(arguments.output)
    dynamics = _load(arguments, terms)
    began = time.monotonic()
    with bars() as report:
        rollout = dynamics.imagine(
            picture,
            rows,
            arguments.prompt,
            arguments.seed,
            overlap=arguments.overlap,
            windows=arguments.windows,
            progress=lambda done, windows: report(f'windows of {dynamics.terms.chunk} rows', done / windows),
        )
        frames = rollout.detailed if arguments.detail else rollout.frames
    height, width = frames.shape[1:3]
    with VideoWriter(arguments.output, dynamics.terms.fps, (height, width)) as writer:
        for frame in frames:
            writer.write(frame)
    seconds = time.monotonic() - began
    print(f'{arguments.output}: {len(frames)} frames of {width} x {height} in {seconds:.1f} s')
    return 0


def _infer(arguments: argparse.Namespace, bars: Bars) -> int:
    from engine.evaluation.video import read_video

    terms = _terms(arguments, None)
    check_output(arguments.output)
    if arguments.frames is not None and arguments.frames < 2:
        raise InvalidInput('arguments', [Problem('--frames', 'are too few', str(arguments.frames), '2 or more')])
    frames = [frame for frame, _ in zip(read_video(arguments.video), _count(arguments.frames), strict=False)]
    dynamics = _load(arguments, terms)
    with bars() as report:
        report(f'{len(frames)} frames', 0.0)
        rows = dynamics.actions_from_video(frames, arguments.prompt, arguments.seed)
        report(f'{len(frames)} frames', 1.0)
    arguments.output.write_text(json.dumps(rows.tolist()), encoding='utf-8')
    print(f'{arguments.output}: {len(rows)} rows of {rows.shape[1]}')
    return 0


def _count(limit: int | None) -> range | count[int]:
    return count() if limit is None else range(limit)


def _terms(arguments: argparse.Namespace, width: int | None) -> DynamicsTerms:
    """What the command line asks for; `width` is that of the rows, if there are any."""
    from engine.contract import load_contract
    from engine.dynamics import DynamicsTerms

    names = ('chunk', 'fps', 'tier', 'viewpoint', 'steps', 'guidance', 'shift')
    changes = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.contract:
        return replace(DynamicsTerms.of_contract(load_contract(arguments.contract)), **changes)
    return DynamicsTerms.published(arguments.domain, width, **changes)


def _load(arguments: argparse.Namespace, terms: DynamicsTerms) -> Dynamics:
    import engine

    model = engine.load(arguments.checkpoint, arguments.device, arguments.dtype, backend=arguments.backend)
    return model.dynamics(terms)


def _read_rows(path: Path) -> NDArray[np.float32]:
    """Rows [N, D] of an action file."""
    what = 'a JSON list of rows of equal length, all numbers'
    try:
        document = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise InvalidInput('arguments', [Problem('--actions', 'cannot be read', str(error))]) from error
    except ValueError as error:
        raise InvalidInput(str(path), [Problem('actions', 'are no rows', str(error), what)]) from error
    rows = document if isinstance(document, list) else []
    lengths = {len(row) if isinstance(row, list) else 0 for row in rows}
    odd = [value for row in rows if isinstance(row, list) for value in row if type(value) not in (int, float)]
    if odd or len(lengths) != 1 or 0 in lengths:
        found = repr(odd[0])[:40] if odd else f'{len(rows)} rows of {" or ".join(map(str, sorted(lengths)))}'
        raise InvalidInput(str(path), [Problem('actions', 'are no rows', found, what)])
    try:
        return np.asarray(rows, np.float32)
    except OverflowError as error:
        raise InvalidInput(str(path), [Problem('actions', 'are too large', str(error), what)]) from error


def read_picture(path: Path) -> NDArray[np.uint8]:
    """RGB of a picture the right way up, or of the first frame of a video."""
    from PIL import Image, ImageOps

    if path.suffix.lower() in _VIDEOS:
        from engine.evaluation.video import read_video

        for frame in read_video(path):
            return frame
        raise InvalidInput('arguments', [Problem('--image', 'has no frame', str(path))])
    try:
        with Image.open(path) as file:
            return np.asarray(ImageOps.exif_transpose(file).convert('RGB'))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidInput('arguments', [Problem('--image', 'cannot be read', str(error))]) from error


def check_output(path: Path) -> None:
    """Do nothing if a file can be made there: found out before minutes of imagination, not after."""
    try:
        if path.is_dir():
            raise IsADirectoryError(f'{path} is a folder')
        with tempfile.NamedTemporaryFile(prefix=f'.{path.name}.', dir=path.parent):
            pass
    except OSError as error:
        remedy = 'name a file in a folder that can be written to'
        raise InvalidInput('arguments', [Problem('--output', 'cannot be made', str(error), remedy=remedy)]) from error
