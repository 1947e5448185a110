"""The loop of a running policy: observe, infer, hand over the chunk, wait until it is time for the next.

It runs on a thread of its own, so that inference never blocks a callback, and knows nothing of ROS: time comes from a
function, chunks leave through another.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cosmos3_ros.continuation import Continuation, Delays, Plan
from cosmos3_ros.inputs import Inputs, pose_streams
from cosmos3_ros.streams import Missing, Snapshot
from engine.contract import Contract
from engine.errors import CosmosError, InvalidInput, ObservationError, Problem, ServerUnavailable
from engine.policy_observation import Observation, PolicyChunk
from engine.sampler import request_seeds
from engine.turns import Cancelled

WAIT_S = 0.02
"""Longest sleep between looks at the inputs; new data wakes the loop earlier."""
LATENCIES_KEPT = 256
DECISION_S = 0.05
"""Longest wait for the guard's word on the last chunk before the next one that is to continue it."""


class End(Enum):
    """Why a run ended; values are those of `RunPolicy.action`."""

    TIME_LIMIT = 1
    CANCELED = 2
    STOPPED_BY_GUARD = 3
    STALE_INPUT = 4
    POLICY_ERROR = 5
    DEACTIVATED = 6


class Phase(Enum):
    """What a run is doing."""

    WAITING = 'waiting for inputs'
    NO_SERVER = 'waiting for the policy server'
    INFERRING = 'inferring'
    EXECUTING = 'executing'


@dataclass(frozen=True)
class TimedChunk:
    """A chunk with the observation time it counts from.

    Attributes:
        stamp_ns: Reference time of its observation.
        epoch: Count of resets.
        sequence: Place within the epoch, from 1.
        chunk: The actions.
        spread_ns: Time between the oldest and the newest sample behind it.
        frame_id: Frame in which the end-effector poses were measured; empty if none was.
        committed: Leading rows that were given to the policy, to be continued by the others.
        observation: What it was made from.
    """

    stamp_ns: int
    epoch: int
    sequence: int
    chunk: PolicyChunk
    spread_ns: int
    frame_id: str = ''
    committed: int = 0
    observation: Observation | None = None


@dataclass
class Run:
    """One instruction being followed. Fields are written by the loop and read by anybody.

    Attributes:
        instruction: Words.
        started_ns: When it began; moves along if the clock is set back. None while nobody has heard a simulated clock.
        limit_ns: Length after which it ends by itself; 0 means never.
        doing: What it is doing, and the inputs that it waits for, or the policy server, each with the reason; both at
            once, so that nobody reads the one of now with the other of a moment ago.
        text: Why it ended.
        chunks: Chunks handed over so far.
        end: Why it ended, or None.
        ended: Set together with `end`.
        seeds: Seeds of the chunks to come.
        greeted: Whether a policy that runs elsewhere has been told that something new begins.
        gone_since_ns: Since when the policy's server is gone, on the steady clock; None while it answers.
    """

    instruction: str
    started_ns: int | None
    limit_ns: int
    doing: tuple[Phase, tuple[str, ...]] = (Phase.WAITING, ())
    text: str = ''
    chunks: int = 0
    end: End | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    seeds: Iterator[int] = field(default_factory=request_seeds)
    greeted: bool = False
    gone_since_ns: int | None = None

    def lasted_ns(self, now_ns: int) -> int:
        """How long it has been going on."""
        return 0 if self.started_ns is None else max(0, now_ns - self.started_ns)

    @property
    def phase(self) -> Phase:
        """What it is doing."""
        return self.doing[0]

    @property
    def missing(self) -> tuple[str, ...]:
        """What it waits for."""
        return self.doing[1]


@dataclass(frozen=True)
class LoopOptions:
    """How a run is paced.

    Attributes:
        replan_rows: Rows between the observations of successive chunks.
        execute_rows: Rows of each chunk that are handed over, its horizon; 0 means all.
        continue_chunks: Whether a chunk continues the rows that are executed while it is computed.
        input_timeout_ns: How long inputs may stay missing or stale before the run is given up.
        server_timeout_ns: How long a policy that runs elsewhere may be gone before the run is given up.
        seed: Base of a run's seeds; each chunk takes the next one, as NVIDIA's policy server draws them.
        fixed_seed: Whether every chunk uses `seed` itself.
    """

    replan_rows: int = 8
    execute_rows: int = 0
    continue_chunks: bool = False
    input_timeout_ns: int = 5_000_000_000
    server_timeout_ns: int = 30_000_000_000
    seed: int = 0
    fixed_seed: bool = False


