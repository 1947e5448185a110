"""The contract: one YAML file that pins checkpoint, embodiment and robot to each other.

A contract says what a row of actions means, which joints it moves, which camera views the network sees and how they are
put together, at what rate rows are played, how the prompt is written and how the sampler is run. It is read once into
frozen dataclasses; everything that is wrong with it is reported at once, by key.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from engine.actions import GripperTravel, Method, Normalizer, Statistics, normalizer, parse_statistics
from engine.contract_checks import cross_check, repeated_names
from engine.contract_reader import Reader
from engine.contract_sampler import PRESETS, SamplerTerms, read_sampler
from engine.errors import ContractError, InvalidInput, Problem
from engine.resources import find_config

SCHEMA = 1
FAMILIES = ('nano', 'super', 'edge')
ACTION_SPACES = ('joint_position', 'ee_delta')
NORMALIZATIONS = tuple(method.value for method in Method)
COMPOSITIONS: Mapping[str, tuple[str, ...]] = {
    'single': ('main',),
    'wrist_over_two_exteriors': ('wrist', 'exterior_1', 'exterior_2'),
    'front_over_two_sides': ('front', 'left', 'right'),
}
PROMPT_FORMATS = ('plain', 'json', 'bare')
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
        offsets: Whether the joints of action rows are offsets from the measured state. Chunks that leave the policy are
            absolute all the same.
        statistics: Of action rows as they are written, before scaling; None for the published ones.
        state_statistics: Of state rows, where action rows are offsets.
    """

    domain: str
    action_space: str
    raw_action_dim: int
    normalization: str
    state_row: bool
    history_rows: int
    offsets: bool = False
    statistics: Statistics | None = None
    state_statistics: Statistics | None = None

    @property
    def normalizer(self) -> Normalizer | None:
        """Scale of action rows by the contract's own statistics; None if it has none."""
        return None if self.statistics is None else normalizer(self.normalization, self.statistics)

    @property
    def state_normalizer(self) -> Normalizer | None:
        """Scale of state rows, likewise."""
        return None if self.state_statistics is None else normalizer(self.normalization, self.state_statistics)

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
class ArmTerms:
    """One arm of the robot.

    Attributes:
        name: What the contract calls it; empty for a robot of one arm, which needs no name.
        joints: Its joints, in the order of the row.
        gripper: Its gripper, or None.
        end_effector_frame: The frame whose poses are measured and asked for.
    """

    name: str
    joints: tuple[str, ...]
    gripper: GripperTerms | None
    end_effector_frame: str

    @property
    def prefix(self) -> str:
        """What stands in front of the names of the arm's topics: `left/`, or nothing if the arm has no name."""
        return f'{self.name}/' if self.name else ''


@dataclass(frozen=True)
class RobotTerms:
    """The robot a chunk is meant for; `description` names the file its limits come from.

    Its arms are in the order of the row: that of the joints, grippers and poses of all arrays and messages.
    """

    description: str
    arms: tuple[ArmTerms, ...]

    @property
    def joints(self) -> tuple[str, ...]:
        """The joints of all arms, arm after arm; without the grippers."""
        return tuple(joint for arm in self.arms for joint in arm.joints)

    @property
    def grippers(self) -> tuple[GripperTerms, ...]:
        """The grippers of the arms that have one."""
        return tuple(arm.gripper for arm in self.arms if arm.gripper is not None)

    @property
    def gripper_joints(self) -> tuple[str, ...]:
        """The joints that stand for the grippers."""
        return tuple(gripper.joint for gripper in self.grippers)

    @property
    def end_effector_frames(self) -> tuple[str, ...]:
        """The end effector's frame of each arm."""
        return tuple(arm.end_effector_frame for arm in self.arms)


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
    """Measured state streams.

    Attributes:
        joint_states: Joints of all arms and their grippers; None if the policy does without.
        end_effectors: One for each arm, in the order of the arms; empty, or all of them. End-effector action spaces
            need them.
    """

    joint_states: StreamTerms | None
    end_effectors: tuple[StreamTerms, ...]


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


