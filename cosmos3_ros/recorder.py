"""The `recorder` node: what policies see and do, what the guard says and commands, in a bag with the contract inside.

===================  =================================================  ==========================================
subscribes           topics of the contract's views and states          images, joint states, end-effector poses
                     `policy/chunk`, `policy/status`                    what the policy wants
                     `guard/status`, `guard/decision`                   what the guard says of it
                     `joint_trajectory`, `gripper/command`              what the robot is told
===================  =================================================  ==========================================

One bag for each activation. Messages are kept as they came over the wire; callbacks only queue them, a thread writes
them. If the disk cannot keep up, messages are dropped and counted: the recorder never holds anybody up.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.qos import QoSProfile

from cosmos3_ros import diagnostics, qos
from cosmos3_ros.node_base import CosmosLifecycleNode, configured
from cosmos3_ros.parameters import Parameter, ParameterSet, Required
from cosmos3_ros.recorder_bag import BagWriter
from cosmos3_ros.recorder_topics import RecordedTopic, recorded_topics
from engine.contract import Contract, load_contract
from engine.errors import InvalidInput, Problem

PARAMETERS = (
    Parameter('contract', Required(str), 'Contract whose run to record: a name in config/contracts, or a path.'),
    Parameter('directory', 'bags', 'Folder for bags; each activation makes one, named after the time in UTC.'),
    Parameter('compress', False, 'Compress the bag (zstd).'),
    Parameter(
        'sync_period_s',
        1.0,
        'How often everything is brought to the disk; a crash costs that much at most.',
        's',
        minimum=0.05,
        maximum=60.0,
    ),
    Parameter(
        'max_backlog_mb',
        256,
        'Messages that may wait for the disk; beyond it they are dropped and counted.',
        'MB',
        minimum=1,
        maximum=65536,
    ),
)
_END = None
_RECOVER = 'what is on the disk: cosmos3 dataset recover'


@dataclass
class Tally:
    """What became of the messages since the activation.

    Attributes:
        taken: Messages that were queued.
        written: Messages in the bag.
        dropped: Messages that came while the backlog was full, or that a failure kept from the bag.
        backlog: Bytes that wait for the disk.
        last: When the last message of each role came, ns of the node's clock.
        failure: Why nothing is written any more; empty if all is well.
    """

    taken: int = 0
    written: int = 0
    dropped: int = 0
    backlog: int = 0
    last: dict[str, int] = field(default_factory=dict)
    failure: str = ''


class BagThread:
    """Writes a bag from a thread of its own."""

    def __init__(
        self,
        bag: BagWriter,
        sync_period_s: float,
        max_backlog: int,
        on_failure: Callable[[str], None] = lambda _trace: None,
    ) -> None:
        """Start at once.

        Args:
            bag: Belongs to the thread from now on.
            sync_period_s: Time between two syncs.
            max_backlog: Bytes that may wait.
            on_failure: Told, by the thread, why nothing is written any more, with the trace.
        """
        self._on_failure = on_failure
        self.tally = Tally()
        self._bag, self._period_s, self._max_backlog = bag, sync_period_s, max_backlog
        self._queue: queue.SimpleQueue[tuple[str, int, bytes] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name='bag', daemon=True)
        self._thread.start()

    def put(self, role: str, topic: str, time_ns: int, data: bytes) -> None:
        """Queue a message; drops it if too much waits already."""
        tally = self.tally
        with self._lock:
            if tally.failure or tally.backlog + len(data) > self._max_backlog:
                tally.dropped += 1
                return
            tally.backlog += len(data)
            tally.taken += 1
            tally.last[role] = time_ns
            self._queue.put((topic, time_ns, data))

    def close(self) -> None:
        """Write what waits and complete the bag."""
        self._queue.put(_END)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._write_all()
            self._bag.close()
        except Exception as error:  # a thread that dies in silence would lose the rest of the run
            trace = traceback.format_exc()
            self._give_up(f'{error!r}')
            self._on_failure(trace)

    def _give_up(self, failure: str) -> None:
        """Let go of the file and of everything that waits; what is on the disk can be recovered."""
        tally = self.tally
        with self._lock:
            tally.failure = failure  # from here on nothing is queued any more
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        with self._lock:
            tally.dropped += tally.taken - tally.written
            tally.backlog = 0
        with suppress(Exception):  # the disk refuses this, too
            self._bag.abandon()

    def _write_all(self) -> None:
        synced = time.monotonic()
        while True:
            left_s = synced + self._period_s - time.monotonic()
            try:
                one = self._queue.get(timeout=max(0.001, left_s))
                if one is _END:
                    return
                topic, time_ns, data = one
                self._bag.write(topic, time_ns, data)
                with self._lock:
                    self.tally.backlog -= len(data)
                    self.tally.written += 1
            except queue.Empty:
                pass
            if time.monotonic() - synced >= self._period_s:
                self._bag.sync()
                synced = time.monotonic()


class RecorderNode(CosmosLifecycleNode):
    """Lifecycle shell around a :class:`BagThread`.

    Attributes:
        bag: Folder of the bag that is being written, or was written last; None before the first.
    """

    def __init__(self, name: str = 'recorder', **kwargs: Any) -> None:
        """Start unconfigured."""
        super().__init__(name, **kwargs)
        self.parameters = ParameterSet(self, PARAMETERS)
        self.bag: Path | None = None
        self._contract: Contract | None = None
        self._thread: BagThread | None = None
        self._tally = Tally()

    @property
    def tally(self) -> Tally:
        """What became of the messages of this activation, or of the last one."""
        return self._tally

    def configure_node(self) -> None:
        """Read the contract, try the folder, open topics."""
        self._contract = load_contract(self.parameters['contract'])
        _check_folder(Path(self.parameters['directory']))
        self._topics = recorded_topics(self._contract)
        for one in self._topics:
            self._open(one)
        self.diagnostics.add('recording', self._report)

    def activate_node(self) -> None:
        """Begin a bag."""
        values, contract = self.parameters, configured(self._contract)
        folder = Path(values['directory'])
        self.bag = _free_name(folder, datetime.now(UTC).strftime('run_%Y%m%d_%H%M%S'))
        names = {one.role: self.resolve_topic_name(one.name) for one in self._topics}
        about = {
            'contract': Path(contract.source).read_text(encoding='utf-8'),
            'contract_name': contract.name,
            'fingerprint': contract.fingerprint,
            'namespace': self.get_namespace(),
            'topics': names,
        }
        types = {names[one.role]: one.type for one in self._topics}
        bag = BagWriter(self.bag, types, about, self.now_ns(), compress=values['compress'])
        backlog = int(values['max_backlog_mb'] * 1e6)
        self._thread = BagThread(bag, values['sync_period_s'], backlog, self._on_failure)
        self._tally = self._thread.tally
        self.get_logger().info(f'recording to {self.bag}')

    def deactivate_node(self) -> None:
        """Complete the bag."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        thread.close()
        if self._tally.failure:
            problem = Problem(str(self.bag), 'was not written to the end', self._tally.failure, '', _RECOVER)
            self.get_logger().error(str(problem))
        else:
            self.get_logger().info(f'{self.bag}: {self._tally.written} messages, {self._tally.dropped} dropped')

    def cleanup_node(self) -> None:
        """Forget the contract."""
        self._contract = None
        self.diagnostics.removeByName('recording')

    def _open(self, one: RecordedTopic) -> None:
        package, _, name = one.type.split('/')
        kind = getattr(import_module(f'{package}.msg'), name)
        topic = self.resolve_topic_name(one.name)
        hear = partial(self._on_message, one.role, topic)
        # Messages are taken as the bytes that they came as: nothing is lost in reading and writing them again.
        self.subscribe(kind, one.name, hear, _profile(one), MutuallyExclusiveCallbackGroup(), raw=True)

    def _on_message(self, role: str, topic: str, data: bytes) -> None:
        thread = self._thread
        if thread is not None:
            thread.put(role, topic, self.now_ns(), data)

    def _on_failure(self, trace: str) -> None:
        self.get_logger().error(f'{self.bag}: nothing is written any more, the rest of the run is lost:\n{trace}')

    def _report(self, stat: diagnostics.DiagnosticStatusWrapper) -> diagnostics.DiagnosticStatusWrapper:
        tally = self._tally
        if tally.failure:
            stat.summary(diagnostics.ERROR, f'nothing is written any more: {tally.failure}')
        elif self._thread is None:
            stat.summary(diagnostics.OK, 'not recording')
        elif tally.dropped:
            stat.summary(diagnostics.WARN, f'the disk cannot keep up: {tally.dropped} messages dropped')
        else:
            stat.summary(diagnostics.OK, f'recording to {self.bag}')
        stat.add('messages written', tally.written)
        stat.add('messages dropped', tally.dropped)
        stat.add('backlog [MB]', f'{tally.backlog / 1e6:.1f}')
        lost = sum(events.messages_lost for events in self.topic_events.values())
        stat.add('messages lost by the middleware', lost)
        silent = [one.name for one in self._topics if one.role not in tally.last] if self._contract is not None else []
        stat.add('topics without a message', ', '.join(silent) or 'none')
        return stat


def _profile(one: RecordedTopic) -> QoSProfile:
    profile = qos.latched() if one.latched else (qos.status() if one.reliable else qos.sensor())
    profile.depth = one.depth
    return profile


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / '.recorder'
        probe.write_bytes(b'')
        probe.unlink()
    except OSError as error:
        problem = Problem('directory', 'cannot be written to', str(folder), '', str(error))
        raise InvalidInput('recorder', [problem]) from error


def _free_name(folder: Path, name: str) -> Path:
    for number in range(1, 1000):
        path = folder / (name if number == 1 else f'{name}_{number}')
        if not path.exists():
            return path
    raise InvalidInput('recorder', [Problem('directory', 'has too many bags of this second', str(folder))])
