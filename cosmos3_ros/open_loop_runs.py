"""`cosmos3 eval open-loop`: recorded episodes, a checkpoint's answers to them, figures, and a report.

episodes --> arrays --> policy, dynamics --> moments.jsonl, a line for each --> open_loop.json --> plots, report.html
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.contract_arms import chain_of
from cosmos3_ros.guard.limits import RobotLimits, load_limits
from cosmos3_ros.inverse_kinematics import InverseKinematics
from engine.actions import Poses
from engine.contract import Contract, load_contract
from engine.errors import InvalidInput, Problem
from engine.evaluation.open_loop import ChunkMaker, Source, run_dynamics, run_policy
from engine.evaluation.open_loop_dynamics import DynamicsMeter, Imaginer, InverseMeter
from engine.evaluation.open_loop_plots import plots, saved
from engine.evaluation.open_loop_policy import PolicyMeter
from engine.evaluation.open_loop_recorded import Track, Truth, episodes_of, read_track, track_problems, truth_of
from engine.evaluation.open_loop_report import write_report
from engine.evaluation.open_loop_spaces import JointLimits, JointSpace, Limits, PoseLimits, PoseSpace, Space
from engine.evaluation.recordings import Recording, open_recording
from engine.evaluation.report_provenance import surroundings

Floats = NDArray[np.float64]
Bars = Callable[[], AbstractContextManager[Callable[[str, float], None]]]

JSON_FILE, LINES_FILE, REPORT_FILE, PLOTS_FOLDER = 'open_loop.json', 'moments.jsonl', 'report.html', 'plots'
PARTS = ('policy', 'dynamics', 'inverse')
_NEAR_STEPS = 12


@dataclass(frozen=True)
class OpenLoopOptions:
    """What is to be measured.

    Attributes:
        dataset: Folder of a recording, in one of the layouts of :func:`engine.evaluation.recordings.open_recording`.
        output: Folder for everything that is written.
        contract: Name or path.
        episodes: Numbers of the episodes; empty for all.
        stride: Frames from one moment to the next.
        seeds: How many seeds the policy is asked with.
        max_anchors: Moments at most.
        max_windows: Windows of dynamics at most.
        skip: Of 'policy', 'dynamics', 'inverse', what is left out.
        video_map: For a missing view, the camera that stands in for it.
        instruction: In place of the recorded one; None for that.
        provenance: What else the figures come from.
    """

    dataset: Path
    output: Path
    contract: str = 'droid_joint_pos'
    episodes: tuple[int, ...] = ()
    stride: int = 8
    seeds: int = 1
    max_anchors: int = 400
    max_windows: int = 16
    skip: frozenset[str] = frozenset()
    video_map: Mapping[str, str] = field(default_factory=dict)
    instruction: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Makers:
    """Who is measured; None for what is left out."""

    policy: ChunkMaker | None
    imaginer: Imaginer | None


@dataclass(frozen=True)
class OpenLoopOutcome:
    """What a run left behind.

    Attributes:
        document: All figures, as in the file.
        report: The HTML file.
    """

    document: Mapping[str, Any]
    report: Path


@dataclass(frozen=True, eq=False)
class _Material:
    """What was recorded, in the terms of a contract."""

    contract: Contract
    sources: Sequence[Source]
    truths: Sequence[Truth]
    warnings: tuple[str, ...]


def check_options(options: OpenLoopOptions) -> None:
    """Do nothing if all options make sense.

    Raises:
        InvalidInput: They do not; lists every fault.
    """
    least = {'stride': 1, 'seeds': 1, 'max_anchors': 1, 'max_windows': 1}
    problems = [
        Problem(f'--{name.replace("_", "-")}', 'out of range', str(value), f'{low} or more')
        for name, low in least.items()
        if (value := getattr(options, name)) < low
    ]
    unknown = sorted(options.skip - set(PARTS))
    problems += [Problem('--skip', 'no such part', name, ', '.join(PARTS)) for name in unknown]
    if set(PARTS) <= options.skip:
        problems.append(Problem('--skip', 'leaves nothing to measure'))
    if problems:
        raise InvalidInput('open loop', problems)


def measure(options: OpenLoopOptions, load: Callable[[Contract], Makers], bars: Bars) -> OpenLoopOutcome:
    """Measure a policy and imagination on recorded episodes, and write figures and report.

    Args:
        options: What to do.
        load: Makes those that are measured; called once all recordings were found to be in order.
        bars: Makes progress bars.

    Raises:
        CosmosError: Something that was asked for does not work; the text says what.
    """
    check_options(options)
    material = gather(options)
    makers = load(material.contract)
    options.output.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {}
    example: Mapping[str, Any] = {}
    began = time.monotonic()
    beside = options.output / f'.{LINES_FILE}.partial'
    with bars() as report, beside.open('w', encoding='utf-8') as file:
        write = partial(_write_lines, file)
        if makers.policy is not None and 'policy' not in options.skip:
            document['policy'] = _policy(options, material, makers.policy, write, report)
        if makers.imaginer is not None and not {'dynamics', 'inverse'} <= options.skip:
            parts, example = _dynamics(options, material, makers.imaginer, write, report)
            document |= parts
    beside.replace(options.output / LINES_FILE)
    document['warnings'] = list(material.warnings)
    document['provenance'] = _provenance(options, material, time.monotonic() - began)
    return _conclude(options, document, example)


def _write_lines(file: Any, lines: Iterable[Mapping[str, Any]]) -> None:
    for line in lines:
        file.write(json.dumps(line) + '\n')
        file.flush()


def _policy(
    options: OpenLoopOptions,
    material: _Material,
    maker: ChunkMaker,
    write: Callable[[Iterable[Mapping[str, Any]]], None],
    report: Callable[[str, float], None],
) -> dict[str, Any]:
    contract = material.contract
    rows, fps = contract.timing.chunk_rows, contract.timing.fps
    meter = PolicyMeter(space_of(contract), rows, options.stride, fps, limits_of(contract), 2 * rows)
    seeds = range(options.seeds)
    progress = partial(report, 'policy')
    write(run_policy(
        material.sources, material.truths, contract, maker, meter, seeds, options.max_anchors, progress
    ))  # fmt: skip
    key = 'joints' if contract.embodiment.action_space == 'joint_position' else 'poses'
    return meter.conclude() | {
        'seeds': options.seeds,
        'targets': _said(material.sources, f'next {key}', key),
        'gripper_targets': _said(material.sources, 'next gripper', 'gripper'),
    }


def _said(sources: Sequence[Source], key: str, what: str) -> str:
    """What chunks are held to, in words."""
    found = dict.fromkeys(source.track.sources.get(key, '') for source in sources)
    return f'{what}: ' + ', '.join(name for name in found if name)


def _dynamics(
    options: OpenLoopOptions,
    material: _Material,
    imaginer: Imaginer,
    write: Callable[[Iterable[Mapping[str, Any]]], None],
    report: Callable[[str, float], None],
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    block = imaginer.rows + 1
    forward = None if 'dynamics' in options.skip else DynamicsMeter(imaginer, block)
    backward = None if 'inverse' in options.skip else InverseMeter(imaginer, block)
    paths = [_path(source.track, material.contract) for source in material.sources]
    progress = partial(report, 'dynamics')
    write(run_dynamics(
        material.sources, paths, material.contract, imaginer, (forward, backward), options.max_windows, progress
    ))  # fmt: skip
    found: dict[str, Any] = {}
    if forward is not None:
        found['dynamics'] = forward.conclude() | {'fps': material.contract.timing.fps}
    if backward is not None:
        found['inverse'] = backward.conclude()
    return found, {} if forward is None else forward.example


def _conclude(options: OpenLoopOptions, document: Mapping[str, Any], example: Mapping[str, Any]) -> OpenLoopOutcome:
    target = options.output / JSON_FILE
    beside = target.with_name(f'.{target.name}.partial')
    beside.write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')
    beside.replace(target)
    pictures = plots(document, example)
    saved(pictures, options.output / PLOTS_FOLDER)
    report = options.output / REPORT_FILE
    write_report(report, document, pictures)
    return OpenLoopOutcome(document, report)


def _provenance(options: OpenLoopOptions, material: _Material, seconds: float) -> dict[str, Any]:
    contract = material.contract
    return {
        **options.provenance,
        'contract': contract.name,
        'contract_fingerprint': contract.fingerprint,
        'robot': contract.robot.description,
        'dataset': options.dataset.name,
        'episodes': [source.track.name for source in material.sources],
        'frames': sum(len(source.track) for source in material.sources),
        'signals': dict(material.sources[0].track.sources),
        'video_map': dict(options.video_map),
        'instruction': options.instruction,
        'stride': options.stride,
        'seeds': list(range(options.seeds)),
        'skipped': sorted(options.skip),
        'seconds': round(seconds, 1),
        **surroundings(),
    }


# What was recorded


def gather(options: OpenLoopOptions) -> _Material:
    """Read and check all episodes.

    Raises:
        InvalidInput: One of them cannot be used; lists every fault of all of them.
    """
    contract = load_contract(options.contract)
    if len(contract.robot.arms) != 1:
        arms = str(len(contract.robot.arms))
        raise InvalidInput('open loop', [Problem('contract', 'has several arms; recordings have one', arms, '1')])
    solve = _joints_of(contract)
    sources, problems, warnings = [], [], dict[str, None]()
    for number in options.episodes or episodes_of(options.dataset):
        found = partial(
            open_recording, options.dataset, options.video_map, episode=number, instruction=options.instruction
        )
        track = read_track(options.dataset, number, solve)
        with found() as recording:
            track = track.cut(len(recording))
            problems += _view_problems(recording, contract, track.name) + track_problems(track, contract)
            problems += _instruction_problems(recording.instruction, options, track.name)
            warnings |= dict.fromkeys(f'{track.name}: {text}' for text in recording.warnings)
        sources.append(Source(track, found))
    if problems:
        raise InvalidInput(f'recording {options.dataset}', problems)
    return _Material(contract, sources, [truth_of(one.track, contract) for one in sources], tuple(warnings))


def _view_problems(recording: Recording, contract: Contract, name: str) -> list[Problem]:
    missing = [view for view in contract.views.streams if view not in recording.views]
    if not missing:
        return []
    remedy = 'name stand-ins with --video-map view=source'
    return [Problem(f'{name}: views', 'are missing', ', '.join(missing), ', '.join(recording.views), remedy)]


def _instruction_problems(instruction: str, options: OpenLoopOptions, name: str) -> list[Problem]:
    if instruction.strip() or 'policy' in options.skip:
        return []
    return [Problem(f'{name}: instruction', 'is empty', remedy='say with --instruction what was to be done')]


def _joints_of(contract: Contract) -> Callable[[Poses], Floats] | None:
    """Inverse kinematics of the contract's arm, or None if its robot file has none."""
    arm = contract.robot.arms[0]
    try:
        solver = InverseKinematics(
            chain_of(arm, load_limits(contract.robot.description)), arm.joints, arm.end_effector_frame
        )
    except InvalidInput:
        return None
    limits = _in_order(contract)
    middle = (limits.lower + limits.upper) / 2
    return partial(_solve, solver, middle)