def _checkpoint(reader: Reader) -> CheckpointTerms:
    families: list[Any] = reader.take('families', list, [])
    unknown = [f for f in families if f not in FAMILIES]
    if unknown or (not families and 'families' in reader.data):
        reader.problem(reader.key('families'), 'must name model families', repr(families), ', '.join(FAMILIES))
    terms = CheckpointTerms(tuple(families), reader.optional_text('policy'))
    reader.finish()
    return terms


def _embodiment(reader: Reader) -> EmbodimentTerms:
    terms = EmbodimentTerms(
        domain=reader.text('domain'),
        action_space=reader.text('action_space', ACTION_SPACES),
        raw_action_dim=reader.integer('raw_action_dim', 1, 64),
        normalization=reader.text('normalization', NORMALIZATIONS),
        state_row=bool(reader.take('state_row', bool, True)),
        history_rows=reader.integer('history_rows', 0, 64),
        offsets=bool(reader.take('offsets', bool, False, optional=True)),
        statistics=_statistics(reader, 'statistics'),
        state_statistics=_statistics(reader, 'state_statistics'),
    )
    reader.finish()
    return terms


def _statistics(reader: Reader, name: str) -> Statistics | None:
    """Statistics of rows, written into the contract itself: what a checkpoint was trained with goes where it goes."""
    document = reader.take(name, dict, None, optional=True)
    method = reader.data.get('normalization')
    if document is None or method not in NORMALIZATIONS:
        return None
    try:
        found = parse_statistics(document, Method(method), reader.key(name))
        normalizer(method, found)
    except InvalidInput as error:
        reader.problems.extend(error.problems)
        return None
    width = reader.data.get('raw_action_dim')
    if found.dim != width:
        reader.problem(reader.key(name), 'have another width than a row', str(found.dim), str(width))
    return found


def _gripper(reader: Reader) -> GripperTerms | None:
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


def _arm(reader: Reader, name: str) -> ArmTerms:
    joints: list[Any] = reader.take('joints', list, [])
    if (
        not all(isinstance(j, str) and j for j in joints)
        or len(set(map(str, joints))) != len(joints)
        or (not joints and 'joints' in reader.data)
    ):
        reader.problem(reader.key('joints'), 'must be a list of distinct joint names', repr(joints))
    return ArmTerms(
        name=name,
        joints=tuple(map(str, joints)),
        gripper=_gripper(reader),
        end_effector_frame=reader.text('end_effector_frame'),
    )


def _named_arm(reader: Reader, name: str) -> ArmTerms:
    section = reader.section(name)
    arm = _arm(section, name)
    section.finish()
    if not name.isidentifier():
        allowed = 'letters, digits and underscores: it becomes part of the names of topics'
        reader.problem(section.where, 'is no name for an arm', repr(name), allowed)
    return arm


def _robot(reader: Reader) -> RobotTerms:
    description = reader.text('description')
    if 'arms' in reader.data:
        section = reader.section('arms')
        arms = tuple(_named_arm(section, str(name)) for name in section.data)
        if not arms and isinstance(reader.data['arms'], dict):
            reader.problem(section.where, 'is empty', '', 'name: {joints, gripper, end_effector_frame}')
        for problem in repeated_names(section.where, arms):
            reader.problems.append(problem)
    else:
        arms = (_arm(reader, ''),)
    reader.finish()
    return RobotTerms(description, arms)


def _stream(reader: Reader, name: str) -> StreamTerms:
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


def _optional_stream(reader: Reader, name: str) -> StreamTerms | None:
    if reader.data.get(name) is None:
        reader.read.add(name)
        return None
    return _stream(reader, name)


def _views(reader: Reader) -> ViewTerms:
    composition = reader.text('composition', tuple(COMPOSITIONS))
    size = reader.take('size', list, [1, 1])
    if len(size) != 2 or not all(isinstance(s, int) and 16 <= s <= 8192 for s in size):
        if 'size' in reader.data:
            reader.problem(reader.key('size'), 'must be [height, width] in pixels', repr(size), '16 to 8192 each')
        size = [16, 16]
    if composition in COMPOSITIONS and composition != 'single' and size[1] % 2:
        what = 'must have an even width: two views stand side by side'
        reader.problem(reader.key('size'), what, repr(size), '[height, even width]')
    section = reader.section('streams')
    streams = {str(name): _stream(section, name) for name in section.data}
    expected = COMPOSITIONS.get(composition)
    listed = isinstance(reader.data.get('streams'), dict)
    if expected is not None and listed and set(streams) != set(expected):
        reader.problem(section.where, f'do not fit composition {composition}', ', '.join(streams), ', '.join(expected))
    reader.finish()
    return ViewTerms(composition, (int(size[0]), int(size[1])), streams)


