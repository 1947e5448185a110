"""The second act of the demonstration, and what is imagined for its film: a real graph, and the model that ships."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from rich.console import Console
from sensor_msgs.msg import Image, JointState

from cosmos3_msgs.msg import GuardStatus, Verdict
from cosmos3_ros import demo, demo_second_act, qos
from cosmos3_ros.bringup import Options, processes
from cosmos3_ros.conversions import image_to_rgb, joint_state, ns_to_stamp, rgb_to_image, stamp_to_ns
from cosmos3_ros.demo_imagination import imagine_chunks
from cosmos3_ros.demo_second_act import HANDED_ON, CameraRelay, SecondAct, Stage, Watch
from cosmos3_ros.guard.reasons import Reason
from cosmos3_ros.lifecycle_client import LifecycleClient
from cosmos3_ros.node_base import CosmosLifecycleNode
from cosmos3_ros.run_record import RunRecord, SeenChunk
from cosmos3_ros.run_recorder import RunRecorder
from cosmos3_ros.runner import command
from engine.contract import Contract, load_contract
from engine.errors import CosmosError

CONTRACT = 'micro_joint_pos'
HOME = np.array([0.0, -0.6, 0.0, -2.5, 0.0, 1.9, 0.0])


@pytest.fixture
def contract() -> Contract:
    return load_contract(CONTRACT)


@pytest.fixture
def relay(graph, contract: Contract) -> CameraRelay:
    return graph.add(CameraRelay(contract, ''))


class Talker:
    """Cameras, joints, imagination and guard of the test."""

    def __init__(self, graph, contract: Contract) -> None:
        self.node, self.contract = graph.node('talker'), contract
        topics = [stream.topic for stream in contract.views.streams.values()]
        self.cameras = [self.node.create_publisher(Image, topic, qos.sensor(1)) for topic in topics]
        terms = contract.state.joint_states
        assert terms is not None
        self.joints = self.node.create_publisher(JointState, terms.topic, qos.sensor(10))
        self.verdicts = self.node.create_publisher(Verdict, 'dynamics/verdict', qos.status())
        self.guard = self.node.create_publisher(GuardStatus, 'guard/status', qos.latched())

    def show(self, brightness: int, time_ns: int) -> None:
        """One picture on every camera."""
        picture = np.full((12, 16, 3), brightness, np.uint8)
        for camera in self.cameras:
            camera.publish(rgb_to_image(picture, ns_to_stamp(time_ns), 'camera'))

    def measure(self, turned: float, time_ns: int) -> None:
        """Joints, turned from where they are at first."""
        self.joints.publish(joint_state(self.contract.robot.joints, HOME + turned, ns_to_stamp(time_ns)))


def test_pictures_are_handed_on_until_they_freeze_and_then_stay_the_same_with_new_stamps(
    graph, contract: Contract, relay: CameraRelay
):
    talker, seen = Talker(graph, contract), dict[str, list[tuple[int, int]]]()
    observer = graph.node('policy')

    def note(topic: str, message: Image) -> None:
        brightness = int(image_to_rgb(message, topic).mean())
        seen.setdefault(topic, []).append((brightness, stamp_to_ns(message.header.stamp)))

    for stream in contract.views.streams.values():
        topic = f'{HANDED_ON}/{stream.topic}'
        observer.create_subscription(Image, topic, partial(note, topic), qos.sensor(5))

    def all_have(brightness: int, time_ns: int, shown: int) -> bool:
        talker.show(shown, time_ns)
        last = [pictures[-1] for pictures in seen.values()]
        return len(last) == 3 and set(last) == {(brightness, time_ns)}

    graph.eventually(lambda: all_have(40, 1, 40))
    relay.frozen.set()
    graph.eventually(lambda: all_have(40, 2, 200), what='the old picture with the new stamp')
    assert {brightness for pictures in seen.values() for brightness, _ in pictures} == {40}
    relay.frozen.clear()
    graph.eventually(lambda: all_have(200, 3, 200))


def test_the_act_freezes_pictures_of_a_moving_arm_and_tells_who_objected_and_who_stopped(
    graph, contract: Contract, relay: CameraRelay
):
    talker, recorder = Talker(graph, contract), graph.add(RunRecorder(contract))
    times = iter(range(1, 10**6))

    def arm_is_seen(turned: float) -> bool:
        talker.measure(turned, next(times))
        return bool(recorder.record.measured) and abs(recorder.record.measured[-1][1] - HOME - turned).max() < 1e-6

    graph.eventually(lambda: arm_is_seen(0.0))
    watch = Watch(recorder, relay)
    heard: list[str] = []
    graph.node('witness').create_subscription(
        Verdict, 'dynamics/verdict', lambda verdict: heard.append(verdict.text), qos.status()
    )

    def said(decision: int, text: str, seen_s: float) -> bool:
        stamp = ns_to_stamp(round(seen_s * 1e9))
        talker.verdicts.publish(Verdict(decision=decision, text=text, stamp=stamp, epoch=7, sequence=3))
        return bool(heard) and heard[-1] == text

    assert not watch.look()
    assert not relay.frozen.is_set(), 'an arm at rest does nothing that a picture could show'
    graph.eventually(lambda: arm_is_seen(0.3))
    assert not watch.look()
    assert relay.frozen.is_set()
    frozen = watch.act.frozen_s
    assert frozen is not None
    graph.eventually(lambda: said(Verdict.STOP, 'of before', frozen - 0.1))
    graph.eventually(lambda: said(Verdict.UNKNOWN, 'late', frozen + 0.1) and watch.act.text == 'late')
    assert watch.act.objected_s is None, 'what was seen before the pictures froze does not count'
    told = 'surprise 2.1, threshold 0.8'
    graph.eventually(lambda: said(Verdict.STOP, told, frozen + 0.2) and watch.act.text == told)

    def guard_is(state: int, reason: Reason) -> bool:
        talker.guard.publish(GuardStatus(state=state, reason=reason.value, text=f'{reason.name} of chunk 7/3: it is'))
        status = recorder.guard_status
        return status is not None and (status.state, status.reason) == (state, reason.value)

    graph.eventually(lambda: guard_is(GuardStatus.BRAKING, Reason.STARVED))
    assert not watch.look()
    assert watch.act.stopped_s is None, 'it brakes for another reason'
    graph.eventually(lambda: guard_is(GuardStatus.BRAKING, Reason.VERDICT_STOP))
    assert not watch.look(), 'it brakes, and has not come to rest'
    graph.eventually(lambda: guard_is(GuardStatus.FAULT, Reason.VERDICT_STOP))
    assert watch.look()
    watch.close()
    assert watch.act.guard == 'VERDICT_STOP of chunk 7/3: it is'
    assert [text for _, text in recorder.record.notes] == [
        'the pictures are frozen',
        'stopped by imagination',
    ]
    page = io.StringIO()
    Console(file=page, width=200).print(watch.act.table())
    assert told in page.getvalue()
    assert 'stopped the arm' in page.getvalue()


def test_an_act_in_which_the_arm_does_not_move_ends_and_says_so(
    graph, contract: Contract, relay: CameraRelay, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(demo_second_act, 'BEGIN_WITHIN_S', 0.0)
    watch = Watch(graph.add(RunRecorder(contract)), relay)
    graph.eventually(watch.look)
    watch.close()
    assert 'the arm did not move' in watch.act.text
    assert not relay.frozen.is_set()


def test_a_stop_for_what_was_seen_before_the_pictures_froze_is_called_a_false_alarm(
    graph, contract: Contract, relay: CameraRelay
):
    talker, recorder = Talker(graph, contract), graph.add(RunRecorder(contract))
    watch = Watch(recorder, relay)
    watch.act.frozen_s = 5.0
    stop = GuardStatus(state=GuardStatus.FAULT, reason=Reason.VERDICT_STOP.value, text='STOP of chunk 7/2: surprise')

    def is_stopped() -> bool:
        talker.guard.publish(stop)
        return watch.look()

    def is_objected_to() -> bool:
        later = Verdict(decision=Verdict.STOP, text='of now', stamp=ns_to_stamp(6 * 10**9), epoch=7, sequence=3)
        talker.verdicts.publish(later)
        return watch.act.objected_s is not None

    graph.eventually(is_stopped)
    graph.eventually(is_objected_to)
    watch.look()
    watch.close()
    assert (watch.act.stopped_s, watch.act.objected_s) == (None, None)
    assert 'a false alarm came first' in watch.act.text
    assert recorder.record.notes == []


@pytest.fixture
def imagination(graph) -> Iterator[LifecycleClient]:
    """Drives a managed node in the place of imagination's."""
    graph.add(CosmosLifecycleNode('dynamics', namespace=demo.NAMESPACE))
    with LifecycleClient() as client:
        client.state(f'/{demo.NAMESPACE}/dynamics')
        yield client


