"""The second act of the demonstration: pictures freeze in the middle of a motion, and imagination is what notices.

The cameras go on sending, with new stamps, but always the same pictures. Nothing that looks at ages, jumps or limits
can object. Imagination can: it had a future in mind that the pictures do not show.

    simulated cameras --> CameraRelay --> policy, dynamics --verdict--> guard --> stop
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rich.markup import escape
from rich.table import Table
from sensor_msgs.msg import Image

from cosmos3_msgs.msg import GuardStatus, Verdict
from cosmos3_ros import qos
from cosmos3_ros.bringup import ProcessSpec
from cosmos3_ros.conversions import stamp_to_ns
from cosmos3_ros.guard.reasons import Reason
from cosmos3_ros.lifecycle_client import LifecycleClient
from engine.contract import Contract
from engine.errors import CosmosError

if TYPE_CHECKING:
    from cosmos3_ros.run_recorder import RunRecorder

HANDED_ON = 'handed_on'
"""Namespace of the pictures that policy and imagination are shown."""
MOVING_RAD = 0.15
"""From so much motion on, the arm is on its way."""
BEGIN_WITHIN_S, STOP_WITHIN_S = 4.0, 8.0
LIMIT_S = 20.0
_PARAMETERS = {
    'ladder': ['look'],  # what is seen against what was imagined, and nothing that costs more
    'budget_s': 2.0,  # a laptop draws the simulation, too
    'slow_objections': 1,
    'stop_objections': 1,
}
_TRANSITION_S, _READY_S = 20.0, 60.0


class CameraRelay(Node):
    """Hands pictures on as they come, until they freeze.

    Attributes:
        frozen: Whether they do.
    """

    def __init__(self, contract: Contract, namespace: str) -> None:
        """Begin at once."""
        super().__init__('camera_relay', namespace=namespace)
        self.frozen = threading.Event()
        self._last: dict[str, Image] = {}
        for stream in contract.views.streams.values():
            out = self.create_publisher(Image, f'{HANDED_ON}/{stream.topic}', qos.sensor(1))
            take = partial(self._hand_on, stream.topic, out.publish)
            self.create_subscription(Image, stream.topic, take, qos.sensor(1))

    def _hand_on(self, topic: str, publish: Callable[[Image], None], message: Image) -> None:
        if self.frozen.is_set() and topic in self._last:
            kept = self._last[topic]
            kept.header.stamp = message.header.stamp
            publish(kept)
            return
        self._last[topic] = message
        publish(message)


@dataclass
class SecondAct:
    """What came of it; times in seconds of the graph's clock.

    Attributes:
        frozen_s: When pictures froze; None if the act ended before.
        objected_s: When imagination said stop; None if it never did.
        text: What it said, or why it said nothing.
        stopped_s: When the guard began to stop the arm for it; None if it never did.
        guard: The guard's own words then.
    """

    frozen_s: float | None = None
    objected_s: float | None = None
    text: str = 'no verdict came'
    stopped_s: float | None = None
    guard: str = ''

    def table(self) -> Table:
        """For people."""
        table = Table(title='Second act: the pictures freeze', show_header=False, title_justify='left', pad_edge=False)
        table.add_column(style='bold')
        table.add_column()
        if self.objected_s is None or self.frozen_s is None:
            table.add_row('imagination', f'[yellow]did not object[/yellow]: {escape(self.text)}')
        else:
            after = self.objected_s - self.frozen_s
            table.add_row('imagination', f'objected after {after:.1f} s: {escape(self.text)}')
        if self.stopped_s is None or self.frozen_s is None:
            table.add_row('guard', '[yellow]did not stop[/yellow]')
        else:
            after = self.stopped_s - self.frozen_s
            table.add_row('guard', f'stopped the arm {after:.1f} s after the pictures froze: {escape(self.guard)}')
        return table


@dataclass(frozen=True)
class Stage:
    """What the act takes.

    Attributes:
        contract: Of the run.
        relay: At work already.
        limit_s: How long it may take.
    """

    contract: Contract
    relay: CameraRelay
    limit_s: float = LIMIT_S

    def prepared(self, specs: Sequence[ProcessSpec]) -> list[ProcessSpec]:
        """Processes whose policy and imagination see what the relay hands on."""
        topics = [stream.topic for stream in self.contract.views.streams.values()]
        handed_on = tuple((topic, f'{HANDED_ON}/{topic}') for topic in topics)
        return [
            replace(spec, parameters={**spec.parameters, **_PARAMETERS}, remappings=(*spec.remappings, *handed_on))
            if spec.name == 'policy'
            else spec
            for spec in specs
        ]

    def watch(self, recorder: RunRecorder) -> Watch:
        """To be begun with an arm at rest."""
        return Watch(recorder, self.relay)

    @staticmethod
    def let_imagine(namespace: str, *, now: bool) -> None:
        """Have imagination judge chunks from now on, or not: nothing is to be stopped for a false alarm before the act.

        Raises:
            CosmosError: The node does not do as it is told.
        """
        name, change = f'/{namespace}/dynamics', 'activate' if now else 'deactivate'
        with LifecycleClient() as client:
            client.wait_for(name, 'inactive' if now else 'active', _READY_S)
            if not client.change(name, change, _TRANSITION_S):
                raise CosmosError(f'{name} cannot {change}; its log says why')

    @staticmethod
    def imagines_nothing(namespace: str) -> bool:
        """Whether the node that imagines was never configured, so that nothing will be stopped by it."""
        with LifecycleClient() as client:
            return client.state(f'/{namespace}/dynamics') == 'unconfigured'


@contextmanager
def second_act(contract: Contract, namespace: str) -> Iterator[Stage]:
    """A relay at work on a thread of its own."""
    relay, executor = CameraRelay(contract, namespace), SingleThreadedExecutor()
    executor.add_node(relay)

    def spin() -> None:
        with suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin, name='relay', daemon=True)
    thread.start()
    try:
        yield Stage(contract, relay)
    finally:
        executor.shutdown()
        thread.join(timeout=2.0)
        relay.destroy_node()


class Watch:
    """Freezes the pictures once the arm is on its way, and follows what is said of it; :meth:`look` is called often."""

    def __init__(self, recorder: RunRecorder, relay: CameraRelay) -> None:
        """Begin with an arm at rest."""
        self.act = SecondAct()
        self._recorder, self._relay = recorder, relay
        self._began = time.monotonic()
        self._from = recorder.record.measured[-1][1] if recorder.record.measured else None
        self._stop: tuple[float, str] | None = None
        self._chunk = ''  # that was objected to, as the guard names it
        self._subscription = recorder.create_subscription(Verdict, 'dynamics/verdict', self._on_verdict, qos.status())

    def look(self) -> bool:
        """Whether all is over."""
        act, waited = self.act, time.monotonic() - self._began
        if act.frozen_s is None:
            if self._on_its_way():
                self._freeze()
            elif waited > BEGIN_WITHIN_S:
                act.text = f'the arm did not move within {BEGIN_WITHIN_S:g} s, so that there was nothing to see'
                return True
            return False
        status = self._recorder.guard_status
        stopped = status is not None and status.reason == Reason.VERDICT_STOP
        if stopped and self._stop is None:
            self._stop = self._recorder.now_s(), status.text
        if self._stop is not None and self._chunk and self._chunk in self._stop[1] and act.stopped_s is None:
            act.stopped_s, act.guard = self._stop
            self._recorder.record.notes.append((act.stopped_s, 'stopped by imagination'))
        return (stopped and status.state == GuardStatus.FAULT) or waited > STOP_WITHIN_S

    def close(self) -> None:
        """Hear no more verdicts."""
        self._recorder.destroy_subscription(self._subscription)
        if self._stop is not None and self.act.stopped_s is None:
            self.act.objected_s = None
            self.act.text = f'a false alarm came first, over what was seen before they froze: {self._stop[1]}'

    def _freeze(self) -> None:
        self.act.frozen_s = self._recorder.now_s()
        self._relay.frozen.set()
        self._recorder.record.notes.append((self.act.frozen_s, 'the pictures are frozen'))
        self._began = time.monotonic()

    def _on_its_way(self) -> bool:
        measured = self._recorder.record.measured
        if not measured:
            return False
        if self._from is None:
            self._from = measured[-1][1]
        return bool(abs(measured[-1][1] - self._from).max() > MOVING_RAD)

    def _on_verdict(self, message: Verdict) -> None:
        act = self.act
        # What was seen before says nothing of what has happened since.
        if act.frozen_s is None or act.objected_s is not None or stamp_to_ns(message.stamp) / 1e9 < act.frozen_s:
            return
        act.text = message.text
        if message.decision == Verdict.STOP:
            act.objected_s, self._chunk = self._recorder.now_s(), f'chunk {message.epoch}/{message.sequence}:'