def _end_effectors(reader: Reader, arms: tuple[ArmTerms, ...]) -> tuple[StreamTerms, ...]:
    """The stream itself for a robot of one arm without a name, else a section with one for each arm."""
    if reader.data.get('end_effector') is None or any(not arm.name for arm in arms):
        stream = _optional_stream(reader, 'end_effector')
        return () if stream is None else (stream,)
    section = reader.section('end_effector')
    streams = tuple(_stream(section, arm.name) for arm in arms)
    topics = [stream.topic for stream in streams if stream.topic]
    for topic in dict.fromkeys(topics):
        if topics.count(topic) > 1:
            section.problem(section.where, 'gives several arms the same topic', repr(topic), 'one topic for each arm')
    section.finish()
    return streams


def _state(reader: Reader, arms: tuple[ArmTerms, ...]) -> StateTerms:
    terms = StateTerms(_optional_stream(reader, 'joint_states'), _end_effectors(reader, arms))
    reader.finish()
    return terms


def _timing(reader: Reader) -> TimingTerms:
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


def _prompt(reader: Reader) -> PromptTerms:
    idle = reader.take('idle_frames', int, None, optional=True)
    terms = PromptTerms(
        format=reader.text('format', PROMPT_FORMATS),
        viewpoint=reader.text('viewpoint', VIEWPOINTS),
        description=(reader.optional_text('description') or '').strip(),
        idle_frames=None if idle is None else int(idle),
    )
    if terms.idle_frames is not None and terms.format != 'json':
        reader.problem(reader.key('idle_frames'), 'needs format json', str(idle), 'null')
    reader.finish()
    return terms


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
    reader = Reader(data, '', problems)
    schema = reader.integer('schema', SCHEMA, SCHEMA) if reader.data else SCHEMA
    if not reader.data:
        raise ContractError(f'contract {source}', problems or [Problem('file', 'is empty')])
    robot = _robot(reader.section('robot'))
    contract = Contract(
        name=reader.text('name'),
        description=reader.text('description'),
        checkpoint=_checkpoint(reader.section('checkpoint')),
        embodiment=_embodiment(reader.section('embodiment')),
        robot=robot,
        views=_views(reader.section('views')),
        state=_state(reader.section('state'), robot.arms),
        timing=_timing(reader.section('timing')),
        prompt=_prompt(reader.section('prompt')),
        sampler=read_sampler(reader.section('sampler')),
        source=source,
        fingerprint=hashlib.sha256(f'{schema}{data!r}'.encode()).hexdigest()[:16],
    )
    reader.finish()
    if not problems:
        cross_check(contract, problems.append)
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


def with_preset(contract: Contract, name: str) -> Contract:
    """The contract with its sampler run as a preset says; all else, its fingerprint too, stays as it is.

    Args:
        contract: Any contract.
        name: `reference`: as the contract itself says. `fast`: two steps, guidance 3 in both.

    Raises:
        ContractError: There is no such preset; or `fast` is asked for where it would not be faster, or where nobody has
            tried it: a contract without guidance, as for checkpoints that were distilled to do without.
    """
    if name not in PRESETS:
        problem = Problem('preset', 'is not known', repr(name), ', '.join(PRESETS))
        raise ContractError(f'preset for contract {contract.name}', [problem])
    sampler, chosen = contract.sampler, PRESETS[name]
    if not chosen:
        return contract
    problems = []
    if sampler.guidance == 1.0:
        what = f'does without guidance, and preset {name} was tried with guidance only'
        problems.append(Problem('sampler.guidance', what, '1', 'another guidance', 'use preset reference'))
    if sampler.steps < chosen['steps']:
        what, allowed = f'are fewer than those of preset {name}', f'at least {chosen["steps"]}'
        problems.append(Problem('sampler.steps', what, str(sampler.steps), allowed, 'use preset reference'))
    if problems:
        raise ContractError(f'preset for contract {contract.name}', problems)
    return replace(contract, sampler=replace(sampler, **chosen))
