"""Reads bags of runs, and feeds what is in them to the inputs of a policy as the graph did.

The same functions read messages, the same buffers hold them, and the same rule takes one value of each as of one
moment: what a policy saw live is what the bag gives, to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader, ReaderError

from cosmos3_ros.conversions import image_to_rgb, message_to_pose, stamp_to_ns
from cosmos3_ros.inputs import JOINT_STATES, Inputs, pose_streams
from cosmos3_ros.recorder_bag import deserialised, types_in
from cosmos3_ros.recorder_recovery import is_complete
from cosmos3_ros.recorder_topics import RECORDING, recorded_topics
from cosmos3_ros.streams import Missing, Snapshot, Timeline
from engine.contract import Contract, load_contract, parse_contract
from engine.errors import InvalidInput, ObservationError, Problem
from engine.policy_observation import Observation

DEEP = 64
"""Pictures of each view that are kept while a bag is read; more than live, where only the newest count."""


@dataclass(frozen=True)
class About:
    """What a bag says of itself in its first message.

    Attributes:
        contract: Text of the contract; empty if the bag is not one of ours.
        topics: Full name of the topic of each role.
        more: What else it says.
    """

    contract: str = ''
    topics: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BagMessage:
    """One message of a bag; `role` as in :mod:`cosmos3_ros.recorder_topics`, `time_ns` when it arrived."""

    role: str
    topic: str
    time_ns: int
    message: Any


class RunBag:
    """The bag of a run, open for reading.

    Attributes:
        path: Its folder.
        contract: The contract it was recorded under, or the one that was asked for.
        contract_text: As it was written.
        about: What it says of itself.
        topics: Role by topic; only topics that are in the bag.
    """

    def __init__(self, path: Path, contract: str = '', namespace: str = '') -> None:
        """Open a bag.

        Args:
            path: Its folder.
            contract: Name or path of a contract to read it by; empty: the one in the bag.
            namespace: That of the topics, where the bag is not one of ours.

        Raises:
            InvalidInput: There is no such bag, it is incomplete, it cannot be read, or nobody says by which contract.
        """
        self.path = path
        self._reader = _opened(path)
        try:
            self._store = types_in(self._reader.connections)
            self.about = self._about()
            self.contract, self.contract_text = _contract(path, contract, self.about)
            told = {f'/{RECORDING}'} | {one.topic for one in self._reader.connections}
            by_role = self.about.topics if self.about.topics and not namespace else _by_name(self.contract, namespace)
            self.topics = {topic: role for role, topic in by_role.items() if topic in told}
        except BaseException:
            self._reader.close()
            raise

    @property
    def start_ns(self) -> int:
        """When the first message arrived."""
        return int(self._reader.start_time)

    @property
    def end_ns(self) -> int:
        """When the last one did."""
        return int(self._reader.end_time)

    def messages(self, *roles: str) -> Iterator[BagMessage]:
        """Messages in order of arrival.

        Args:
            roles: Only those of these roles; none: all.
        """
        wanted = [one for one in self._reader.connections if self._wanted(one, roles)]
        for connection, time_ns, data in self._reader.messages(wanted) if wanted else ():
            message = deserialised(self._store, data, connection.msgtype)
            yield BagMessage(self.topics[connection.topic], connection.topic, int(time_ns), message)

    def _wanted(self, connection: Connection, roles: tuple[str, ...]) -> bool:
        role = self.topics.get(connection.topic)
        return role is not None and (not roles or role in roles)

    def close(self) -> None:
        """Close it."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _about(self) -> About:
        for one in self._reader.connections:
            if not one.topic.endswith(RECORDING):
                continue
            for _, _, data in self._reader.messages([one]):
                text = deserialised(self._store, data, one.msgtype)
                with suppress(ValueError, KeyError):
                    told = json.loads(text.data)
                    return About(str(told.pop('contract')), dict(told.pop('topics', {})), told)
        return About()


def _opened(path: Path) -> Reader:
    if path.is_dir() and not is_complete(path) and any(path.glob('*.mcap')):
        what, remedy = 'is incomplete: its recorder runs, or was killed', f'cosmos3 dataset recover {path}'
        raise InvalidInput(f'bag {path}', [Problem(str(path), what, '', '', remedy)])
    try:
        reader = Reader(path)
        reader.open()
    except (ReaderError, FileNotFoundError) as error:
        allowed = 'the folder of a bag: metadata.yaml and .mcap or .db3'
        raise InvalidInput(f'bag {path}', [Problem(str(path), 'cannot be opened', str(error), allowed)]) from error
    return reader


