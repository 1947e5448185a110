"""The `dynamics` node: imagines what proposed chunks will do, and tells the guard in time.

===================  =================================================  ==========================================
subscribes           `policy/chunk`                                     what is proposed
                     `guard/decision`, `guard/status`                   whether the chunk before was done
                     the contract's views and states                    only with `observations: topics`
publishes            `~/verdict`                                        `Verdict`: one for every chunk, always
                     `~/imagined`                                       frames of a rollout that is shown
action server        `imagine`                                          `Imagine`
service              `~/judge_episode`                                  `JudgeEpisode`
===================  =================================================  ==========================================

It lives in the process of the policy node and uses the same weights; requests of the policy go first. A verdict can
slow the robot down or stop it, and nothing else.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.action import GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import Image, JointState

from cosmos3_msgs.action import Imagine
from cosmos3_msgs.msg import ActionChunk, ChunkDecision, GuardStatus, Verdict
from cosmos3_msgs.srv import JudgeEpisode
from cosmos3_ros import diagnostics, qos
from cosmos3_ros.conversions import ImageWriter, image_to_rgb, message_to_pose, ns_to_stamp, stamp_to_ns
from cosmos3_ros.dreams import PolicyDreamer
from cosmos3_ros.dynamics_loop import DynamicsLoop, Pending, Told
from cosmos3_ros.dynamics_messages import VerdictRecords, chunk_columns, duration, measured_joints, verdict_message
from cosmos3_ros.goal_server import GoalServer
from cosmos3_ros.inputs import JOINT_STATES, Inputs, pose_streams
from cosmos3_ros.judge import LADDER, MONITORS, Judge, Proposal, Rule, rungs
from cosmos3_ros.motion_bridge import MotionBridge
from cosmos3_ros.node_base import CosmosLifecycleNode, configured
from cosmos3_ros.parameters import Parameter, ParameterSet
from cosmos3_ros.policy_model import MODEL_PARAMETERS
from cosmos3_ros.policy_node import joint_state_reader
from cosmos3_ros.process import conclude_s
from cosmos3_ros.proposals import PROPOSALS
from cosmos3_ros.reasoner_opinions import Opinions
from cosmos3_ros.reasoner_talker import advising_talker
from cosmos3_ros.recorded_proposals import check_recording, recorded_proposals
from cosmos3_ros.replay_robot import read_video_map
from cosmos3_ros.shared_model import MODELS
from cosmos3_ros.streams import Timeline
from engine.calibration import Calibration
from engine.contract import Contract, load_contract
from engine.dynamics import Dynamics, Rollout
from engine.errors import CosmosError, InvalidInput, ObservationError, Problem
from engine.evaluation.recordings import open_recording
from engine.monitors import VERSION
from engine.policy import Observation
from engine.policy_observation import grey_observation
from engine.runtime import Cancelled

_MODEL = ('contract', 'checkpoint', 'device', 'dtype', 'backend', 'offload', 'warm_up')
GIVEN, MADE = 'given', 'made'
ON_DEMAND, OBJECTIONS, ALWAYS = 'on_demand', 'objections', 'always'

PARAMETERS = (
    *(parameter for parameter in MODEL_PARAMETERS if parameter.name in _MODEL),
    Parameter(
        'observations',
        'policy',
        'Where what was seen comes from: from the policy node, which must be in this process, with its own imagined '
        'video (policy), or from the topics of the contract (topics).',
        one_of=('policy', 'topics'),
    ),
    Parameter(
        'own_video',
        GIVEN,
        "The policy's own video, which disagreement is about: the one that comes with a chunk (given), or, where none "
        'does, one of what the policy of these weights would do (made), which takes an inference.',
        one_of=(GIVEN, MADE),
    ),
    Parameter('budget_s', 0.5, 'Time from the arrival of a chunk to its verdict; later is unknown.', 's', 0.01, 60.0),
    Parameter(
        'ladder',
        tuple(rung.name for rung in LADDER if rung.name not in ('full', 'look')),
        'Rungs that may be used; the best one that usually fits into the budget is.',
        one_of=tuple(rung.name for rung in LADDER),
    ),
    Parameter('calibration', '', 'File of thresholds that cosmos3 calibrate made; empty: all verdicts are unknown.'),
    Parameter('slow_objections', 1, 'Monitors above their threshold that make the verdict slow.', '', 1, len(MONITORS)),
    Parameter('stop_objections', 2, 'Monitors above their threshold that make it stop.', '', 1, len(MONITORS)),
    Parameter('lag_s', 0.0, 'Time constant with which the arm follows its targets; to be measured.', 's', 0.0, 2.0),
    Parameter(
        'opinion_s',
        0.0,
        'How long a reasoner may take over what was imagined, within the budget: two monitors more; 0: it is not '
        'asked.',
        's',
        0.0,
        60.0,
    ),
    Parameter('opinion_url', '', 'OpenAI-compatible endpoint for these opinions; empty: the weights that imagine.'),
    Parameter('opinion_model', '', 'Name of the model there.'),
    Parameter('opinion_key_variable', '', 'Environment variable that holds its API key; empty: it asks for none.'),
    Parameter(
        'show',
        ON_DEMAND,
        'Which rollouts are decoded and shown on ~/imagined: those of the action, of objections as well, or all.',
        one_of=(ON_DEMAND, OBJECTIONS, ALWAYS),
    ),
    Parameter('record_directory', '', 'Where verdicts.jsonl and the videos of rollouts go; empty: nowhere.'),
    Parameter('seed', 0, 'Of the noise of every imagination.', minimum=0, maximum=2**31 - 1),
)
DEPTH = 32
"""Pictures of each view that are kept with `observations: topics`: two seconds at DROID's rate."""
DECISIONS_KEPT = 64
FULL = LADDER[0]