class Latencies:
    """Seconds per stage over the newest inferences; written by the loop's thread, read by any."""

    def __init__(self) -> None:
        """Start empty; `latest` is the total of the newest inference."""
        self._kept: dict[str, deque[float]] = {}
        self._lock = threading.Lock()
        self.latest = 0.0

    def add(self, seconds: Mapping[str, float]) -> None:
        """Record one inference."""
        with self._lock:
            for stage, value in seconds.items():
                self._kept.setdefault(stage, deque(maxlen=LATENCIES_KEPT)).append(value)
        self.latest = seconds.get('total', 0.0)

    def percentiles(self) -> dict[str, tuple[float, float]]:
        """Median and 95th percentile of each stage [s]."""
        with self._lock:
            kept = {stage: list(values) for stage, values in self._kept.items()}
        found = {stage: np.percentile(values, (50, 95)) for stage, values in kept.items()}
        return {stage: (float(p50), float(p95)) for stage, (p50, p95) in found.items()}


class LoopPolicy(Protocol):
    """A policy as the loop sees it: :class:`engine.policy.Policy`, or one that runs elsewhere."""

    contract: Contract

    def infer(
        self,
        observation: Observation,
        seed: int,
        cancelled: Callable[[], bool],
        committed: NDArray[np.floating] | None,
    ) -> PolicyChunk:
        """One chunk."""

    def check_instruction(self, instruction: str) -> None:
        """Raise what speaks against following an instruction."""


