"""RoboArena: every request says whether it is to infer or to reset, cameras are counted from 0, answers hold `actions`.

The server says first what it wants to be sent. Only arms with seven joints and a gripper have a place in this dialect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.observation.views import letterbox, view_size
from engine.serving import wire
from engine.serving.base import (
    ENDPOINT,
    PROMPT,
    SEED,
    SESSION,
    Dialect,
    Fields,
    Frame,
    Reply,
    Request,
    read_map,
    read_state,
    rows_needed,
    write_state,
)
from engine.serving.cameras import EXTERIORS, counted_from, exterior_key, read_views, view_keys

if TYPE_CHECKING:
    from engine.contract import Contract
    from engine.policy_observation import Observation

ENDPOINTS = ('infer', 'reset')


def speaks_of(contract: Contract) -> bool:
    """Whether this dialect has names for what the contract needs."""
    robot, views = contract.robot, contract.views.composition
    arm = len(robot.arms) == 1 and len(robot.joints) == 7 and len(robot.grippers) == 1
    return arm and contract.embodiment.action_space == 'joint_position' and views != 'front_over_two_sides'


def configuration(contract: Contract) -> dict[str, Any]:
    """What a client should send: the fields of RoboArena's `PolicyServerConfig`, and no others."""
    views = contract.views
    return {
        'image_resolution': list(view_size(views.composition, views.size)),
        'needs_wrist_camera': 'wrist' in views.streams,
        'n_external_cameras': sum(view in views.streams for view in ('main', *EXTERIORS)),
        'needs_stereo_camera': False,
        'needs_session_id': rows_needed(contract) > 1,
        'action_space': 'joint_position',
    }


def camera_keys(contract: Contract, base: int) -> dict[str, str]:
    """Key of each view; the only view of a contract is an exterior one."""
    keys = view_keys(contract, base)
    return {view: exterior_key(base) if view == 'main' else key for view, key in keys.items()}


class RoboArena(Dialect):
    """See the module."""

    name = 'roboarena'

    def metadata(self, contract: Contract) -> dict[str, Any]:
        """What the client should send; nothing if the dialect has no words for the contract."""
        return configuration(contract) if speaks_of(contract) else {}

    def read(self, message: Mapping[str, Any], contract: Contract) -> Request:
        """Endpoint, views, measured state and prompt."""
        fields = Fields(message)
        endpoint = message.get(ENDPOINT)
        if endpoint == 'reset':
            request = Request('reset', session=fields.session())
        else:
            if endpoint != 'infer':
                value = '' if endpoint is None else repr(endpoint)[:40]
                fields.problem(ENDPOINT, 'is not known' if value else 'is missing', value, ', '.join(ENDPOINTS))
            request = self._read(fields, contract)
        fields.finish(self.name, contract)
        return request

    @staticmethod
    def _read(fields: Fields, contract: Contract) -> Request:
        if not speaks_of(contract):
            what = f'is no robot of this dialect: {contract.embodiment.action_space} of {len(contract.robot.arms)} arms'
            fields.problem(f'contract {contract.name}', what, allowed='an arm with seven joints and a gripper')
        images = read_views(fields, camera_keys(contract, counted_from(fields, contract, 0)))
        state = read_state(fields, contract)
        return Request('infer', images, fields.prompt(), state, fields.seed(), fields.session())

    def reply(self, reply: Reply) -> Frame:
        """`actions`, and nothing else."""
        return Frame(wire.pack({'actions': reply.actions}))

    def request(self, observation: Observation, contract: Contract, seed: int, session: str) -> dict[str, Any]:
        """Views of the size that fits the composite."""
        size = view_size(contract.views.composition, contract.views.size)
        keys = camera_keys(contract, 0)
        images = {key: letterbox(observation.images[view], size) for view, key in keys.items()}
        state = write_state(observation, contract)
        extras = {PROMPT: observation.instruction, SESSION: session, SEED: seed, ENDPOINT: 'infer'}
        return {**images, **state, **extras}

    def reset_request(self, session: str) -> dict[str, Any]:
        """`reset`."""
        return {ENDPOINT: 'reset', SESSION: session}

    def actions(self, frame: bytes | str) -> Any:
        """The field `actions`."""
        return read_map(frame, ('actions',))
