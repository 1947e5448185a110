"""cosmos-framework's policy server, which RoboLab's client speaks to: it answers with `action`, and a video if wanted.

The client sends the composite itself, or the three views, which are scaled into their places whatever their shape.
Unknown fields are ignored. There is no reset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.observation.views import compose, in_shape
from engine.serving import wire
from engine.serving.base import (
    IMAGE,
    PROMPT,
    SEED,
    Dialect,
    Fields,
    Frame,
    Reply,
    Request,
    read_map,
    read_state,
    write_state,
)
from engine.serving.cameras import read_composite, read_views, squeeze, view_keys

if TYPE_CHECKING:
    from engine.contract import Contract
    from engine.policy_observation import Observation


class Framework(Dialect):
    """See the module."""

    name = 'cosmos-framework'

    def __init__(self, *, actions_too: bool = False) -> None:
        """With `actions_too`, answers carry the field of openpi as well, for clients that may be either."""
        self._actions_too = actions_too

    def metadata(self, contract: Contract) -> dict[str, Any]:
        """Nothing, as the reference server."""
        return {}

    def read(self, message: Mapping[str, Any], contract: Contract) -> Request:
        """Composite or views, measured state and prompt."""
        fields = Fields(message)
        if IMAGE in fields:
            images = read_composite(fields, contract)
        else:
            views = read_views(fields, view_keys(contract), f'or the composite of all views as {IMAGE}')
            images = squeeze(fields, views, contract)
        state = read_state(fields, contract)
        request = Request('infer', images, fields.prompt(), state, fields.seed(), fields.session())
        fields.finish(self.name, contract)
        return request

    def reply(self, reply: Reply) -> Frame:
        """`action`, `video` if there is one, and `server_timing`."""
        answer: dict[str, Any] = {'action': reply.actions}
        if self._actions_too:
            answer['actions'] = reply.actions
        if reply.video is not None:
            answer['video'] = reply.video
        return Frame(wire.pack({**answer, 'server_timing': reply.timing()}))

    def request(self, observation: Observation, contract: Contract, seed: int, session: str) -> dict[str, Any]:
        """The composite, as RoboLab's client makes it: the same pixels that a policy on this machine would look at."""
        views = contract.views
        shaped = in_shape(observation.images, views.composition, views.size)
        image = {IMAGE: compose(shaped, views.composition, views.size)}
        return {**image, **write_state(observation, contract), PROMPT: observation.instruction, SEED: seed}

    def actions(self, frame: bytes | str) -> Any:
        """The field `action`, or `actions`."""
        return read_map(frame, ('action', 'actions'))
