"""What all dialects of policy servers have in common: what a request asks for, what comes back, how fields are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from engine.errors import InvalidInput, Problem, ServerError, ServerUnavailable
from engine.observation.geometry import Pixels
from engine.serving import wire

if TYPE_CHECKING:
    from engine.contract import Contract
    from engine.policy_observation import Observation

IMAGE: Final = 'observation/image'
PROMPT: Final = 'prompt'
SEED: Final = 'seed'
SESSION: Final = 'session_id'
ENDPOINT: Final = 'endpoint'
STATE_KEYS: Final[Mapping[str, str]] = {
    'joint_positions': 'observation/joint_position',
    'gripper_position': 'observation/gripper_position',
    'end_effector_position': 'observation/eef_pos',
    'end_effector_quaternion': 'observation/eef_quat',
}
"""Key of each measured field of :class:`engine.policy.Observation`, in every dialect."""

LONGEST_PROMPT: Final = 8192
LONGEST_SESSION: Final = 256
MOST_ROWS: Final = 512
LARGEST_NUMBER: Final = 1e4
"""Of joints (rad), positions (m) and the like; what is beyond is a unit that nobody meant."""
SIDES: Final = (16, 4096)
"""Rows and columns of a picture."""
_NUMBERS: Final = 'iuf'


class Fault(StrEnum):
    """Why a request is not answered with actions."""

    INVALID = 'invalid'
    BUSY = 'busy'
    RATE = 'rate'
    STOPPING = 'stopping'
    INTERNAL = 'internal'


_LATER: Final = (f'{Fault.BUSY}:', f'{Fault.STOPPING}:')
"""How a text begins after which a client may ask again, here or at the server that takes its place."""


@dataclass(frozen=True)
class Refusal:
    """What a client is told in place of actions.

    Attributes:
        fault: Why.
        text: For people; may have several lines.
        problems: One line for each fault of an invalid request.
        trace: A traceback, where the server was told to give it away.
    """

    fault: Fault
    text: str
    problems: tuple[str, ...] = ()
    trace: str = ''


class RequestError(InvalidInput):
    """A request that is no request of its dialect, or does not fit the contract; lists every fault."""


class BusyError(ServerUnavailable):
    """A server has no room for a request now, or is being stopped; it, or the next one, may have in a moment."""


@dataclass(frozen=True)
class Request:
    """What a client asks for, in the terms of the contract.

    Attributes:
        kind: For actions, or to forget what was before.
        images: Views of the contract, uint8 [H, W, 3]; empty if `kind` is not `infer`.
        instruction: What to do.
        state: Measured fields of :class:`engine.policy.Observation` that the contract needs, each with a first
            dimension of time, newest last. Gripper: 0 = open, 1 = closed; every dialect has it that way.
        seed: Of the noise; None: the server's next.
        session: Whose request it is; None: the connection's.
    """

    kind: Literal['infer', 'reset']
    images: Mapping[str, Pixels] = field(default_factory=dict)
    instruction: str = ''
    state: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    seed: int | None = None
    session: str | None = None


@dataclass(frozen=True)
class Reply:
    """What comes back.

    Attributes:
        actions: float32 [rows, D], as :attr:`engine.policy.PolicyChunk.actions`.
        infer_ms: Time of the inference.
        previous_ms: Time from the arrival of the connection's previous request to its answer; None for the first.
        video: The imagined video, uint8 [F, H, W, 3], where the server decodes it.
    """

    actions: NDArray[np.float32]
    infer_ms: float
    previous_ms: float | None = None
    video: NDArray[np.uint8] | None = None

    def timing(self) -> dict[str, float]:
        """As openpi's server tells it."""
        previous = {} if self.previous_ms is None else {'prev_total_ms': self.previous_ms}
        return {'infer_ms': self.infer_ms, **previous}


@dataclass(frozen=True)
class Frame:
    """One message to a client, text or binary, and whether the connection ends after it."""

    data: bytes | str
    closes: bool = False