def _solve(solver: InverseKinematics, start: Floats, poses: Poses) -> Floats:
    """Joints [N, J] through poses; the first is found step by step from the middle of the joints' ranges."""
    from scipy.spatial.transform import Rotation, Slerp

    position, rotation = poses.position[0], poses.rotation[0]
    here, turned = solver.pose(start)
    shares = np.linspace(0, 1, _NEAR_STEPS + 1)[1:]
    turns = Slerp([0, 1], Rotation.from_matrix(np.stack([turned, rotation])))(shares).as_matrix()
    near = solver.solve(here + shares[:, None] * (position - here), turns, start)[-1]
    return solver.solve(poses.position, poses.rotation, near)


def _path(track: Track, contract: Contract) -> Poses:
    """Poses of the end effector in every frame: as measured, else by the robot's kinematics.

    Raises:
        InvalidInput: There is neither.
    """
    if track.poses is not None:
        return track.poses
    if track.joints is None:
        raise InvalidInput('dynamics', [Problem(track.name, 'has neither poses nor joints that can be believed')])
    from cosmos3_ros.motion_bridge import MotionBridge
    from engine.dynamics import DynamicsTerms

    return MotionBridge(contract, DynamicsTerms.of_contract(contract)).poses(track.joints)


# What a contract wants


def space_of(contract: Contract) -> Space:
    """What chunks of a contract are counted in."""
    if contract.embodiment.action_space == 'joint_position':
        return JointSpace(contract.robot.joints)
    return PoseSpace()


def _in_order(contract: Contract) -> RobotLimits:
    return load_limits(contract.robot.description).for_joints(contract.robot.joints)


def limits_of(contract: Contract) -> Limits | None:
    """The limits of the contract's robot; None if its file has none for poses."""
    limits = _in_order(contract)
    if contract.embodiment.action_space == 'joint_position':
        return JointLimits(limits.lower, limits.upper, limits.velocity_bounds, limits.acceleration)
    try:
        cartesian = [limits.cartesian[name] for name in ('translation', 'rotation')]
    except KeyError:
        return None
    moved, turned = cartesian
    return PoseLimits((moved.velocity, turned.velocity), (moved.acceleration, turned.acceleration))
