"""Promises of the action client."""

from __future__ import annotations

import threading

from rclpy.action import ActionServer

from cosmos3_msgs.action import RunPolicy
from cosmos3_ros.action_client import ActionClient


class SlowToNote:
    """The client's handle in rclpy's core, but a request returns only once its answer has been received."""

    def __init__(self, handle: object, received: threading.Event) -> None:
        self._handle, self._received = handle, received

    def __getattr__(self, name: str) -> object:
        return getattr(self._handle, name)

    def __enter__(self) -> object:
        return self._handle.__enter__()

    def __exit__(self, *args: object) -> object:
        return self._handle.__exit__(*args)

    def send_goal_request(self, request: object) -> int:
        number = self._handle.send_goal_request(request)
        self._received.wait(1.0)  # newer versions of rclpy let nobody receive meanwhile
        return number


def run(goal_handle) -> RunPolicy.Result:
    goal_handle.succeed()
    return RunPolicy.Result(text='done')


def send(graph, monkeypatch):
    server, asking = graph.node('server'), graph.node('client')
    ActionServer(server, RunPolicy, 'run_policy', run)
    client = ActionClient(asking, RunPolicy, 'run_policy')
    graph.eventually(client.server_is_ready)
    received, take = threading.Event(), client.take_data

    def taking():
        taken = take()
        if 'goal' in taken:
            received.set()
        return taken

    monkeypatch.setattr(client, 'take_data', taking)
    monkeypatch.setattr(client, '_client_handle', SlowToNote(client._client_handle, received))
    return client.send_goal_async(RunPolicy.Goal(instruction='go'))


def test_a_client_can_be_made_while_its_node_is_being_spun(graph, monkeypatch):
    server, asking = graph.node('server'), graph.node('client')
    ActionServer(server, RunPolicy, 'run_policy', run)
    spun, count, log = threading.Event(), ActionClient.get_num_entities, asking.get_logger

    def counted(self):
        found = count(self)
        spun.set()
        return found

    def slow_log():
        asking.executor.wake()
        spun.wait(1.0)  # newer versions of rclpy ask for the log once the executor knows of the client
        return log()

    monkeypatch.setattr(ActionClient, 'get_num_entities', counted)
    monkeypatch.setattr(asking, 'get_logger', slow_log)
    client = ActionClient(asking, RunPolicy, 'run_policy')
    graph.eventually(client.server_is_ready)
    graph.eventually(spun.is_set)


def test_an_answer_that_is_faster_than_the_noting_of_its_request_is_not_lost(graph, monkeypatch):
    sent = send(graph, monkeypatch)
    graph.eventually(sent.done)
    result = sent.result().get_result_async()
    graph.eventually(result.done)
    assert result.result().result.text == 'done'