class Dialect(ABC):
    """How one kind of client speaks with a policy server, from either side. Objects have no state.

    Attributes:
        name: What it is called on the command line and in metrics.
        size: Bytes of the largest request.
    """

    name: ClassVar[str]
    size: ClassVar[int] = 32 * 2**20

    @abstractmethod
    def metadata(self, contract: Contract) -> dict[str, Any]:
        """What the server says first on every connection."""

    @abstractmethod
    def read(self, message: Mapping[str, Any], contract: Contract) -> Request:
        """What a client's message asks for.

        Raises:
            RequestError: It is not what the dialect and the contract ask for; lists every fault.
        """

    @abstractmethod
    def reply(self, reply: Reply) -> Frame:
        """Actions for the client."""

    def reset_reply(self) -> Frame:
        """The answer to a reset."""
        return Frame('reset successful')

    def refusal(self, refusal: Refusal) -> Frame:
        """In place of actions: a text, as openpi's server sends it; after a fault it ends the connection."""
        text = f'{refusal.text}\n{refusal.trace}' if refusal.trace else refusal.text
        return Frame(text, closes=refusal.fault in (Fault.INVALID, Fault.INTERNAL))

    # The client's side

    @abstractmethod
    def request(self, observation: Observation, contract: Contract, seed: int, session: str) -> dict[str, Any]:
        """The message that asks for a chunk."""

    def reset_request(self, session: str) -> dict[str, Any] | None:
        """The message that asks to forget what was before; None if there is none, and a new connection does it."""
        return None

    def check_reset(self, frame: bytes | str) -> None:
        """Do nothing if this answer to a reset says that it was done: a text that says so, or a map that is no fault.

        Raises:
            BusyError: The server has no room now.
            ServerError: It refused, or the answer cannot be read.
        """
        if isinstance(frame, str):
            if frame.lstrip().lower().startswith('reset'):
                return
            raise _refused(frame)
        answer = read_answer(frame)
        if isinstance(answer, dict) and answer.get('type') == 'error':
            raise ServerError(f'the server refused to reset: {str(answer.get("message"))[:500]}')

    @abstractmethod
    def actions(self, frame: bytes | str) -> Any:
        """What an answer holds in the place of actions; not yet checked.

        Raises:
            BusyError: The server has no room now.
            ServerError: It refused, or the answer is none.
        """


