"""From streams to observations: one value of each input the contract names, all as of one moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.streams import Missing, Snapshot, StreamBuffer, Timeline, reference_stamp, sample_all
from engine.contract import Contract, StreamTerms
from engine.errors import ObservationError
from engine.policy_observation import Observation

JOINT_STATES = 'joint_states'
END_EFFECTOR = 'end_effector'
"""Stream of the measured pose; with several arms there is one for each, see :func:`pose_streams`."""
IMAGE_DEPTH = 8
STATE_DEPTH = 256


def pose_streams(contract: Contract) -> dict[str, StreamTerms]:
    """Streams of measured poses by name, in the order of the arms: `end_effector`, or `end_effector.left` and so on.

    These are their keys in the contract, too; none if it has none.
    """
    if not contract.state.end_effectors:
        return {}
    names = [f'{END_EFFECTOR}.{arm.name}' if arm.name else END_EFFECTOR for arm in contract.robot.arms]
    return dict(zip(names, contract.state.end_effectors, strict=True))


class Inputs:
    """Buffers of everything a contract's policy reads.

    Values pushed: images as uint8 [H, W, 3] RGB; joint states as (positions [J], closed fractions of the grippers: a
    number, with several grippers [G], with none None); end-effector poses as :class:`~cosmos3_ros.conversions.Pose`.
    """

    def __init__(
        self,
        contract: Contract,
        timeline: Timeline = Timeline.HEADER,
        *,
        needs_joints: bool = False,
        image_depth: int = IMAGE_DEPTH,
    ) -> None:
        """Make empty buffers for `contract`, all on one `timeline`.

        Args:
            contract: What the policy reads.
            timeline: Which time of a message counts.
            needs_joints: Whether joint states must be there even if the policy itself does not read them.
            image_depth: Pictures of each view that are kept.
        """
        self.views = {
            name: _buffer(name, terms, image_depth, timeline) for name, terms in contract.views.streams.items()
        }
        self._poses = pose_streams(contract)
        state = {JOINT_STATES: contract.state.joint_states, **self._poses}
        self.states = {
            name: _buffer(name, terms, STATE_DEPTH, timeline) for name, terms in state.items() if terms is not None
        }
        self._rejected: dict[str, str] = {}
        # An end-effector policy reads joint states for the gripper alone, and that only as part of a state row.
        reads_gripper = contract.embodiment.clean_rows > 0 and bool(contract.robot.grippers)
        joint_rows = contract.embodiment.action_space == 'joint_position'
        self._needs_joints = needs_joints or joint_rows or reads_gripper

    @property
    def buffers(self) -> tuple[StreamBuffer[Any], ...]:
        """All buffers that an observation needs."""
        states = [buffer for name, buffer in self.states.items() if name != JOINT_STATES or self._needs_joints]
        return (*self.views.values(), *states)

    @property
    def rejected(self) -> Mapping[str, str]:
        """Streams whose latest message could not be used, and why."""
        return dict(self._rejected)

    def push(self, name: str, stamp_ns: int, receive_ns: int, value: Any) -> None:
        """Add a value to the stream `name`; see :meth:`StreamBuffer.push` for the times."""
        self._rejected.pop(name, None)
        buffer = self.views.get(name) or self.states[name]
        buffer.push(stamp_ns, receive_ns, value)

    def reject(self, name: str, error: ObservationError) -> bool:
        """Note that the latest message of a stream counts as not received; return whether the reason is a new one."""
        why = '; '.join(str(problem) for problem in error.problems)
        before, self._rejected[name] = self._rejected.get(name), why
        return why != before

    def explain(self, missing: Missing) -> str:
        """What a stream lacks, for people, such as 'wrist (stale, 0.41 s > 0.25 s)'."""
        return missing.explained(self._rejected.get(missing.stream, ''))

    def clear(self) -> None:
        """Forget everything, as on activation and after a jump of the clock."""
        self._rejected.clear()
        for buffer in (*self.views.values(), *self.states.values()):
            buffer.clear()

    def observe(self, now_ns: int, instruction: str) -> tuple[Observation, Snapshot] | tuple[Missing, ...]:
        """The newest complete observation, or what it lacks.

        Args:
            now_ns: The present.
            instruction: Becomes part of the observation.
        """
        buffers = self.buffers
        return self._observed(sample_all(buffers, reference_stamp(buffers, now_ns), now_ns), now_ns, instruction)

    def observed_at(self, stamp_ns: int, instruction: str) -> tuple[Observation, Snapshot] | tuple[Missing, ...]:
        """What was known at a moment that is past, or what is missing; see :meth:`observe`."""
        return self._observed(sample_all(self.buffers, stamp_ns), None, instruction)

    def _observed(
        self, snapshot: Snapshot, now_ns: int | None, instruction: str
    ) -> tuple[Observation, Snapshot] | tuple[Missing, ...]:
        if not snapshot.complete:
            return snapshot.missing
        values = {name: sample.value for name, sample in snapshot.samples.items()}
        joints, gripper = self._joint_state(values, snapshot.reference_ns, now_ns)
        poses = [values[name] for name in self._poses]
        observation = Observation(
            images={name: values[name] for name in self.views},
            instruction=instruction,
            joint_positions=joints,
            gripper_position=gripper,
            end_effector_position=_of_arms([pose.position for pose in poses]),
            end_effector_quaternion=_of_arms([pose.quaternion for pose in poses]),
        )
        return observation, snapshot

    def _joint_state(self, values: dict[str, Any], reference_ns: int, now_ns: int | None) -> tuple[Any, Any]:
        if JOINT_STATES in values:
            return values[JOINT_STATES]
        if JOINT_STATES in self.states:
            sample = self.states[JOINT_STATES].as_of(reference_ns, now_ns)
            if not isinstance(sample, Missing):
                return sample.value
        return None, None


def _of_arms(values: list[NDArray[np.float64]]) -> NDArray[np.float64] | None:
    """What is measured of one arm as it is, of several stacked; None if nothing is."""
    return np.stack(values) if len(values) > 1 else (values[0] if values else None)


def _buffer(name: str, terms: StreamTerms, depth: int, timeline: Timeline) -> StreamBuffer[Any]:
    return StreamBuffer(name, int(terms.max_age_s * 1e9), depth, timeline=timeline)