def calm(contract: Contract, relay: CameraRelay) -> tuple[Stage | None, str]:
    """Whether there is a second act to come, and what was told."""
    told = io.StringIO()
    return demo._calm(Stage(contract, relay), Console(file=told, width=400)), told.getvalue()


def test_nothing_is_imagined_before_the_second_act(contract: Contract, relay: CameraRelay, imagination):
    node = f'/{demo.NAMESPACE}/dynamics'
    imagination.bring_up(node)
    stage, told = calm(contract, relay)
    assert (stage is not None, told) == (True, '')
    assert imagination.state(node) == 'inactive'
    stage.let_imagine(demo.NAMESPACE, now=True)
    assert imagination.state(node) == 'active'


def test_where_imagination_could_not_be_configured_the_demonstration_does_without(
    contract: Contract, relay: CameraRelay, imagination, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(demo_second_act, '_READY_S', 2.0)
    stage, told = calm(contract, relay)
    assert stage is None
    assert 'There will be no second act' in told
    assert 'is unconfigured, not active' in told


def test_imagination_that_may_still_wake_and_stop_the_arm_ends_the_demonstration(
    contract: Contract, relay: CameraRelay, imagination, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(demo_second_act, '_READY_S', 2.0)
    imagination.change(f'/{demo.NAMESPACE}/dynamics', 'configure')
    with pytest.raises(CosmosError, match='is inactive, not active'):
        calm(contract, relay)


def test_an_act_that_nobody_stopped_says_so():
    told = io.StringIO()
    Console(file=told, width=200).print(SecondAct(3.0, text='late: the rung look was not done').table())
    assert 'did not object: late' in told.getvalue()
    assert 'did not stop' in told.getvalue()


def test_policy_and_imagination_see_what_is_handed_on_and_nobody_else_does(contract: Contract, relay: CameraRelay):
    specs = processes(Options(contract=CONTRACT, checkpoint='cosmos3-micro', dynamics=True))
    lines = {spec.name: ' '.join(command(spec)) for spec in Stage(contract, relay).prepared(specs)}
    for stream in contract.views.streams.values():
        rule = f'-r {stream.topic}:={HANDED_ON}/{stream.topic}'
        assert [name for name, line in lines.items() if rule in line] == ['policy']
    assert 'ladder:=["look"]' in lines['policy']


def test_chunks_of_a_run_are_imagined_from_what_was_seen_when_they_were_made(contract: Contract):
    record = RunRecord(contract.robot.joints)
    picture = np.full((*contract.views.size, 3), 120, np.uint8)
    record.frames += [(1.0, picture), (1.07, picture // 2)]
    record.measured += [(1.0, HOME), (1.01, HOME)]
    rows = np.repeat(HOME[None], 16, axis=0) + np.linspace(0, 0.1, 16)[:, None]
    chunks = [
        SeenChunk(0, 1, 1.0, 1.1, 16, rows, 'reach for the red cube', np.zeros((16, 1))),
        SeenChunk(0, 2, 3.0, 3.1, 16, rows),
        SeenChunk(0, 3, 1.0, 1.1, 16, None),
    ]
    done: list[int] = []
    videos = imagine_chunks(record, chunks, 'cosmos3-micro', contract, lambda chunk: done.append(chunk.sequence))
    assert list(videos) == [(0, 1)], 'neither picture nor joints of the second are known, the third has no joints'
    assert videos[0, 1].shape == (17, *contract.views.size, 3)
    assert done == [1, 2, 3]