class Fields:
    """Takes the fields of a request one by one, and keeps a list of what is wrong with them."""

    def __init__(self, message: Mapping[str, Any]) -> None:
        """Read this message."""
        self.message = message
        self.problems: list[Problem] = []

    def __contains__(self, key: str) -> bool:
        return key in self.message

    def problem(self, where: str, what: str, value: str = '', allowed: str = '', remedy: str = '') -> None:
        """Note a fault."""
        self.problems.append(Problem(where, what, value, allowed, remedy))

    def finish(self, dialect: str, contract: Contract) -> None:
        """Do nothing if all fields were in order.

        Raises:
            RequestError: They were not.
        """
        if self.problems:
            raise RequestError(f'{dialect} request for contract {contract.name}', self.problems)

    def prompt(self) -> str:
        """The instruction, which has to be there."""
        text = self.message.get(PROMPT)
        if text is None:
            self.problem(PROMPT, 'is missing', allowed='a sentence that says what to do')
        elif not isinstance(text, str):
            self.problem(PROMPT, 'must be text', type(text).__name__)
        elif not text.strip():
            self.problem(PROMPT, 'is empty', repr(text[:20]), 'a sentence that says what to do')
        elif len(text) > LONGEST_PROMPT:
            self.problem(PROMPT, 'is too long', f'{len(text)} characters', f'at most {LONGEST_PROMPT}')
        else:
            return str(text)
        return ''

    def seed(self) -> int | None:
        """The seed, if the client gives one."""
        value = self.message.get(SEED)
        if value is None:
            return None
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or not 0 <= value < 2**32:
            self.problem(SEED, 'is no seed', repr(value)[:40], '0 to 4294967295, or nothing')
            return None
        return int(value)

    def session(self) -> str | None:
        """Whose request it is, if the client says so."""
        value = self.message.get(SESSION)
        if value is None:
            return None
        if not isinstance(value, str) or not 0 < len(value) <= LONGEST_SESSION:
            what = f'{len(value)} characters' if isinstance(value, str) else type(value).__name__
            self.problem(SESSION, 'is no name of a session', what, f'text of 1 to {LONGEST_SESSION} characters')
            return None
        return str(value)

    def picture(self, key: str, remedy: str = '') -> Pixels | None:
        """RGB, uint8 [H, W, 3]; other numbers are clipped and cut off to levels, as cosmos-framework's server does."""
        value = self.message.get(key)
        if value is None:
            self.problem(key, 'is missing', allowed='uint8 [height, width, 3]', remedy=remedy)
            return None
        kind = f'{value.dtype} {list(value.shape)}' if isinstance(value, np.ndarray) else type(value).__name__
        picture = value if isinstance(value, np.ndarray) and value.dtype.kind in _NUMBERS else None
        if picture is None or picture.ndim != 3 or picture.shape[-1] != 3:
            self.problem(key, 'is no RGB picture', kind, 'uint8 [height, width, 3]')
            return None
        if min(picture.shape[:2]) < SIDES[0] or max(picture.shape[:2]) > SIDES[1]:
            self.problem(key, 'has a size that cannot be meant', kind, f'{SIDES[0]} to {SIDES[1]} pixels a side')
            return None
        return picture if picture.dtype == np.uint8 else self._levels(key, picture)

    def _levels(self, key: str, picture: NDArray[Any]) -> Pixels | None:
        if not np.isfinite(picture).all():
            self.problem(key, 'is not finite', str(picture.dtype))
            return None
        if picture.dtype.kind == 'f' and 0 < picture.max() <= 1:
            self.problem(key, 'has levels from 0 to 1', str(picture.dtype), '0 to 255', 'send it as uint8')
            return None
        return np.clip(picture, 0, 255).astype(np.uint8)

    def rows(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
        """Numbers of one moment, or of several, newest last: float64 [T, *shape]. Plain numbers may come as [T, 1]."""
        value = self.message.get(key)
        allowed = (
            f'{list(shape)} or [T{"".join(f", {size}" for size in shape)}]' if shape else 'a number, [T] or [T, 1]'
        )
        if value is None:
            self.problem(key, 'is missing', allowed=allowed)
            return None
        found = np.asarray(value) if _is_numeric(value) else np.empty(0, object)
        if found.dtype.kind not in _NUMBERS:
            self.problem(key, 'is not numeric', _kind(value))
            return None
        if not shape and found.ndim == 2 and found.shape[1] == 1:
            found = found[:, 0]
        rows = found[None] if found.shape == shape else found
        if rows.shape[1:] != shape or not 1 <= rows.shape[0] <= MOST_ROWS or rows.ndim != len(shape) + 1:
            self.problem(key, 'has the wrong shape', str(list(found.shape)), allowed)
            return None
        return self._sound(key, rows.astype(np.float64))

    def _sound(self, key: str, rows: NDArray[np.float64]) -> NDArray[np.float64] | None:
        bad = ~(np.abs(rows) <= LARGEST_NUMBER)  # what is no number fails as well
        if not bad.any():
            return rows
        where = ', '.join(str(tuple(int(i) for i in index)) for index in np.argwhere(bad)[:8])
        values = ', '.join(f'{value:g}' for value in rows[bad][:8])
        self.problem(key, f'is out of range at {where}', values, f'finite, at most {LARGEST_NUMBER:g}')
        return None


def _kind(value: Any) -> str:
    return f'array of {value.dtype}' if isinstance(value, np.ndarray | np.generic) else type(value).__name__


def _is_numeric(value: Any) -> bool:
    """Whether NumPy may be asked to make an array of it: an array, a number, or a list of numbers or of such lists."""
    if isinstance(value, list):
        return _is_even(value) and all(_is_numeric(entry) for entry in value)
    return isinstance(value, np.ndarray | np.number | int | float) and not isinstance(value, bool)


def _is_even(rows: list[Any]) -> bool:
    lengths = {len(row) if isinstance(row, list) else -1 for row in rows}
    return len(lengths) == 1 and all(not isinstance(row, np.ndarray) for row in rows)


def state_shapes(contract: Contract) -> dict[str, tuple[int, ...]]:
    """Measured fields that a contract's policy needs, with the shape of one moment."""
    terms, robot = contract.embodiment, contract.robot
    arms, grippers = len(robot.arms), len(robot.grippers)
    shapes: dict[str, tuple[int, ...]] = {}
    if terms.action_space == 'joint_position' and terms.clean_rows:
        shapes['joint_positions'] = (len(robot.joints),)
    if terms.clean_rows and grippers:
        shapes['gripper_position'] = () if grippers == 1 else (grippers,)
    if terms.action_space == 'ee_delta':
        shapes['end_effector_position'] = (3,) if arms == 1 else (arms, 3)
        shapes['end_effector_quaternion'] = (4,) if arms == 1 else (arms, 4)
    return shapes


def rows_needed(contract: Contract) -> int:
    """Moments of the state that a contract's policy looks at: history, and now."""
    return max(1, contract.embodiment.clean_rows)


def read_state(fields: Fields, contract: Contract) -> dict[str, NDArray[np.float64]]:
    """The measured fields that the contract needs, [T, ...]; only the last row if it needs no history."""
    found = {name: fields.rows(STATE_KEYS[name], shape) for name, shape in state_shapes(contract).items()}
    state = {name: rows for name, rows in found.items() if rows is not None}
    turned = state.get('end_effector_quaternion')
    if turned is not None and (np.linalg.norm(turned, axis=-1) < 1e-6).any():
        fields.problem(STATE_KEYS['end_effector_quaternion'], 'has no length', '', 'x, y, z, w that are not all zero')
    needed = rows_needed(contract)
    if needed == 1:
        return {name: rows[-1:] for name, rows in state.items()}
    lengths = {STATE_KEYS[name]: len(rows) for name, rows in state.items()}
    if any(length not in (1, *range(needed, MOST_ROWS + 1)) for length in lengths.values()) or (
        len(set(lengths.values())) > 1
    ):
        told = ', '.join(f'{length} of {key}' for key, length in lengths.items())
        fields.problem('observation', 'has histories that do not fit', told, f'1 of all, or {needed} and more of all')
    return state


def write_state(observation: Observation, contract: Contract) -> dict[str, NDArray[np.float64]]:
    """Fields of a request that hold the measured state that the contract needs."""
    return {STATE_KEYS[name]: np.asarray(getattr(observation, name), np.float64) for name in state_shapes(contract)}


def read_map(frame: bytes | str, keys: Iterable[str]) -> Any:
    """The first of these fields that an answer has; a text in place of an answer is a refusal, as in openpi.

    Raises:
        BusyError: The server has no room now.
        ServerError: It refused, or the answer is no map with such a field.
    """
    if isinstance(frame, str):
        raise _refused(frame)
    answer = read_answer(frame)
    for key in keys:
        if isinstance(answer, dict) and key in answer:
            return answer[key]
    found = ', '.join(map(str, answer)) if isinstance(answer, dict) else type(answer).__name__
    raise ServerError(f'the server answered without {" or ".join(keys)}; found: {found[:200]}')


def _refused(text: str) -> ServerError:
    return BusyError(text) if text.startswith(_LATER) else ServerError(f'the server refused:\n{text}')


def read_answer(frame: bytes) -> Any:
    """An answer of a server, whatever it holds.

    Raises:
        ServerError: It cannot be read.
    """
    try:
        return wire.unpack(frame, ANSWER_LIMITS)
    except wire.WireError as error:
        raise ServerError(f'the server sent what cannot be read: {error}') from error


ANSWER_LIMITS: Final = wire.Limits(size=256 * 2**20)
"""Of answers: they may hold an imagined video."""
