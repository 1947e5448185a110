"""The commands `cosmos3 ask` and `cosmos3 plan`: questions about pictures and videos, to weights here or elsewhere."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.cli_imagine import check_output, read_picture
from engine.errors import InvalidInput, Problem

if TYPE_CHECKING:
    from rich.table import Table

    from engine.reasoner_questions import Asked, Question
    from engine.reasoner_talk import Picture, Talker, Video

Commands = Any  # argparse has no public name for what add_subparsers returns

API_KEY = 'COSMOS3_API_KEY'
"""Environment variable with the key for --url; as an argument, every user of the machine could read it."""
_MARKS = ('boxes', 'points', 'trajectory')
_KINDS = ('text', *_MARKS, 'events', 'yes-no')
_FORMATS = ('.png', '.jpg', '.jpeg', '.webp', '.bmp')
_MOST_FRAMES = 768  # more of a video are never shown to the model


def add_ask(commands: Commands) -> None:
    """Add `cosmos3 ask`."""
    ask = commands.add_parser('ask', help='ask a reasoner about pictures or a video; draw what it points at')
    _add_talker(ask)
    ask.add_argument(
        '--question', required=True, help='what to ask; of boxes and points, what to find; of a path, the task'
    )
    ask.add_argument('--kind', choices=_KINDS, default='text', help='what the answer shall be (default: text)')
    ask.add_argument(
        '-o', '--output', type=Path, help='picture to write, with boxes, points or trajectories on the first'
    )
    ask.set_defaults(run=_ask)


def add_plan(commands: Commands) -> None:
    """Add `cosmos3 plan`."""
    plan = commands.add_parser('plan', help='let a reasoner break a goal into instructions for a policy')
    _add_talker(plan)
    plan.add_argument('--goal', required=True, help='what is to be reached')
    plan.add_argument('--robot', default='a robot arm with a gripper', help='what the policy moves, in words')
    plan.add_argument('--example', action='append', default=[], help='an instruction that it follows well; repeatable')
    plan.add_argument('--max-steps', type=int, default=8, help='most steps (default: 8)')
    for name, done in (('--done', True), ('--failed', False)):
        help_ = f'a step that has {"been done" if done else "failed"} so far; repeatable, order counts'
        plan.add_argument(name, dest='past', action='append', type=lambda step, done=done: (step, done), help=help_)
    plan.set_defaults(run=_plan, past=[])


def _add_talker(command: argparse.ArgumentParser) -> None:
    command.add_argument('checkpoint', help='directory or hub id; with --url, the name of the model there')
    command.add_argument('--image', type=Path, action='append', default=[], help='picture to show; repeatable')
    command.add_argument('--video', type=Path, help='video to show')
    command.add_argument('--sample-fps', type=float, default=2.0, help='frames per second of it to show (default: 2)')
    command.add_argument('--think', action='store_true', help='let it think first')
    command.add_argument('--max-tokens', type=int, help='longest answer, thinking included (1024; 4096 with --think)')
    command.add_argument('--url', help=f'OpenAI-compatible endpoint, e.g. http://localhost:8000/v1; key in ${API_KEY}')
    command.add_argument('--timeout', type=float, default=120.0, help='seconds to wait for its answer (default: 120)')
    runs = command.add_argument_group('where it runs, without --url')
    runs.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, ... (default: cpu)')
    runs.add_argument('--dtype', default='float32', help='float32, bfloat16, float16 or fp8 (default: float32)')
    runs.add_argument('--backend', default='auto', help='auto, torch or torch-compiled (default: auto)')


def _ask(arguments: argparse.Namespace) -> int:
    from engine.answers.drawing import draw
    from engine.reasoner_talk import Picture

    _check_drawing(arguments)
    media = _media(arguments)
    asked = _asked(arguments, _question(arguments, media), media)
    _print_values(arguments.kind, asked.value, [part for part in media if isinstance(part, Picture)])
    if arguments.output is not None:
        _write_picture(arguments.output, draw(media[0].rgb, asked.value))
        print(f'{arguments.output}: {len(asked.value)} drawn')
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from engine.reasoner_questions import Attempt, Skills, plan

    skills = Skills(arguments.robot, tuple(arguments.example), max_steps=arguments.max_steps)
    question = plan(arguments.goal, skills, [Attempt(step, done) for step, done in arguments.past])
    steps = _asked(arguments, question, _media(arguments)).value.steps
    if steps:
        rows = [(str(number), step.instruction, step.success) for number, step in enumerate(steps, start=1)]
        _print_table(('step', 'instruction', 'done when'), rows)
    else:
        print('nothing is left to do')
    return 0


def _question(arguments: argparse.Namespace, media: Sequence[Any]) -> Question[Any]:
    from engine import reasoner_questions as questions

    if arguments.kind == 'events':
        if arguments.video is None:
            raise InvalidInput('arguments', [Problem('--video', 'is missing: events are those of a video')])
        clip = media[-1]
        # Times are those of sampled frames, so the last may be said to end one of their periods later.
        return questions.events(arguments.question, len(clip.frames) / clip.fps + 1 / arguments.sample_fps)
    makers: dict[str, Callable[[str], Question[Any]]] = {
        'text': questions.text,
        'boxes': questions.boxes,
        'points': questions.points,
        'trajectory': questions.trajectory,
        'yes-no': questions.yes_no,
    }
    return makers[arguments.kind](arguments.question)


def _asked(arguments: argparse.Namespace, question: Question[Any], media: Sequence[Any]) -> Asked[Any]:
    """Ask, and show the words as they come."""
    from dataclasses import replace

    from engine.reasoner_questions import ask
    from engine.reasoner_talk import GREEDY, THINKING

    sampling = THINKING if arguments.think else GREEDY
    if arguments.max_tokens is not None:
        sampling = replace(sampling, max_tokens=arguments.max_tokens)
    talker = _talker(arguments)
    try:
        asked = ask(
            talker,
            question,
            media,
            sampling=sampling,
            thinking=arguments.think,
            on_text=_show,
            on_retry=_show_problems,
        )
    finally:
        print()  # ends the last line of its words, whatever became of them
    seconds, tokens = asked.answer.seconds.get('total', 0.0), asked.answer.tokens
    cut = ', cut at the limit of tokens' if asked.answer.finish == 'length' else ''
    print(f'({tokens or "unknown"} tokens in {seconds:.1f} s{cut})')
    return asked


def _talker(arguments: argparse.Namespace) -> Talker:
    if arguments.url:
        from engine.reasoner_remote import RemoteTalker

        key = os.environ.get(API_KEY, '')
        return RemoteTalker(arguments.url, arguments.checkpoint, api_key=key, timeout_s=arguments.timeout)
    import engine

    model = engine.load(arguments.checkpoint, arguments.device, arguments.dtype, backend=arguments.backend)
    return model.reasoner()


def _show(words: str) -> None:
    """Words of a model, without what could command the terminal."""
    print(''.join(letter if letter.isprintable() or letter == '\n' else ' ' for letter in words), end='', flush=True)


def _show_problems(problems: Sequence[Problem]) -> None:
    print(
        '\n\nThat answer cannot be used; asking once more.', *(f'  - {problem}' for problem in problems), '', sep='\n'
    )


def _media(arguments: argparse.Namespace) -> list[Picture | Video]:
    from engine.reasoner_talk import Picture

    shown: list[Picture | Video] = [Picture(read_picture(path), path.name) for path in arguments.image]
    return shown if arguments.video is None else [*shown, _read_clip(arguments.video, arguments.sample_fps)]


def _read_clip(path: Path, sample_fps: float) -> Video:
    """A video without the frames that would not be shown anyway."""
    from engine.evaluation.video import VideoReader
    from engine.reasoner_talk import Video

    reader = VideoReader(path)
    if not (0 < sample_fps <= 1000 and reader.fps > 0 and reader.length > 0):
        found = f'{sample_fps:g} of {reader.length} frames at {reader.fps:g} per second'
        raise InvalidInput('arguments', [Problem('--sample-fps', 'gives no frames', found, 'above 0, up to 1000')])
    step = max(1, int(reader.fps / sample_fps / 2), math.ceil(reader.length / _MOST_FRAMES))
    frames = np.stack([reader.frame(index) for index in range(0, reader.length, step)])
    reader.close()
    return Video(frames, reader.fps / step, sample_fps, path.name)


def _check_drawing(arguments: argparse.Namespace) -> None:
    if arguments.output is None:
        return
    problems = []
    if arguments.kind not in _MARKS:
        problems.append(Problem('--output', 'has nothing to show', f'--kind {arguments.kind}', ', '.join(_MARKS)))
    if not arguments.image:
        problems.append(Problem('--image', 'is missing: there is nothing to draw on'))
    if arguments.output.suffix.lower() not in _FORMATS:
        problems.append(Problem('--output', 'is no kind of picture', str(arguments.output), ', '.join(_FORMATS)))
    if problems:
        raise InvalidInput('arguments', problems)
    check_output(arguments.output)


def _write_picture(path: Path, rgb: NDArray[np.uint8]) -> None:
    from PIL import Image

    Image.fromarray(rgb).save(path)


def _print_values(kind: str, value: Any, pictures: Sequence[Picture]) -> None:
    """Values in a table, pixels of the first picture beside the model's own thousandths; words were shown already."""
    size = (pictures[0].rgb.shape[1], pictures[0].rgb.shape[0]) if pictures else None
    if kind == 'yes-no':
        print('yes' if value else 'no')
    elif kind == 'events':
        _print_table(('from s', 'to s', 'what'), [(f'{e.start_s:.2f}', f'{e.end_s:.2f}', e.caption) for e in value])
    elif kind == 'boxes':
        rows = [(box.label, _numbers((box.x1, box.y1, box.x2, box.y2)), _pixels(box, size)) for box in value]
        _print_table(('label', 'x1 y1 x2 y2 of 1000', 'pixels'), rows)
    elif kind == 'points':
        _print_table(
            ('label', 'x y of 1000', 'pixels'), [(p.label, _numbers((p.x, p.y)), _pixels(p, size)) for p in value]
        )
    elif kind == 'trajectory':
        rows = [(path.label, ', '.join(map(_numbers, path.points)), _pixels(path, size)) for path in value]
        _print_table(('label', 'x y of 1000', 'pixels'), rows)


def _pixels(mark: Any, size: tuple[int, int] | None) -> str:
    if size is None:
        return ''
    found = mark.pixels(*size)
    return ', '.join(map(_numbers, found)) if isinstance(found[0], tuple) else _numbers(found)


def _numbers(values: Iterable[float]) -> str:
    return ' '.join(f'{value:.0f}' for value in values)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console

    Console().print(_table(columns, rows)) if rows else print('none')


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # as it is: brackets of a model's words are no markup
    return table
