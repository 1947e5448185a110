"""An action server is idle once the last word about its goals is out, and not before."""

from __future__ import annotations

import threading

from rclpy.action import GoalResponse

from cosmos3_msgs.action import RunPolicy
from cosmos3_ros.action_client import ActionClient
from cosmos3_ros.goal_server import GoalServer


class Hesitant(GoalServer):
    """Sends results only when it may, as on a machine whose executor has no turn for it."""

    def __init__(self, *arguments: object) -> None:
        self.may = threading.Event()
        self.about_to = threading.Event()
        super().__init__(*arguments)

    def _send_result_response(self, request_header: object, future: object) -> None:
        self.about_to.set()
        assert self.may.wait(30.0)
        super()._send_result_response(request_header, future)


def test_a_goal_that_has_ended_is_open_until_its_client_was_told(graph):
    ended = threading.Event()

    def execute(goal):
        assert ended.wait(30.0)
        goal.succeed()
        return RunPolicy.Result(text='done')

    node = graph.node('worker')
    server = Hesitant(node, RunPolicy, 'work', execute, lambda _goal: GoalResponse.ACCEPT)
    client = ActionClient(graph.node('client'), RunPolicy, 'work')
    graph.eventually(client.server_is_ready)
    assert server.idle.is_set()
    asked = client.send_goal_async(RunPolicy.Goal())
    graph.eventually(asked.done, what='the answer to the goal')
    result = asked.result().get_result_async()
    graph.eventually(lambda: server._open == 2, what='the goal and who wants its result')
    ended.set()
    assert server.about_to.wait(30.0)
    assert not server.idle.is_set()
    server.may.set()
    graph.eventually(result.done, what='the result')
    assert result.result().result.text == 'done'
    assert server.idle.wait(30.0)
    client.destroy()
    server.destroy()


def test_who_asks_for_the_result_of_a_goal_that_never_was_is_answered_and_not_waited_for(graph):
    server = GoalServer(graph.node('worker'), RunPolicy, 'work', lambda _goal: None, lambda _goal: GoalResponse.REJECT)
    client = ActionClient(graph.node('client'), RunPolicy, 'work')
    graph.eventually(client.server_is_ready)
    asked = client.send_goal_async(RunPolicy.Goal())
    graph.eventually(asked.done, what='the answer to the goal')
    assert not asked.result().accepted
    result = asked.result().get_result_async()
    graph.eventually(result.done, what='the answer to who asks')
    assert server.idle.is_set()
    client.destroy()
    server.destroy()