def _contract(path: Path, wanted: str, about: About) -> tuple[Contract, str]:
    if wanted:
        contract = load_contract(wanted)
        return contract, Path(contract.source).read_text(encoding='utf-8')
    if not about.contract:
        remedy = 'say by which one to read it: --contract'
        raise InvalidInput(f'bag {path}', [Problem(str(path), 'holds no contract', '', '', remedy)])
    return parse_contract(yaml.safe_load(about.contract), f'{path}'), about.contract


def _by_name(contract: Contract, namespace: str) -> dict[str, str]:
    """Topic of each role where the bag says nothing: the contract's names in a namespace."""
    prefix = f'/{namespace.strip("/")}/' if namespace.strip('/') else '/'
    return {one.role: f'{prefix}{one.name}' for one in recorded_topics(contract)}


class BagInputs:
    """Inputs of a policy that are fed from a bag instead of the graph."""

    def __init__(self, bag: RunBag, *, needs_joints: bool = False, timeline: Timeline = Timeline.HEADER) -> None:
        """Prepare; arguments as for :class:`~cosmos3_ros.inputs.Inputs`."""
        contract = bag.contract
        self.inputs = Inputs(contract, timeline, needs_joints=needs_joints, image_depth=DEEP)
        self.rejected: dict[str, str] = {}
        self._readers = _readers(contract, needs_joints)

    def feed(self, one: BagMessage) -> None:
        """Take a message as a policy node does; what does not fit counts as not received."""
        reader = self._readers.get(one.role)
        if reader is None:
            return
        name, read = reader
        try:
            value = read(one.message, one.topic)
        except ObservationError as error:
            self.inputs.reject(name, error)
            self.rejected[name] = str(error)
            return
        self.inputs.push(name, stamp_to_ns(one.message.header.stamp), one.time_ns, value)

    def knows(self, time_ns: int, now_ns: int) -> bool:
        """Whether nothing of the time before `time_ns` is outstanding, if it is `now_ns`."""
        stamps = ((buffer.newest_stamp_ns(), buffer.max_age_ns) for buffer in self.inputs.buffers)
        return all((newest or 0) >= time_ns or now_ns > time_ns + oldest for newest, oldest in stamps)


def _readers(contract: Contract, needs_joints: bool) -> dict[str, tuple[str, Callable[[Any, str], Any]]]:
    """Stream and reading function of each role."""
    from cosmos3_ros.policy_node import joint_state_reader

    found: dict[str, tuple[str, Callable[[Any, str], Any]]] = {
        f'view.{name}': (name, image_to_rgb) for name in contract.views.streams
    }
    found |= {name: (name, message_to_pose) for name in pose_streams(contract)}
    if contract.state.joint_states is not None:
        read = joint_state_reader(contract, contract.state.joint_states.topic, needs_joints)
        found[JOINT_STATES] = (JOINT_STATES, lambda message, _topic: read(message))
    return found


Moment = tuple[int, tuple[Observation, Snapshot] | tuple[Missing, ...]]


def observations(
    bag: RunBag,
    moments: Iterator[int] | list[int],
    instruction: str = '',
    *,
    needs_joints: bool = False,
    timeline: Timeline = Timeline.HEADER,
    on_message: Callable[[BagMessage], None] | None = None,
) -> Iterator[Moment]:
    """What a policy would have seen at each of several moments.

    A moment is taken when every stream is known up to it, or has been silent for so long that it makes no difference.
    Moments at the end that are never known are left out.

    Args:
        bag: Where from.
        moments: Times in ns, rising.
        instruction: Becomes part of every observation.
        needs_joints: As for :class:`~cosmos3_ros.inputs.Inputs`.
        timeline: Which time of a message counts.
        on_message: Shown every message on its way.
    """
    fed = BagInputs(bag, needs_joints=needs_joints, timeline=timeline)
    waiting = iter(moments)
    due = next(waiting, None)
    for one in bag.messages():
        if on_message is not None:
            on_message(one)
        # What has just arrived may be of a later moment: those that are known already come first.
        while due is not None and fed.knows(due + 1, one.time_ns):
            yield due, fed.inputs.observed_at(due, instruction)
            due = next(waiting, None)
        fed.feed(one)
    while due is not None and fed.knows(due, bag.end_ns):
        yield due, fed.inputs.observed_at(due, instruction)
        due = next(waiting, None)
