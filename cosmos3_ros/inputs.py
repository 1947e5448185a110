"""From streams to observations: one value of each input the contract names, all as of one moment."""

from __future__ import annotations

from typing import Any

from cosmos3_ros.streams import Missing, Snapshot, StreamBuffer, Timeline, reference_stamp, sample_all
from engine.contract import Contract, StreamTerms
from engine.policy import Observation

JOINT_STATES = 'joint_states'
END_EFFECTOR = 'end_effector'
IMAGE_DEPTH = 8
STATE_DEPTH = 256


class Inputs:
    """Buffers of everything a contract's policy reads.

    Values pushed: images as uint8 [H, W, 3] RGB; joint states as (positions [J], closed fraction of the gripper or
    None); end-effector poses as (position [3], quaternion xyzw [4]).
    """

    def __init__(self, contract: Contract, timeline: Timeline = Timeline.HEADER) -> None:
        """Make empty buffers for `contract`, all on one `timeline`."""
        self.views = {
            name: _buffer(name, terms, IMAGE_DEPTH, timeline) for name, terms in contract.views.streams.items()
        }
        state = ((JOINT_STATES, contract.state.joint_states), (END_EFFECTOR, contract.state.end_effector))
        self.states = {name: _buffer(name, terms, STATE_DEPTH, timeline) for name, terms in state if terms is not None}
        self._needs_end_effector = contract.embodiment.action_space == 'ee_delta'

    @property
    def buffers(self) -> tuple[StreamBuffer[Any], ...]:
        """All buffers that an observation needs."""
        states = [
            buffer
            for name, buffer in self.states.items()
            # an end-effector policy reads joint states for the gripper only, and can do without
            if not (name == JOINT_STATES and self._needs_end_effector)
        ]
        return (*self.views.values(), *states)

    def clear(self) -> None:
        """Forget everything, as on activation and after a jump of the clock."""
        for buffer in (*self.views.values(), *self.states.values()):
            buffer.clear()

    def observe(self, now_ns: int, instruction: str) -> tuple[Observation, Snapshot] | tuple[Missing, ...]:
        """The newest complete observation, or what it lacks.

        Args:
            now_ns: The present.
            instruction: Becomes part of the observation.
        """
        buffers = self.buffers
        snapshot = sample_all(buffers, reference_stamp(buffers, now_ns), now_ns)
        if not snapshot.complete:
            return snapshot.missing
        values = {name: sample.value for name, sample in snapshot.samples.items()}
        joints, gripper = self._joint_state(values, snapshot.reference_ns, now_ns)
        position, quaternion = values.get(END_EFFECTOR, (None, None))
        observation = Observation(
            images={name: values[name] for name in self.views},
            instruction=instruction,
            joint_positions=joints,
            gripper_position=gripper,
            end_effector_position=position,
            end_effector_quaternion=quaternion,
        )
        return observation, snapshot

    def _joint_state(self, values: dict[str, Any], reference_ns: int, now_ns: int) -> tuple[Any, Any]:
        if JOINT_STATES in values:
            return values[JOINT_STATES]
        if JOINT_STATES in self.states:
            sample = self.states[JOINT_STATES].as_of(reference_ns, now_ns)
            if not isinstance(sample, Missing):
                return sample.value
        return None, None


def _buffer(name: str, terms: StreamTerms, depth: int, timeline: Timeline) -> StreamBuffer[Any]:
    return StreamBuffer(name, int(terms.max_age_s * 1e9), depth, timeline=timeline)
