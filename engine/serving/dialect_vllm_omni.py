"""vLLM-Omni's endpoint for robots: the answer is the array itself, and faults are maps that leave the connection open.

Pictures are scaled as everywhere else here, cut off to whole levels; vLLM-Omni rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import ServerError
from engine.observation.views import compose, in_shape
from engine.serving import wire
from engine.serving.base import (
    ENDPOINT,
    IMAGE,
    PROMPT,
    SEED,
    SESSION,
    BusyError,
    Dialect,
    Fault,
    Fields,
    Frame,
    Refusal,
    Reply,
    Request,
    read_answer,
    read_state,
    write_state,
)
from engine.serving.cameras import counted_from, read_composite, read_views, squeeze, view_keys
from engine.serving.dialect_roboarena import configuration, speaks_of

if TYPE_CHECKING:
    from engine.contract import Contract
    from engine.policy_observation import Observation

PATH = '/v1/realtime/robot/openpi'
MESSAGES = {Fault.INVALID: 'Invalid request payload', Fault.INTERNAL: 'Internal inference error'}
BUSY_MESSAGE = 'Server busy'
_LATER = (str(Fault.BUSY), str(Fault.STOPPING))


class VllmOmni(Dialect):
    """See the module."""

    name = 'vllm-omni'
    size = 64 * 2**20

    def metadata(self, contract: Contract) -> dict[str, Any]:
        """As RoboArena's, with sessions. `image_resolution` is one camera's, of which the composite is made exactly."""
        found = configuration(contract) | {'needs_session_id': True}
        if not speaks_of(contract):
            del found['action_space']
        return found

    def read(self, message: Mapping[str, Any], contract: Contract) -> Request:
        """Views or composite, measured state and prompt; cameras counted from 1, or from 0."""
        fields = Fields(message)
        if message.get(ENDPOINT) == 'reset':
            request = Request('reset', session=fields.session())
        else:
            _check_steps(fields, contract)
            keys = view_keys(contract, counted_from(fields, contract, 1))
            composed = IMAGE in fields
            images = (
                read_composite(fields, contract) if composed else squeeze(fields, read_views(fields, keys), contract)
            )
            state = read_state(fields, contract)
            request = Request('infer', images, fields.prompt(), state, fields.seed(), fields.session())
        fields.finish(self.name, contract)
        return request

    def reply(self, reply: Reply) -> Frame:
        """The array."""
        return Frame(wire.pack(reply.actions))

    def reset_reply(self) -> Frame:
        """A map with a status."""
        return Frame(wire.pack({'status': 'reset successful'}))

    def refusal(self, refusal: Refusal) -> Frame:
        """A map of type `error`; what vLLM-Omni says in `message`, and beside it what was wrong."""
        answer: dict[str, Any] = {'type': 'error', 'message': MESSAGES.get(refusal.fault, BUSY_MESSAGE)}
        if refusal.fault not in MESSAGES:
            answer['code'] = str(refusal.fault)
        answer['problems'] = list(refusal.problems) or [refusal.text]
        if refusal.trace:
            answer['traceback'] = refusal.trace
        return Frame(wire.pack(answer))

    def request(self, observation: Observation, contract: Contract, seed: int, session: str) -> dict[str, Any]:
        """The composite."""
        views = contract.views
        shaped = in_shape(observation.images, views.composition, views.size)
        image = {IMAGE: compose(shaped, views.composition, views.size)}
        extras = {PROMPT: observation.instruction, SESSION: session, SEED: seed, ENDPOINT: 'infer'}
        return {**image, **write_state(observation, contract), **extras}

    def reset_request(self, session: str) -> dict[str, Any]:
        """`reset`."""
        return {ENDPOINT: 'reset', SESSION: session}

    def actions(self, frame: bytes | str) -> Any:
        """The array itself, or the field `actions` of models that answer with a map."""
        answer = {'message': frame} if isinstance(frame, str) else read_answer(frame)
        if isinstance(answer, dict) and 'actions' in answer:
            return answer['actions']
        if isinstance(answer, np.ndarray):
            return answer
        if not isinstance(answer, dict) or 'message' not in answer:
            raise ServerError(f'the server answered without actions: {type(answer).__name__}')
        raise self._refused(answer)

    def check_reset(self, frame: bytes | str) -> None:
        """A map that is none of type `error`."""
        answer = {'message': frame, 'type': 'error'} if isinstance(frame, str) else read_answer(frame)
        if not isinstance(answer, dict):
            raise ServerError(f'the server answered a reset with {type(answer).__name__}')
        if answer.get('type') == 'error':
            raise self._refused(answer)

    @staticmethod
    def _refused(answer: Mapping[str, Any]) -> ServerError:
        problems = ''.join(f'\n  - {problem}' for problem in answer.get('problems') or ())
        text = f'the server refused: {answer.get("message")}{problems}'
        return BusyError(text) if answer.get('code') in _LATER else ServerError(text)


def _check_steps(fields: Fields, contract: Contract) -> None:
    """Steps of the sampler can be asked for; they are the contract's, or the request is refused."""
    where = 'sampling_params'
    terms = fields.message.get(where)
    if terms is None:
        return
    if not isinstance(terms, dict):
        fields.problem(where, 'must be a map', type(terms).__name__)
        return
    steps = terms.get('num_inference_steps')
    if steps is not None and steps != contract.sampler.steps:
        allowed = f'{contract.sampler.steps}, as the contract has it, or nothing'
        fields.problem(f'{where}.num_inference_steps', 'is not served', repr(steps)[:40], allowed)
