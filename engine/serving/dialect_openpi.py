"""openpi: a flat map of fields, answered by a map with `actions`.

A picture is sent for each view; those of another shape than their place in the composite are letter-boxed, as openpi's
own transforms do. There is no reset: whoever connects anew starts anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.serving import wire
from engine.serving.base import PROMPT, SEED, Dialect, Fields, Frame, Reply, Request, read_map, read_state, write_state
from engine.serving.cameras import read_views, view_keys

if TYPE_CHECKING:
    from engine.contract import Contract
    from engine.policy_observation import Observation


class OpenPi(Dialect):
    """See the module."""

    name = 'openpi'

    def metadata(self, contract: Contract) -> dict[str, Any]:
        """What the policy is for; openpi leaves it to the server what to say here."""
        timing, terms = contract.timing, contract.embodiment
        return {
            'contract': contract.name,
            'action_space': terms.action_space,
            'action_horizon': timing.chunk_rows,
            'control_hz': timing.fps,
        }

    def read(self, message: Mapping[str, Any], contract: Contract) -> Request:
        """Views, measured state and prompt."""
        fields = Fields(message)
        images = read_views(fields, view_keys(contract))
        state = read_state(fields, contract)
        request = Request('infer', images, fields.prompt(), state, fields.seed(), fields.session())
        fields.finish(self.name, contract)
        return request

    def reply(self, reply: Reply) -> Frame:
        """`actions` and `server_timing`."""
        return Frame(wire.pack({'actions': reply.actions, 'server_timing': reply.timing()}))

    def request(self, observation: Observation, contract: Contract, seed: int, session: str) -> dict[str, Any]:
        """Views as they are; openpi's servers scale them."""
        images = {key: observation.images[view] for view, key in view_keys(contract).items()}
        return {**images, **write_state(observation, contract), PROMPT: observation.instruction, SEED: seed}

    def actions(self, frame: bytes | str) -> Any:
        """The field `actions`, or `action`."""
        return read_map(frame, ('actions', 'action'))