class DynamicsNode(CosmosLifecycleNode):
    """Lifecycle shell around a :class:`~cosmos3_ros.dynamics_loop.DynamicsLoop`."""

    def __init__(self, name: str = 'dynamics', **kwargs: Any) -> None:
        """Start unconfigured."""
        super().__init__(name, **kwargs)
        self.parameters = ParameterSet(self, PARAMETERS)
        self.loop: DynamicsLoop | None = None
        self.dynamics: Dynamics | None = None
        self._contract: Contract | None = None
        self._inputs: Inputs | None = None
        self._records: VerdictRecords | None = None
        self._calibration = ''
        self._make_judge: Callable[[], Judge] | None = None
        self._chunk_topic = ''
        self._frames: deque[tuple[int, np.ndarray]] = deque()
        self._newest: ActionChunk | None = None
        self._guard: GuardStatus | None = None
        self._played: dict[tuple[int, int], bool] = {}
        self._goals: GoalServer | None = None
        self._accepting = False

    def configure_node(self) -> None:
        """Load contract, checkpoint and calibration; open topics, the service and the action."""
        values = self.parameters
        self._contract = contract = load_contract(values['contract'])
        model = MODELS.load(
            values['checkpoint'],
            device=values['device'],
            dtype=values['dtype'],
            backend=values['backend'],
            offload=values['offload'],
            report=self.get_logger().info,
        )
        self.dynamics = dynamics = model.dynamics(contract)
        bridge = MotionBridge(contract, dynamics.terms)
        rule = Rule(values['slow_objections'], values['stop_objections'])
        calibration = self._load_calibration(model.checkpoint.fingerprint, contract)
        opinions = None
        if values['opinion_s']:
            opinions = Opinions(advising_talker(values, model), values['opinion_s'], dynamics.terms.fps)
        self._make_judge = make_judge = partial(
            Judge,
            dynamics,
            bridge,
            calibration,
            rule=rule,
            lag_s=values['lag_s'],
            adviser=opinions,
            dreamer=PolicyDreamer(model, contract, self.get_logger().warning) if values['own_video'] == MADE else None,
        )
        if values['record_directory']:
            self._records = VerdictRecords(Path(values['record_directory']).expanduser())
        self.loop = DynamicsLoop(
            make_judge(),
            rungs(values['ladder']),
            values['budget_s'],
            self._tell,
            self._report_error,
            seed=values['seed'],
        )
        if values['warm_up']:
            self._warm_up(contract)
        self._open_outputs(dynamics.terms.fps)
        self._open_inputs(contract)
        self.diagnostics.add('dynamics', self._report_dynamics)

    def activate_node(self) -> None:
        """Judge what is proposed from now on."""
        self._forget()
        configured(self.loop).reset()
        self._accepting = True

    def deactivate_node(self) -> None:
        """Judge nothing; whoever waits for a verdict takes the silence for unknown."""
        self._accepting = False
        if self.loop is not None:
            self.loop.reset()
        self._frames.clear()
        if self._goals is not None and not self._goals.idle.wait(conclude_s()):
            self.get_logger().error('an imagination did not conclude in time; its client gets no result')

    def cleanup_node(self) -> None:
        """Release the network."""
        if self.loop is not None:
            self.loop.close()
        self.loop = self.dynamics = self._contract = self._inputs = self._records = self._newest = self._goals = None
        self._make_judge = None  # it holds the network, too
        self.diagnostics.removeByName('dynamics')

    def clock_jumped(self, backward_s: float) -> None:
        """What was seen, and what was made of it, belongs to another time."""
        self._forget()
        if self.loop is not None:
            self.loop.reset()

    def _forget(self) -> None:
        """What was seen, shown and decided so far belongs to another time."""
        self._frames.clear()
        self._played.clear()
        self._newest = None
        if self._inputs is not None:
            self._inputs.clear()

    def _load_calibration(self, fingerprint: str, contract: Contract) -> Calibration | None:
        path, self._calibration = self.parameters['calibration'], ''
        if not path:
            self.get_logger().warning('no calibration: scores are told, and every verdict is unknown')
            return None
        found = Calibration.load(Path(path).expanduser())
        problems = found.differences(checkpoint=fingerprint, contract=contract.fingerprint, monitors=str(VERSION))
        if problems:
            raise InvalidInput(f'calibration {path}', problems)
        self._calibration = found.fingerprint
        return found

    def _warm_up(self, contract: Contract) -> None:
        """Judge grey pictures once on the cheapest rung: what the others take is estimated from it."""
        began = time.monotonic()
        loop, ladder = configured(self.loop), rungs(self.parameters['ladder'])
        count, grippers = contract.timing.chunk_rows, len(contract.robot.grippers)
        lower, upper = np.zeros(len(contract.robot.joints)), np.full(len(contract.robot.joints), 0.1)
        rows = np.linspace(lower, upper, count)
        closed = np.zeros((count, grippers)) if grippers > 1 else np.zeros(count)
        seen = grey_observation(contract)
        proposal = Proposal(0, seen.images, lower, rows, closed, seen.instruction, observation=seen)

        def judge(_over: Any) -> None:
            for _ in range(2):  # the first one allocates and compiles
                loop.judge.reset()
                since = time.monotonic()
                loop.judge.judge(proposal, ladder[-1])
                spent = time.monotonic() - since
            loop.times.add(ladder[-1], spent)
            loop.judge.reset()

        loop.run(judge).result()
        self.get_logger().info(f'warmed up in {time.monotonic() - began:.1f} s')

    # Inputs

    def _open_inputs(self, contract: Contract) -> None:
        heard = self.subscribe(ActionChunk, 'policy/chunk', self._on_chunk, qos.status(), self.control_group)
        self._chunk_topic = heard.topic_name
        self.subscribe(ChunkDecision, 'guard/decision', self._on_decision, qos.status(), self.control_group)
        self.subscribe(GuardStatus, 'guard/status', self._on_guard, qos.latched(), self.control_group)
        if self.parameters['observations'] == 'policy':
            return
        self._inputs = Inputs(contract, Timeline.HEADER, needs_joints=True, image_depth=DEPTH)
        states = MutuallyExclusiveCallbackGroup()
        for name, terms in contract.views.streams.items():
            self.subscribe(Image, terms.topic, partial(self._on_image, name, terms.topic), qos.sensor())
        if contract.state.joint_states is not None:
            topic = contract.state.joint_states.topic
            read = joint_state_reader(contract, topic, True)
            self.subscribe(JointState, topic, partial(self._on_state, JOINT_STATES, read), qos.sensor(50), states)
        for name, terms in pose_streams(contract).items():
            read_pose = partial(message_to_pose, topic=terms.topic)
            self.subscribe(PoseStamped, terms.topic, partial(self._on_state, name, read_pose), qos.sensor(50), states)

    def _on_image(self, name: str, topic: str, message: Image) -> None:
        self._on_state(name, lambda given: image_to_rgb(given, topic), message)

    def _on_state(self, name: str, read: Any, message: Any) -> None:
        inputs = self._inputs
        if inputs is None or not self.active:
            return
        try:
            inputs.push(name, stamp_to_ns(message.header.stamp), self.now_ns(), read(message))
        except ObservationError as error:
            if inputs.reject(name, error):
                self.get_logger().error(f'{name}: message ignored. {error}')

    def _on_chunk(self, message: ActionChunk) -> None:
        loop = self.loop
        if loop is None or not self._accepting:
            return
        pending = Pending(
            message.epoch, message.sequence, stamp_to_ns(message.header.stamp), partial(self._proposal, message)
        )
        self._newest = message
        loop.submit(pending)

    def _on_decision(self, message: ChunkDecision) -> None:
        """Whether a chunk is played as it is; told again when one in progress is slowed."""
        self._played[message.epoch, message.sequence] = message.accepted and message.pace == 1.0
        while len(self._played) > DECISIONS_KEPT:
            self._played.pop(next(iter(self._played)))

    def _on_guard(self, message: GuardStatus) -> None:
        self._guard = message

    def _follows(self, epoch: int, sequence: int) -> bool:
        """Whether the arm has done the chunk before this one, as far as is known; without a guard it is taken to."""
        guard = self._guard
        if guard is None:
            return True
        moves = guard.state == GuardStatus.TRACKING and not guard.dry_run
        return moves and self._played.get((epoch, sequence - 1), False)

    def _proposal(self, message: ActionChunk) -> Proposal:
        """What a chunk is about.

        Raises:
            InvalidInput: The chunk does not fit, or what was seen at its time is not known.
        """
        contract, topic = configured(self._contract), self._chunk_topic
        positions, grippers = chunk_columns(message, contract)
        timed = PROPOSALS.get(topic, message.epoch, message.sequence)
        own = None
        if self._inputs is not None:
            observation = self._seen(message, self._inputs)
        elif timed is not None and timed.observation is not None:
            observation = timed.observation
        else:
            what = 'are not known: no policy of this process has proposed this chunk'
            remedy = 'start dynamics with the policy, or set observations to topics'
            raise InvalidInput('proposal', [Problem('observations', what, remedy=remedy)])
        if timed is not None and timed.chunk.imagined is not None:
            own = timed.chunk.latents
        return Proposal(
            stamp_to_ns(message.header.stamp),
            observation.images,
            measured_joints(observation, positions.shape[1]),
            positions,
            grippers,
            message.instruction,
            own,
            observation,
            moment=max(0, message.sequence - 1),
            follows=self._follows(message.epoch, message.sequence),
        )

    def _seen(self, message: ActionChunk, inputs: Inputs) -> Observation:
        found = inputs.observed_at(stamp_to_ns(message.header.stamp), message.instruction)
        if not isinstance(found[0], Observation):
            problems = [
                Problem('observations', inputs.explain(item)) for item in found if not isinstance(item, Observation)
            ]
            raise InvalidInput('proposal', problems)
        return found[0]

    # Outputs

    def _open_outputs(self, fps: float) -> None:
        self._verdicts = self.advertise(Verdict, '~/verdict', qos.status())
        self._imagined = self.advertise(Image, '~/imagined', qos.sensor(5))
        self._writer = ImageWriter('imagined')
        self.create_timer(
            1.0 / fps,
            self._show_next,
            callback_group=MutuallyExclusiveCallbackGroup(),
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        group = MutuallyExclusiveCallbackGroup()  # it takes long
        self.create_service(JudgeEpisode, '~/judge_episode', self._judge_episode, callback_group=group)
        self._goals = GoalServer(self, Imagine, 'imagine', self._imagine, self._on_goal)

    def _tell(self, told: Told) -> None:
        """On the loop's thread, or on that of a newer chunk."""
        if not self.active:
            return
        values, contract = self.parameters, configured(self._contract)
        message = verdict_message(told, self.now_ns(), values['budget_s'], contract.name, self._calibration)
        self._verdicts.publish(message)
        if self._records is not None:
            self._records.add(message)
        judgement, loop = told.judgement, self.loop
        wanted = values['show'] == ALWAYS or (values['show'] == OBJECTIONS and judgement.crossed)
        if wanted and judgement.rollout is not None and told.proposal is not None and loop is not None:
            stamp, rollout = told.proposal.stamp_ns, judgement.rollout
            loop.run(lambda _over: self._show(rollout, stamp)).add_done_callback(self._report_failure)

    def _show(self, rollout: Rollout, stamp_ns: int) -> None:
        """Decode a rollout and put its frames in line, in place of those that have not been shown yet."""
        dynamics = self.dynamics
        if dynamics is None or not self._accepting:
            return
        step_ns = round(1e9 / dynamics.terms.fps)
        frames = [(stamp_ns + number * step_ns, frame) for number, frame in enumerate(rollout.frames)]
        self._frames = deque(frames)

    def _show_next(self) -> None:
        frames = self._frames
        if not frames or not self.active:
            return
        stamp_ns, frame = frames.popleft()
        self._imagined.publish(self._writer.fill(frame, ns_to_stamp(stamp_ns)))

    def _report_failure(self, done: Future[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None and not isinstance(error, Cancelled):
            self._report_error(f'a rollout could not be shown: {error}', error)

    def _report_error(self, text: str, error: BaseException) -> None:
        self.get_logger().error(f'{text}\n{"".join(traceback.format_exception(error))}')

    def _report_dynamics(self, stat: diagnostics.DiagnosticStatusWrapper) -> diagnostics.DiagnosticStatusWrapper:
        loop = self.loop
        if loop is None:
            stat.summary(diagnostics.STALE, 'not configured')
            return stat
        known = sum(count for decision, count in loop.counts.items() if decision.value)
        unknown = sum(loop.counts.values()) - known
        late = unknown > known
        stat.summary(
            diagnostics.WARN if late else diagnostics.OK,
            f'{known} chunks judged, {unknown} unknown' + ('' if self._calibration else '; not calibrated'),
        )
        for decision, count in loop.counts.items():
            stat.add(decision.name, count)
        for name, seconds in loop.times.table().items():
            stat.add(f'rung {name} [ms]', f'{seconds * 1e3:.0f}')
        return stat

    # Action and service

    def _on_goal(self, goal: Imagine.Goal) -> GoalResponse:
        try:
            if not self._accepting:
                raise InvalidInput('imagine', [Problem('node', 'is not active')])
            if self._goals is not None and not self._goals.idle.is_set():
                raise InvalidInput('imagine', [Problem('goal', 'has to wait: another one is under way')])
            self._wanted(goal)
        except CosmosError as error:
            self.get_logger().error(f'imagine goal refused: {error}')
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _wanted(self, goal: Imagine.Goal) -> ActionChunk:
        """The chunk that a goal means.

        Raises:
            InvalidInput: There is none, or it does not fit; or the node keeps no videos.
        """
        problems = []
        if goal.save and self._records is None:
            problems.append(Problem('save', 'has no place', '', '', 'set record_directory'))
        if not goal.chunk.rows and self._newest is None:
            problems.append(Problem('chunk', 'has no rows, and none has been proposed'))
        if problems:
            raise InvalidInput('imagine', problems)
        if not goal.chunk.rows and self._newest is not None:
            return self._newest
        chunk_columns(goal.chunk, configured(self._contract))
        return goal.chunk

    def _imagine(self, handle: ServerGoalHandle) -> Imagine.Result:
        loop, began = self.loop, time.monotonic()
        if loop is None or not self._accepting:
            handle.abort()
            return Imagine.Result(text='the dynamics node was deactivated')
        try:
            result = loop.run(partial(self._imagined_goal, handle)).result()
            handle.succeed()
        except Cancelled:
            (handle.canceled if handle.is_cancel_requested else handle.abort)()
            result = Imagine.Result(text='given up')
        except CosmosError as error:
            handle.abort()
            result = Imagine.Result(text=str(error))
        result.duration = duration(time.monotonic() - began)
        return result

    def _imagined_goal(self, handle: ServerGoalHandle, over: Any) -> Imagine.Result:
        """On the loop's thread."""
        goal, loop, dynamics = handle.request, configured(self.loop), configured(self.dynamics)
        chunk = self._wanted(goal)
        proposal = self._proposal_of_goal(goal, chunk)
        rollout = dynamics.with_terms(steps=FULL.steps).imagine(
            proposal.views,
            loop.judge.rows(proposal),
            goal.instruction or chunk.instruction,
            goal.seed,
            cancelled=lambda: over() or handle.is_cancel_requested or not self._accepting,
            progress=lambda done, windows: handle.publish_feedback(Imagine.Feedback(done=done, windows=windows)),
        )
        self._show(rollout, proposal.stamp_ns)
        video = ''
        if goal.save and self._records is not None:
            video = str(self._records.keep(rollout, chunk, dynamics.terms.fps))
        text = f'{len(rollout.rows)} rows of chunk {chunk.epoch}/{chunk.sequence}'
        return Imagine.Result(success=True, text=text, frames=len(rollout.frames), video=video)

    def _proposal_of_goal(self, goal: Imagine.Goal, chunk: ActionChunk) -> Proposal:
        """A chunk of somebody else's begins with what was seen last."""
        newest = PROPOSALS.newest(self._chunk_topic)
        if goal.chunk.rows and self._inputs is None and newest is not None and newest.observation is not None:
            positions, grippers = chunk_columns(chunk, configured(self._contract))
            joints = measured_joints(newest.observation, positions.shape[1])
            return Proposal(newest.stamp_ns, newest.observation.images, joints, positions, grippers, chunk.instruction)
        return self._proposal(chunk)

    def _judge_episode(self, request: JudgeEpisode.Request, response: JudgeEpisode.Response) -> JudgeEpisode.Response:
        loop = self.loop
        if loop is None or not self._accepting:
            response.text = 'the node is not active'
            return response
        try:
            response.verdicts = loop.run(partial(self._judged_episode, request)).result()
        except CosmosError as error:
            response.text = str(error)
            return response
        except Exception as error:  # rclpy would end the process for it, and the policy with it
            self._report_error(f'{request.episode} could not be judged: {error}', error)
            response.text = f'{type(error).__name__}: {error}'
            return response
        names = [message.decision_name for message in response.verdicts]
        counts = ', '.join(f'{names.count(name)} {name}' for name in dict.fromkeys(names))
        response.success, response.text = True, f'{len(names)} chunks: {counts or "none"}'
        return response

    def _judged_episode(self, request: JudgeEpisode.Request, over: Any) -> list[Verdict]:
        """On the loop's thread, with the best rung of the ladder and without a limit of time."""
        loop, contract, dynamics = configured(self.loop), configured(self._contract), configured(self.dynamics)
        found: list[Verdict] = []
        judge = configured(self._make_judge)()  # that of the loop is in the middle of another run
        stand_ins = read_video_map(tuple(filter(None, request.video_map.split(','))))
        with open_recording(request.episode, stand_ins) as recording:
            check_recording(recording, contract, dynamics.terms)
            proposals = recorded_proposals(recording, contract, dynamics.terms, request.stride)
            for number, proposal in enumerate(proposals):
                if request.chunks and number >= request.chunks:
                    break
                judgement = judge.judge(
                    proposal,
                    loop.ladder[0],
                    self.parameters['seed'],
                    cancelled=lambda: over() or not self._accepting,
                )
                told = Told(Pending(0, number + 1, proposal.stamp_ns), judgement, judgement.seconds, proposal)
                found.append(verdict_message(told, self.now_ns(), 0.0, contract.name, self._calibration))
        return found
