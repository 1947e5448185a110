"""Closed-loop episodes through the whole ROS graph: guard and policy are the processes that drive a robot.

    simulated arm in this process <--- topics ---> guard process <--- topics ---> policy process

Scripted policies have no process of their own: what they make is published as a policy's chunks are.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.signals import SignalHandlerOptions

from cosmos3_msgs.action import RunPolicy
from cosmos3_ros.action_client import ActionClient
from cosmos3_ros.bringup import Options, ProcessSpec, large_image_environment, processes
from cosmos3_ros.eval_world import PATIENCE_S, SCRIPTED, SERVERS, Cast, make_actor
from cosmos3_ros.graph_world import CLOCK_TOPIC, GraphWorld
from cosmos3_ros.lifecycle_client import LifecycleClient
from cosmos3_ros.middleware_events import QuietEvents
from cosmos3_ros.node_base import NodeExecutor
from cosmos3_ros.runner import Runner, keep_to_ourselves
from cosmos3_ros.safety_expert import check_arm
from engine.contract import load_contract
from engine.errors import CosmosError
from engine.evaluation.closed_loop import NS, Actor, Camera, EpisodeRecord, play, record_of
from engine.evaluation.simulated_franka import SimulatedFranka
from engine.evaluation.tasks import Episode
from engine.evaluation.tasks_watch import Watch

THREADS_VARIABLE = 'OMP_NUM_THREADS'  # of PyTorch
STARTED_S = 300.0  # a real checkpoint takes minutes to load
ANSWER_S = 30.0
GRACE_S = 15.0
PATIENT_S = 10.0
_CHECK_S = 0.5
# A namespace each: a guard would take the last one, of whose end it has not heard yet, for a rival.
_RUNNERS = itertools.count(1)
_LINGER_NS = NS // 2  # how long an episode goes on after its run has ended by itself


class GraphRunner:
    """Runs episodes through guard and policy in processes of their own; they live from the first to the last.

    Attributes:
        world: The simulated arm.
        runner: Of the processes.
    """

    def __init__(self, cast: Cast, *, film: bool = False, logs: Path | None = None) -> None:
        """Start the processes and wait until they are up.

        Args:
            cast: Who plays, and where.
            film: Whether there are pictures even if the policy needs none.
            logs: Folder for what the processes write; None: one that is thrown away unless something goes wrong.

        Raises:
            CosmosError: The checkpoint, the contract, the simulator or the processes do not work.
        """
        contract = load_contract(cast.contract)
        check_arm(contract)
        self._cast, self._namespace = cast, f'eval_{os.getpid()}_{next(_RUNNERS)}'
        self._actor = make_actor(cast, contract) if cast.policy in SCRIPTED else None
        self._throws_away, self._logs = logs is None, logs or Path(tempfile.mkdtemp(prefix='cosmos3_eval_'))
        keep_to_ourselves()
        os.environ.update({**large_image_environment(), **os.environ})
        self._owns_ros = not rclpy.ok()
        if self._owns_ros:
            rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self._open = ExitStack()
        try:
            self._start(cast, contract, draws=self._actor is None or self._actor.sees, film=film)
        except BaseException:
            self._failed = True
            self.close()
            raise
        self._failed = False

    def _start(self, cast: Cast, contract: Any, *, draws: bool, film: bool) -> None:
        robot = SimulatedFranka(render_views=None if draws or film else (), zone=True)
        self._open.callback(robot.close)
        self.runner = Runner(self._specs(cast), log_directory=self._logs, grace_s=GRACE_S).__enter__()
        self._open.callback(self.runner.stop)
        node = QuietEvents('robot', namespace=self._namespace)
        self._goals = ActionClient(node, RunPolicy, 'run_policy')
        self._parameters = AsyncParameterClient(node, 'policy')
        self.world = GraphWorld(node, robot, contract, scripted=self._actor is not None, draws=draws)
        executor = NodeExecutor(num_threads=2)
        executor.add_node(node)
        spinner = threading.Thread(target=_spin, args=(executor,), name='graph', daemon=True)
        spinner.start()
        self._open.callback(node.destroy_node)
        self._open.callback(executor.end, spinner)
        self._lifecycle = LifecycleClient()
        self._open.callback(self._lifecycle.close)
        self.world.check = self._check_alive
        for name in self._managed:
            self._await_state(name, 'active')

    def _specs(self, cast: Cast) -> list[ProcessSpec]:
        here = {'checkpoint': cast.policy, 'device': cast.device, 'compiled': cast.compiled}
        options = Options(
            contract=cast.contract,
            **(_server(cast) if cast.policy.startswith(SERVERS) else here),
            robot='none',
            namespace=self._namespace,
            dry_run=False,
            use_sim_time=True,
        )
        found = {spec.name: spec for spec in processes(options) if spec.name in self._managed}
        clock = ('/clock', f'/{self._namespace}/{CLOCK_TOPIC}')
        # The ages of heartbeats are for robots. Here time stands still for whoever is late.
        patient = {'heartbeat_max_age_s': PATIENT_S, 'policy_max_age_s': PATIENT_S}
        model: dict[str, Any] = {'dtype': cast.dtype}
        if cast.policy.startswith(SERVERS):
            model = {'deadline_s': PATIENCE_S, 'server_timeout_s': 2 * PATIENCE_S}
        pace = {'replan_rows': cast.terms.replan_rows, 'input_timeout_s': 600.0, 'splice': cast.splice}
        more = {'guard': patient, 'policy': {**model, **pace}}
        return [
            replace(
                spec,
                remappings=(*spec.remappings, clock),
                parameters={**spec.parameters, **more.get(name, {})},
                environment={**spec.environment, THREADS_VARIABLE: str(cast.threads)},
                forced=(THREADS_VARIABLE,),
            )
            for name, spec in found.items()
        ]

    @property
    def _managed(self) -> tuple[str, ...]:
        return ('guard',) if self._actor is not None else ('guard', 'policy')

    def _await_state(self, name: str, state: str) -> None:
        """Until a node is in a state; simulated time passes meanwhile, for nodes wait for it."""
        until_s = time.monotonic() + STARTED_S
        found = ''
        while time.monotonic() < until_s:
            self._check_alive()
            with suppress(CosmosError):
                found = self._lifecycle.state(f'/{self._namespace}/{name}', 1.0)
            if found == state:
                return
            self.world.tick()
        raise CosmosError(f'{name} is {found or "not answering"} after {STARTED_S:g} s; {self._log(name)}')

    def _log(self, name: str) -> str:
        path = self._logs / f'{name}.log'
        lines = path.read_text(errors='replace').splitlines()[-12:] if path.exists() else []
        return '\n'.join([f'its log, {path}, ends with', *lines])

    def run(self, episode: Episode, camera: Camera | None = None) -> EpisodeRecord:
        """Run one episode.

        Raises:
            CosmosError: A process has ended, or does not answer.
        """
        try:
            self._lay_out(episode)
            return self._follow(episode, camera) if self._actor is None else self._play(self._actor, episode, camera)
        except BaseException:
            self._failed = True
            raise

    def _play(self, actor: Actor, episode: Episode, camera: Camera | None) -> EpisodeRecord:
        """The episode of a policy that has no process."""
        try:
            record = play(self.world, actor, episode, self._cast.terms, camera)
        finally:
            self.world.end()
        self._check_alive()
        return record

    def _lay_out(self, episode: Episode) -> None:
        """Guard and policy must not see the arm jump to where the next episode begins."""
        self._check_alive()
        for name in reversed(self._managed):
            self._change(name, 'deactivate')
        self.world.lay_out(episode)
        for name in self._managed:
            self._change(name, 'activate')

    def _check_alive(self) -> None:
        for name, code in self.runner.ended().items():
            raise CosmosError(f'{name} ended with exit code {code}; {self._log(name)}')

    def _change(self, name: str, transition: str) -> None:
        try:
            done = self._lifecycle.change(f'/{self._namespace}/{name}', transition, ANSWER_S)
        except CosmosError:
            self._check_alive()
            raise
        if not done:
            raise CosmosError(f'{name} could not {transition}; {self._log(name)}')

    def _follow(self, episode: Episode, camera: Camera | None) -> EpisodeRecord:
        """The episode of a policy in a process of its own."""
        world, terms = self.world, self._cast.terms
        self._seed(episode.seed)
        world.begin(episode)
        watch = Watch(episode, world.truth())
        goal = self._answer(self._goals.send_goal_async(RunPolicy.Goal(instruction=episode.instruction)), 'run_policy')
        if not goal.accepted:
            raise CosmosError(f'the policy refused {episode.instruction!r}; {self._log("policy")}')
        outcome = goal.get_result_async()
        world.expect_chunks(terms.replan_rows, terms.latency_s)
        end_ns = world.now_ns + round(episode.terms.horizon_s * NS)
        if camera is not None:
            camera(world)
        while world.now_ns < end_ns and not watch.done:
            world.tick()
            watch.look(world.truth())
            if camera is not None:
                camera(world)
            if outcome.done():
                end_ns = min(end_ns, world.now_ns + _LINGER_NS)
        made = list(world.chunks)
        record = record_of(episode, watch, world, len(made), sum(made))
        world.end()
        self._answer(goal.cancel_goal_async(), 'run_policy/cancel')
        self._check_outcome(self._answer(outcome, 'run_policy').result)
        self._check_alive()
        return record

    def _seed(self, seed: int) -> None:
        answer = self._answer(self._parameters.set_parameters([Parameter('seed', value=seed)]), 'policy/set_parameters')
        for result in answer.results:
            if not result.successful:
                raise CosmosError(f'the policy refused seed {seed}: {result.reason}')

    def _check_outcome(self, result: RunPolicy.Result) -> None:
        """An episode that ended because something broke says nothing about the policy.

        Raises:
            CosmosError: Something broke.
        """
        if result.reason in (RunPolicy.Result.POLICY_ERROR, RunPolicy.Result.STALE_INPUT):
            raise CosmosError(f'the run broke down: {result.text}; {self._log("policy")}')

    def _answer(self, future: Any, what: str) -> Any:
        """What came of a call; time stands still meanwhile."""
        done = threading.Event()
        future.add_done_callback(lambda _future: done.set())
        until_s = time.monotonic() + ANSWER_S
        while not done.wait(_CHECK_S) and time.monotonic() < until_s:
            self._check_alive()
        if not done.is_set():
            raise CosmosError(f'{what} did not answer within {ANSWER_S:g} s; {self._log("policy")}')
        return future.result()

    def close(self) -> None:
        """End the processes."""
        try:
            self._open.close()
        finally:
            if self._owns_ros:
                rclpy.try_shutdown()
            if self._throws_away and not self._failed:
                shutil.rmtree(self._logs, ignore_errors=True)


def _server(cast: Cast) -> dict[str, str]:
    """Options of a policy that runs elsewhere."""
    server = {'url': cast.policy, 'dialect': cast.dialect, 'api_key_variable': cast.api_key_variable}
    return {'backend': 'remote', **server}


def _spin(executor: NodeExecutor) -> None:
    with suppress(ExternalShutdownException):
        executor.spin()
