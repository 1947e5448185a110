"""The contract: one YAML file that pins checkpoint, embodiment and robot to each other.

A contract says what a row of actions means, which joints it moves, which camera views the network sees and how they are
put together, at what rate rows are played, how the prompt is written and how the sampler is run. It is read once into
frozen dataclasses; everything that is wrong with it is reported at once, by key.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from engine.actions import GripperTravel, Method, embodiment
from engine.errors import ContractError, InvalidInput, Problem
from engine.resources import find_config

SCHEMA = 1
FAMILIES = ('nano', 'super', 'edge')
ACTION_SPACES = ('joint_position', 'ee_delta')
NORMALIZATIONS = tuple(method.value for method in Method)
COMPOSITIONS: Mapping[str, tuple[str, ...]] = {
    'single': ('main',),
    'wrist_over_two_exteriors': ('wrist', 'exterior_1', 'exterior_2'),
}
PROMPT_FORMATS = ('plain', 'json')
VIEWPOINTS = ('ego_view', 'third_person_view', 'wrist_view', 'concat_view', 'top_down_2d_view', 'video_game_view')
RESOLUTION_TIERS = (256, 480, 704, 720, 768)
TEMPORAL_COMPRESSION = 4


@dataclass(frozen=True)
class CheckpointTerms:
    """Which checkpoints this contract may be used with."""

    families: tuple[str, ...]
    policy: str | None


@dataclass(frozen=True)
class EmbodimentTerms:
    """What one row of actions means to the model.

    Attributes:
        domain: Name of the training domain; selects the action head.
        action_space: `joint_position` (absolute rad) or `ee_delta` (framewise SE(3) delta, m and rot6d).
        raw_action_dim: Numbers a row that mean something; the network's remaining channels stay zero.
        normalization: How rows were scaled in training; `none` means physical units.
        state_row: Whether row 0 of the action tensor is the measured state, kept clean.
        history_rows: Executed rows put before it, oldest first, kept clean.
    """

    domain: str
    action_space: str
    raw_action_dim: int
    normalization: str
    state_row: bool
    history_rows: int

    @property
    def clean_rows(self) -> int:
        """Leading rows of the action tensor that the sampler leaves untouched."""
        return self.history_rows + int(self.state_row)

    @property
    def start_offset(self) -> int:
        """Frame index of the first action row (a state row sits on frame 0, history before it)."""
        return (0 if self.state_row else 1) - self.history_rows


@dataclass(frozen=True)
class GripperTerms:
    """The joint that stands for the gripper in joint states, and its ends of travel (m or rad)."""

    joint: str
    travel: GripperTravel


@dataclass(frozen=True)
class RobotTerms:
    """The robot a chunk is meant for; `description` names the file its limits come from."""

    description: str
    joints: tuple[str, ...]
    gripper: GripperTerms | None
    end_effector_frame: str


@dataclass(frozen=True)
class StreamTerms:
    """One input stream: relative topic and the age (s) beyond which a sample no longer counts."""

    topic: str
    max_age_s: float


@dataclass(frozen=True)
class ViewTerms:
    """Camera views and the one picture they are composed into; `size` is (height, width) in pixels."""

    composition: str
    size: tuple[int, int]
    streams: Mapping[str, StreamTerms]


@dataclass(frozen=True)
class StateTerms:
    """Measured state streams; `end_effector` is needed by end-effector action spaces only."""

    joint_states: StreamTerms | None
    end_effector: StreamTerms | None


@dataclass(frozen=True)
class TimingTerms:
    """Rates and lengths: `fps` rows per second, `chunk_rows` rows a chunk, `resolution_tier` of the video."""

    fps: float
    chunk_rows: int
    resolution_tier: int

    @property
    def step_s(self) -> float:
        """Seconds from one row to the next."""
        return 1.0 / self.fps

    @property
    def frames(self) -> int:
        """Pixel frames of the imagined video: the observed one and one per row."""
        return self.chunk_rows + 1

    @property
    def latent_frames(self) -> int:
        """Latent frames of the imagined video (the autoencoder keeps the first frame and every fourth after it)."""
        return self.chunk_rows // TEMPORAL_COMPRESSION + 1


@dataclass(frozen=True)
class PromptTerms:
    """How the instruction becomes the prompt the checkpoint was trained with."""

    format: str
    viewpoint: str
    description: str
    idle_frames: int | None


@dataclass(frozen=True)
class SamplerTerms:
    """Denoising steps, guidance scale, the timesteps in which guidance is on (None = all), and the shift."""

    steps: int
    guidance: float
    guidance_interval: tuple[float, float] | None
    shift: float


@dataclass(frozen=True)
class Contract:
    """Everything that checkpoint, embodiment and robot must agree on. See `config/contracts` for commented examples."""

    name: str
    description: str
    checkpoint: CheckpointTerms
    embodiment: EmbodimentTerms
    robot: RobotTerms
    views: ViewTerms
    state: StateTerms
    timing: TimingTerms
    prompt: PromptTerms
    sampler: SamplerTerms
    source: str = field(default='', compare=False)
    fingerprint: str = field(default='', compare=False)


class _Reader:
    """Reads one mapping of the file, key by key, noting every fault instead of stopping at the first."""

    def __init__(self, data: object, where: str, problems: list[Problem]) -> None:
        self.where = where
        self.problems = problems
        self.data: dict[str, Any] = data if isinstance(data, dict) else {}
        self.read: set[str] = set()
        if not isinstance(data, dict):
            self.problem(where or 'file', 'must be a mapping of keys to values', repr(data)[:80])

    def problem(self, where: str, what: str, value: str = '', allowed: str = '', remedy: str = '') -> None:
        self.problems.append(Problem(where, what, value, allowed, remedy))

    def key(self, name: str) -> str:
        return f'{self.where}.{name}' if self.where else name

    def section(self, name: str) -> _Reader:
        self.read.add(name)
        if name not in self.data:
            self.problem(self.key(name), 'section is missing')
            return _Reader({}, self.key(name), [])  # one report is enough
        return _Reader(self.data[name], self.key(name), self.problems)

    def take[T](self, name: str, kinds: type | tuple[type, ...], fallback: T, *, optional: bool = False) -> Any | T:
        self.read.add(name)
        if name not in self.data:
            if not optional:
                self.problem(self.key(name), 'is missing')
            return fallback
        value = self.data[name]
        if value is None and optional:
            return fallback
        if isinstance(value, bool) != (kinds is bool) or not isinstance(value, kinds):
            expected = kinds.__name__ if isinstance(kinds, type) else ' or '.join(k.__name__ for k in kinds)
            self.problem(self.key(name), 'has the wrong type', repr(value), expected)
            return fallback
        return value

    def text(self, name: str, allowed: Sequence[str] | None = None) -> str:
        value = str(self.take(name, str, ''))
        if allowed is not None and name in self.data and isinstance(self.data[name], str) and value not in allowed:
            self.problem(self.key(name), 'is not known', repr(value), ', '.join(allowed))
        return value

    def optional_text(self, name: str) -> str | None:
        value = self.take(name, str, None, optional=True)
        return None if value is None else str(value)

    def number(self, name: str, low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> float:
        value = self.take(name, (int, float), math.nan)
        ok = math.isfinite(value) and (low < value if above else low <= value) and value <= high
        if isinstance(self.data.get(name), (int, float)) and not ok:
            self.problem(
                self.key(name), 'is out of range', repr(value), f'{"above" if above else "from"} {low:g} to {high:g}'
            )
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.take(name, int, low)
        if not low <= value <= high:
            self.problem(self.key(name), 'is out of range', str(value), f'{low} to {high}')
        return int(value)

    def finish(self) -> None:
        for name in self.data:
            if name not in self.read:
                self.problem(self.key(str(name)), 'is not a key of a contract', '', ', '.join(sorted(self.read)))


def _checkpoint(reader: _Reader) -> CheckpointTerms:
    families: list[Any] = reader.take('families', list, [])
    unknown = [f for f in families if f not in FAMILIES]
    if unknown or (not families and 'families' in reader.data):
        reader.problem(reader.key('families'), 'must name model families', repr(families), ', '.join(FAMILIES))
    terms = CheckpointTerms(tuple(families), reader.optional_text('policy'))
    reader.finish()
    return terms


def _embodiment(reader: _Reader) -> EmbodimentTerms:
    terms = EmbodimentTerms(
        domain=reader.text('domain'),
        action_space=reader.text('action_space', ACTION_SPACES),
        raw_action_dim=reader.integer('raw_action_dim', 1, 64),
        normalization=reader.text('normalization', NORMALIZATIONS),
        state_row=bool(reader.take('state_row', bool, True)),
        history_rows=reader.integer('history_rows', 0, 64),
    )
    reader.finish()
    return terms


def _gripper(reader: _Reader) -> GripperTerms | None:
    if reader.data.get('gripper', ...) is None:
        reader.read.add('gripper')
        return None
    section = reader.section('gripper')
    joint, ends = section.text('joint'), (section.number('open'), section.number('closed'))
    section.finish()
    if ends[0] == ends[1]:
        section.problem(section.key('open'), 'must differ from closed', f'{ends[0]:g} for both')
    if not math.isfinite(sum(ends)) or ends[0] == ends[1]:
        ends = (1.0, 0.0)  # reported above; the reading goes on to find further faults
    return GripperTerms(joint, GripperTravel(*ends))


def _robot(reader: _Reader) -> RobotTerms:
    joints: list[Any] = reader.take('joints', list, [])
    if (
        not all(isinstance(j, str) and j for j in joints)
        or len(set(map(str, joints))) != len(joints)
        or (not joints and 'joints' in reader.data)
    ):
        reader.problem(reader.key('joints'), 'must be a list of distinct joint names', repr(joints))
    terms = RobotTerms(
        description=reader.text('description'),
        joints=tuple(map(str, joints)),
        gripper=_gripper(reader),
        end_effector_frame=reader.text('end_effector_frame'),
    )
    reader.finish()
    return terms


def _stream(reader: _Reader, name: str) -> StreamTerms:
    section = reader.section(name)
    terms = StreamTerms(section.text('topic'), section.number('max_age_s', 0.0, 10.0, above=True))
    if terms.topic.startswith('/'):
        section.problem(
            section.key('topic'),
            'must be relative',
            repr(terms.topic),
            '',
            'drop the leading slash; namespaces and remaps do the rest',
        )
    section.finish()
    return terms


def _optional_stream(reader: _Reader, name: str) -> StreamTerms | None:
    if reader.data.get(name) is None:
        reader.read.add(name)
        return None
    return _stream(reader, name)


def _views(reader: _Reader) -> ViewTerms:
    composition = reader.text('composition', tuple(COMPOSITIONS))
    size = reader.take('size', list, [1, 1])
    if len(size) != 2 or not all(isinstance(s, int) and 16 <= s <= 8192 for s in size):
        if 'size' in reader.data:
            reader.problem(reader.key('size'), 'must be [height, width] in pixels', repr(size), '16 to 8192 each')
        size = [16, 16]
    section = reader.section('streams')
    streams = {str(name): _stream(section, name) for name in section.data}
    expected = COMPOSITIONS.get(composition)
    listed = isinstance(reader.data.get('streams'), dict)
    if expected is not None and listed and set(streams) != set(expected):
        reader.problem(section.where, f'do not fit composition {composition}', ', '.join(streams), ', '.join(expected))
    reader.finish()
    return ViewTerms(composition, (int(size[0]), int(size[1])), streams)


def _state(reader: _Reader) -> StateTerms:
    terms = StateTerms(_optional_stream(reader, 'joint_states'), _optional_stream(reader, 'end_effector'))
    reader.finish()
    return terms


def _timing(reader: _Reader) -> TimingTerms:
    rows = reader.integer('chunk_rows', TEMPORAL_COMPRESSION, 512)
    if rows % TEMPORAL_COMPRESSION:
        reader.problem(
            reader.key('chunk_rows'),
            f'must be a multiple of {TEMPORAL_COMPRESSION}',
            str(rows),
            '',
            'the video autoencoder groups frames by four',
        )
    tier = reader.integer('resolution_tier', RESOLUTION_TIERS[0], RESOLUTION_TIERS[-1])
    if tier not in RESOLUTION_TIERS and RESOLUTION_TIERS[0] <= tier <= RESOLUTION_TIERS[-1]:
        reader.problem(reader.key('resolution_tier'), 'is not known', str(tier), ', '.join(map(str, RESOLUTION_TIERS)))
    terms = TimingTerms(reader.number('fps', 0.0, 120.0, above=True), rows, tier)
    reader.finish()
    return terms


def _prompt(reader: _Reader) -> PromptTerms:
    idle = reader.take('idle_frames', int, None, optional=True)
    terms = PromptTerms(
        format=reader.text('format', PROMPT_FORMATS),
        viewpoint=reader.text('viewpoint', VIEWPOINTS),
        description=(reader.optional_text('description') or '').strip(),
        idle_frames=None if idle is None else int(idle),
    )
    if terms.idle_frames is not None and terms.format == 'plain':
        reader.problem(reader.key('idle_frames'), 'needs format json', str(idle), 'null')
    reader.finish()
    return terms


def _sampler(reader: _Reader) -> SamplerTerms:
    interval = reader.take('guidance_interval', list, None, optional=True)
    if interval is not None and (
        len(interval) != 2 or not all(isinstance(b, (int, float)) for b in interval) or not interval[0] < interval[1]
    ):
        reader.problem(
            reader.key('guidance_interval'), 'must be [low, high] in timesteps', repr(interval), 'null for every step'
        )
        interval = None
    terms = SamplerTerms(
        steps=reader.integer('steps', 1, 1000),
        guidance=reader.number('guidance', 0.0, 7.0),
        guidance_interval=None if interval is None else (float(interval[0]), float(interval[1])),
        shift=reader.number('shift', 0.0, 100.0, above=True),
    )
    reader.finish()
    return terms


def _cross_check(contract: Contract, note: Callable[[Problem], None]) -> None:
    """Faults that only show when sections are read together."""
    terms = contract.embodiment
    try:
        space = embodiment(terms.domain).space(terms.action_space)
    except InvalidInput as error:
        for problem in error.problems:
            note(replace(problem, where=f'embodiment ({problem.where})'))
    else:
        if space.dim != terms.raw_action_dim:
            value, allowed = str(terms.raw_action_dim), f'{space.dim} for {terms.domain} in {terms.action_space}'
            note(Problem('embodiment.raw_action_dim', 'does not fit the action space', value, allowed))
    if terms.action_space == 'joint_position' and contract.state.joint_states is None:
        note(Problem('state.joint_states', 'is needed by action_space joint_position', 'null'))
    if terms.action_space == 'ee_delta' and contract.state.end_effector is None:
        note(Problem('state.end_effector', 'is needed by action_space ee_delta', 'null'))
    if terms.action_space == 'joint_position':
        numbers = len(contract.robot.joints) + int(contract.robot.gripper is not None)
        if contract.robot.joints and numbers != terms.raw_action_dim:
            note(
                Problem(
                    'robot.joints',
                    'do not fill a row',
                    f'{numbers} numbers (joints and gripper)',
                    f'raw_action_dim = {terms.raw_action_dim}',
                )
            )
    if terms.history_rows and not terms.state_row:
        note(Problem('embodiment.history_rows', 'needs state_row: true', str(terms.history_rows)))


def parse_contract(data: object, source: str) -> Contract:
    """Validate a contract already read from YAML.

    Args:
        data: The parsed document.
        source: File it came from, for messages.

    Returns:
        The frozen contract.

    Raises:
        ContractError: Lists every fault, by key.
    """
    problems: list[Problem] = []
    reader = _Reader(data, '', problems)
    schema = reader.integer('schema', SCHEMA, SCHEMA) if reader.data else SCHEMA
    if not reader.data:
        raise ContractError(f'contract {source}', problems or [Problem('file', 'is empty')])
    contract = Contract(
        name=reader.text('name'),
        description=reader.text('description'),
        checkpoint=_checkpoint(reader.section('checkpoint')),
        embodiment=_embodiment(reader.section('embodiment')),
        robot=_robot(reader.section('robot')),
        views=_views(reader.section('views')),
        state=_state(reader.section('state')),
        timing=_timing(reader.section('timing')),
        prompt=_prompt(reader.section('prompt')),
        sampler=_sampler(reader.section('sampler')),
        source=source,
        fingerprint=hashlib.sha256(f'{schema}{data!r}'.encode()).hexdigest()[:16],
    )
    reader.finish()
    if not problems:
        _cross_check(contract, problems.append)
    if problems:
        raise ContractError(f'contract {source}', problems)
    return contract


def load_contract(name_or_path: str | Path) -> Contract:
    """Read a contract by name (a file in `config/contracts`) or by path.

    Raises:
        ContractError: There is no such file, it cannot be parsed, or something in it is wrong; lists every fault.
    """
    try:
        path = find_config('contracts', str(name_or_path))
    except InvalidInput as error:
        raise ContractError(error.subject, error.problems) from None
    try:
        data = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ContractError(f'contract {path}', [Problem(path.name, 'cannot be read as YAML', str(error))]) from error
    return parse_contract(data, str(path))