class PolicyLoop:
    """Owns the worker thread and at most one :class:`Run`.

    Attributes:
        outage: Why a policy that runs elsewhere could not be asked the last time; empty if it could.
    """

    def __init__(
        self,
        policy: LoopPolicy,
        inputs: Inputs,
        now_ns: Callable[[], int],
        on_chunk: Callable[[TimedChunk], None],
        on_error: Callable[[str, BaseException], None],
        options: LoopOptions = LoopOptions(),
        record: Callable[[TimedChunk], None] = lambda _timed: None,
        translate: Callable[[PolicyChunk, Observation], PolicyChunk] | None = None,
        on_running: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the thread, idle.

        Args:
            policy: The loaded policy.
            inputs: Buffers that callbacks fill; call :meth:`wake` after a push.
            now_ns: The node's clock.
            on_chunk: Receives each chunk, on the loop's thread; never one of a run that has ended. Must be brief.
            on_error: Receives a sentence and the exception of a failed inference, on the loop's thread.
            options: May be replaced at any time through :attr:`options`.
            record: Receives each chunk after `on_chunk`, and may take its time.
            translate: Puts the rows of each chunk into the robot's terms; one that it refuses with InvalidInput is
                reported through `on_error` and goes no further.
            on_running: Called, on the loop's thread, when a run that waited begins to infer. A guard follows none but a
                running policy, and a fast one has its chunk before the next status is due.
        """
        self.policy = policy
        self.inputs = inputs
        self.options = options
        self.latencies = Latencies()
        self.continuation = Continuation()
        self.delays = Delays()
        self.epoch = 0
        self.sequence = 0
        self.chunks = 0
        self.run: Run | None = None
        self._now_ns = now_ns
        self._on_chunk = on_chunk
        self._on_error = on_error
        self._record = record
        self._translate = translate
        self._on_running = on_running
        self.outage = ''
        self._generation = 0
        self._guard_epoch = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name='policy', daemon=True)
        self._thread.start()

    def begin(self, instruction: str, limit_ns: int = 0) -> Run:
        """Start following an instruction; a new epoch begins.

        Args:
            instruction: Words.
            limit_ns: End by itself after this time; 0 means never.

        Raises:
            CosmosError: A run is already under way.
        """
        with self._changed:
            if self.run is not None and self.run.end is None:
                raise CosmosError(f'already following {self.run.instruction!r}: cancel it first')
            now = self._now_ns()
            self.run = Run(instruction, now or None, limit_ns, seeds=request_seeds(self.options.seed))
            self.delays.restart()
            self._new_epoch(now)
            self._changed.notify_all()
            return self.run

    def _new_epoch(self, now_ns: int = 0) -> None:
        """Void all earlier chunks. Epochs follow the clock, so they also grow across restarts of this process.

        They do not where the clock was set back. So a new epoch is always later than that of the guard, which may have
        seen chunks of its own epoch from a process before this one, with higher numbers.
        """
        self.epoch = max(self.epoch, self._guard_epoch, (now_ns // 1_000_000_000 & 0xFFFFFFFF) - 1) + 1
        self.sequence = 0
        self.continuation.forget()

    def follow_epoch(self, epoch: int) -> None:
        """The guard has begun `epoch` and refuses chunks of earlier ones: from now on make chunks of a later one."""
        with self._changed:
            if epoch <= max(self.epoch, self._guard_epoch):
                return
            self._guard_epoch = epoch
            if self.run is not None and self.run.end is None:
                self._new_epoch()

    def clock_jumped(self, backward_ns: int) -> None:
        """The clock went back: what was seen belongs to another time, and so does a chunk that is being made."""
        with self._changed:
            self.inputs.clear()
            if self.run is not None and self.run.started_ns is not None:
                self.run.started_ns -= backward_ns
            self._new_epoch()
            self._changed.notify_all()

    def reset(self) -> None:
        """Begin a new life, as on activation: no inputs, no run, no chunks. A run must not be under way."""
        with self._changed:
            self.inputs.clear()
            self.run = None
            self.chunks = 0

    def finish(self, end: End, text: str) -> None:
        """End the present run, if there is one. Inference under way is given up at its next step."""
        with self._changed:
            run = self.run
            if run is None or run.end is not None:
                return
            run.end, run.text = end, text
            run.ended.set()
            self._changed.notify_all()

    def wake(self) -> None:
        """Tell the loop that inputs have arrived."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """End the run and the thread; returns once inference has stopped."""
        self.finish(End.DEACTIVATED, 'the policy was shut down')
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while not self._closing:
            run = self.run
            if run is None or run.end is not None:
                self._sleep()
                continue
            if not self._on_time(run):
                self._sleep()
                continue
            try:
                self._follow(run)
            except Exception as error:
                self._on_error(f'the policy failed while following {run.instruction!r}: {error}', error)
                self.finish(End.POLICY_ERROR, str(error))

    def _on_time(self, run: Run) -> bool:
        """Whether there is a time at all. Simulated time is 0 until /clock is heard; a run from before begins then."""
        with self._changed:
            now = self._now_ns()
            if run.started_ns is None and now:
                run.started_ns = now
                self._new_epoch(now)
            if run.started_ns is None:
                run.doing = Phase.WAITING, ('/clock: nothing was received yet',)
            return run.started_ns is not None

    def _follow(self, run: Run) -> None:
        """Serve one run to its end."""
        due_ns = newest_ns = 0
        waiting_since_ns: int | None = None
        while not self._over(run):
            now = self._now_ns()
            if now < newest_ns:  # the clock was set back: what was newest lies in another time
                due_ns = newest_ns = 0
            if now < due_ns:
                self._sleep((due_ns - now) / 1e9)
                continue
            epoch = self.epoch
            if self.options.continue_chunks:
                self.continuation.settle(DECISION_S)
            found = self.inputs.observe(now, run.instruction)
            if not isinstance(found[0], Observation):
                waiting_since_ns = waiting_since_ns or time.monotonic_ns()
                self._wait_for_inputs(run, found, waiting_since_ns)
                continue
            waiting_since_ns = None
            observation, snapshot = found
            if snapshot.reference_ns < due_ns:  # better a fresh frame in a moment than the one before it now
                self._sleep()
                continue
            newest_ns = snapshot.reference_ns
            self._infer(run, observation, snapshot, epoch)
            due_ns = newest_ns + self._replan_ns()

    def _replan_ns(self) -> int:
        """Smallest time between two observations: half a row less than asked for, as frames do not come on the dot."""
        return round((self.options.replan_rows - 0.5) * self.policy.contract.timing.step_s * 1e9)

    def _over(self, run: Run) -> bool:
        """Whether the run has ended; ends it if its time is up."""
        if run.end is None and run.limit_ns and run.lasted_ns(self._now_ns()) >= run.limit_ns:
            self.finish(End.TIME_LIMIT, f'ran for {run.limit_ns / 1e9:g} s')
        return run.end is not None or self._closing

    def _infer(self, run: Run, observation: Observation, snapshot: Snapshot, epoch: int) -> None:
        committed = self._committed(snapshot.reference_ns)
        chunk = self._asked(run, observation, epoch, committed)
        if chunk is None:
            return
        self.latencies.add(chunk.seconds)
        try:
            frame_id = self._frame_id(snapshot)
            if self._translate is not None:
                chunk = self._translate(chunk, observation)
        except InvalidInput as error:
            self._on_error(f'a chunk is dropped: {error}', error)
            return
        self.delays.add((self._now_ns() - snapshot.reference_ns) / 1e9)
        if self.options.execute_rows:
            chunk = replace(chunk, actions=chunk.actions[: self.options.execute_rows])
        with self._changed:
            if self._over(run) or epoch != self.epoch:
                return
            if self._is_of_a_new_connection(chunk):
                self._new_epoch(self._now_ns())
            self.sequence += 1
            self.chunks += 1
            run.chunks += 1
            run.doing = Phase.EXECUTING, ()
            timed = TimedChunk(
                snapshot.reference_ns,
                self.epoch,
                self.sequence,
                chunk,
                snapshot.spread_ns,
                frame_id,
                0 if committed is None else len(committed),
                observation,
            )
            self.continuation.sent(self.epoch, self.sequence, Plan(timed.stamp_ns, self._step_ns, chunk.actions))
            self._on_chunk(timed)
        self._record(timed)

    def _asked(
        self, run: Run, observation: Observation, epoch: int, committed: NDArray[np.float64] | None
    ) -> PolicyChunk | None:
        """What the policy answers; None if it was given up, or runs elsewhere and cannot be reached."""
        # While a server is gone the run waits for it: a policy that only tries is none that is running.
        waited = run.phase not in (Phase.INFERRING, Phase.EXECUTING)
        run.doing = (Phase.NO_SERVER, (self.outage,)) if self.outage else (Phase.INFERRING, ())
        if waited and not self.outage:
            self._on_running()
        seed = self.options.seed if self.options.fixed_seed else next(run.seeds)

        def given_up() -> bool:
            return self._over(run) or epoch != self.epoch

        try:
            self._greet(run, given_up)
            chunk = self.policy.infer(observation, seed, given_up, committed)
        except Cancelled:
            return None
        except ServerUnavailable as error:
            self._wait_for_server(run, error)
            return None
        was_gone, self.outage, run.gone_since_ns = bool(self.outage), '', None
        run.doing = Phase.INFERRING, ()
        if was_gone:
            self._on_running()
        return chunk

    def _greet(self, run: Run, cancelled: Callable[[], bool]) -> None:
        """Have a policy that runs elsewhere forget what was before this run."""
        forget = getattr(self.policy, 'reset', None)
        if forget is not None and not run.greeted:
            forget(cancelled)
        run.greeted = True

    def _wait_for_server(self, run: Run, error: ServerUnavailable) -> None:
        """Note why there is no chunk; the run goes on when the server is back, or is given up after a while."""
        now = time.monotonic_ns()
        run.gone_since_ns = run.gone_since_ns or now
        if not self.outage:
            self._on_error(f'the policy server is gone, and is asked again: {error}', error)
        self.outage = f'policy server: {error}'
        run.doing = Phase.NO_SERVER, (self.outage,)
        if now - run.gone_since_ns > self.options.server_timeout_ns:
            self.finish(End.POLICY_ERROR, f'gave up waiting for the {self.outage}')

    def _is_of_a_new_connection(self, chunk: PolicyChunk) -> bool:
        """Whether a server has been reached anew: what it gave before it has forgotten, and so must everybody."""
        before, self._generation = self._generation, getattr(chunk, 'generation', 0)
        return before != self._generation

    def _frame_id(self, snapshot: Snapshot) -> str:
        """The one frame in which all arms were measured: a chunk has room for one."""
        names = [name for name in pose_streams(self.policy.contract) if name in snapshot.samples]
        frames = {name: getattr(snapshot.samples[name].value, 'frame_id', '') for name in names}
        if len(set(frames.values())) > 1:
            given = ', '.join(f'{name} in {frame!r}' for name, frame in frames.items())
            problem = Problem('end_effector', 'is given in several frames', given, 'one frame for all arms')
            raise ObservationError('observation', [problem])
        return next(iter(frames.values()), '')

    def _committed(self, stamp_ns: int) -> NDArray[np.float64] | None:
        """Rows that will be executed while the chunk of an observation is computed."""
        if not self.options.continue_chunks:
            return None
        return self.continuation.rows(stamp_ns, self.delays.expected, self.policy.contract.timing.chunk_rows)

    @property
    def _step_ns(self) -> int:
        return round(self.policy.contract.timing.step_s * 1e9)

    def _wait_for_inputs(self, run: Run, missing: tuple[Missing, ...], since_ns: int) -> None:
        """Waiting is measured on the steady clock: a stopped simulation clock must not make it endless."""
        run.doing = Phase.WAITING, tuple(self.inputs.explain(item) for item in missing)
        if time.monotonic_ns() - since_ns > self.options.input_timeout_ns:
            self.finish(End.STALE_INPUT, f'gave up waiting for {"; ".join(run.missing)}')
            return
        self._sleep()

    def _sleep(self, seconds: float = WAIT_S) -> None:
        with self._changed:
            if not self._closing:
                self._changed.wait(min(max(seconds, 0.001), WAIT_S))
