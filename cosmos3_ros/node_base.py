"""What every node of this package has in common: a lifecycle that explains its failures, and a clean end.

A node derives from :class:`CosmosLifecycleNode` and fills in the five hooks. A program is one call of :func:`spin`.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import rclpy
import rclpy.exceptions
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import ChangeState
from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.event_handler import UnsupportedEventTypeError
from rclpy.exceptions import InvalidHandle
from rclpy.executors import MultiThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleNodeMixin, LifecyclePublisher, LifecycleState
from rclpy.lifecycle import TransitionCallbackReturn as Outcome
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.service import Service
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription

from cosmos3_ros import diagnostics, qos
from cosmos3_ros.middleware_events import QuietEvents
from cosmos3_ros.parameters import Parameter, ParameterSet
from cosmos3_ros.process import StopRequest, answer_signals, leave, stop_grace_s
from engine.errors import CosmosError

RCLError = rclpy_implementation.RCLError  # rclpy has no public name for it

EXIT_OK = 0
EXIT_FAILED = 1  # something went wrong that should not have
EXIT_USAGE = 2  # arguments or parameters are wrong

SWITCH_INTERVAL_S = 1e-4
"""Longest turn of a Python thread that others wait for; Python's own 5 ms are half the period of a 100 Hz tick.

A callback gives up its turn at every message it sends and at many NumPy calls, and has to win it back each time from
the executor's thread, which is busy with Python code. `benchmarks/control_period.py` compares both settings.
"""

EVENT_PERIOD_S = 0.25
"""How often a node looks for events of the middleware."""

_ACKNOWLEDGE_S = 0.2  # how long to wait for the acknowledgement of the last commands

_LAST_CALLBACKS_S = 0.5  # how long callbacks that run at the end may take

_AUTOSTART = Parameter(
    'autostart',
    False,
    'Configure and activate by itself after the start, once; a failure leaves it to others to retry.',
)


class CountingPublisher(LifecyclePublisher):
    """A lifecycle publisher that counts what it sent and what it dropped because the node was not active."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sent = 0
        self.dropped = 0

    def publish(self, msg: Any) -> None:
        """Publish if the node is active, count it as dropped otherwise."""
        try:
            super().publish(msg)
        except InvalidHandle:  # cleaned up by another thread in this very moment
            self.dropped += 1
            return
        if self.is_activated:
            self.sent += 1
        else:
            self.dropped += 1


class NodeExecutor(MultiThreadedExecutor):
    """A multi-threaded executor that can be ended, and that stands entities being destroyed while they are due.

    In rclpy up to Jazzy, destroying a waitable or cancelling a timer between the moment it is due and the moment it is
    served raises out of the executor and leaves the callback group locked; cleaning up a node that is spinning does
    just that. Shutting an executor down while another thread spins it raises there too.

    It also makes the threads of this process take turns more often, see :data:`SWITCH_INTERVAL_S`.
    """

    def __init__(self, num_threads: int) -> None:
        super().__init__(num_threads=num_threads)
        sys.setswitchinterval(min(SWITCH_INTERVAL_S, sys.getswitchinterval()))
        self._ending = threading.Event()

    def spin(self) -> None:
        """Serve what is due until :meth:`end` or the shutdown of ROS; raises what a callback raised."""
        while self.context.ok() and not self._ending.is_set():
            try:
                self._spin_once_impl(None, self._ending.is_set)
            except (InvalidHandle, RCLError) as error:
                # rclpy leaves a destroyed waitable out of what it counts, not out of what it waits for; actions then
                # raise an RCLError. It is left out of the next round.
                if isinstance(error, RCLError) and 'pointer is invalid' not in str(error):
                    raise
                get_logger('cosmos3_ros').debug(f'destroyed while it was waited for: {error}')

    def end(self, spinning: threading.Thread) -> None:
        """Make :meth:`spin` return, and wait for the thread `spinning` that called it, and for callbacks that run."""
        self._ending.set()
        self.wake()
        spinning.join()
        self._work_tracker.wait(_LAST_CALLBACKS_S)
        self.shutdown()

    def _take_timer(self, tmr: Any) -> Any:
        try:
            return super()._take_timer(tmr)
        except RCLError:
            if tmr.is_canceled():
                return None
            raise

    def _take_waitable(self, waitable: Any) -> Any:
        try:
            execute = super()._take_waitable(waitable)
        except InvalidHandle:
            return None

        async def execute_unless_destroyed() -> None:
            with contextlib.suppress(InvalidHandle):
                await execute()

        return execute_unless_destroyed


class CosmosLifecycleNode(QuietEvents, LifecycleNode):
    """A managed node whose transitions say why they failed.

    Fill in the hooks; each may raise. A :class:`~engine.errors.CosmosError` is the user's to mend: its text is logged
    and the transition *fails*, so that it can be tried again. Anything else is a defect: it is logged with its
    traceback and the transition is an *error*. (rclpy up to Jazzy swallows exceptions here.)

    ==================  ============================================================================================
    `configure_node`    read parameters, load, create publishers, subscriptions, timers, services, action servers
    `activate_node`     clear buffers, arm watchdogs; publishers are on already
    `deactivate_node`   end goals, then send the stop command, last of all; publishers are still on
    `cleanup_node`      release memory and devices; what `configure_node` created in ROS is destroyed by the base
    `shutdown_node`     release what belongs to the whole life of the node
    ==================  ============================================================================================

    `deactivate_node` and `cleanup_node` also run when the step before them failed half-way, and when the node is shut
    down from any state: they must cope with what is not there.

    Attributes:
        sensor_group: Callback group for subscriptions; its callbacks run one at a time, as in the next two.
        control_group: Callback group for control ticks and watchdogs.
        service_group: Callback group for services and actions.
        diagnostics: Where to add what goes on `/diagnostics`.
        topic_events: What the middleware reported, for each topic.
        last_failure: Why the last transition failed; empty if it did not.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        """Start unconfigured; `kwargs` go to :class:`rclpy.node.Node`."""
        # LifecycleNode.__init__ of Jazzy cannot pass a callback group on: its services would share the default one, and
        # a long configure would block all others in it. Reentrant: the state can be asked for during a transition.
        self._serving = threading.Lock()  # of QuietEvents, whose constructor is passed over with it
        self._turn = 0
        Node.__init__(self, name, **kwargs)
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self.sensor_group: CallbackGroup = MutuallyExclusiveCallbackGroup()
        self.control_group: CallbackGroup = MutuallyExclusiveCallbackGroup()
        self.service_group: CallbackGroup = MutuallyExclusiveCallbackGroup()
        self.topic_events: dict[str, qos.TopicEvents] = {}
        self.last_failure = ''
        self._counting_publishers: list[CountingPublisher] = []
        self._permanent_entities: set[int] | None = None
        self._transition_lock = threading.Lock()
        self._configured = False
        self._active = False
        self._serve_transitions_one_at_a_time()
        self._base_parameters = ParameterSet(self, [_AUTOSTART])
        self.diagnostics = diagnostics.Updater(self)
        self.diagnostics.setHardwareID(self.get_fully_qualified_name())
        self.diagnostics.add('lifecycle', self._report_lifecycle)
        self.diagnostics.add('middleware', self._report_middleware)
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True)
        self._jump_handle = self.get_clock().create_jump_callback(threshold, post_callback=self._on_clock_jump)
        # By the steady clock: also while simulated time stands still.
        self.create_timer(
            EVENT_PERIOD_S,
            self.serve_events,
            callback_group=MutuallyExclusiveCallbackGroup(),
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        self._autostart_timer = self._schedule_autostart()

    # Hooks

    def configure_node(self) -> None:
        """Get ready; see the class."""

    def activate_node(self) -> None:
        """Start working; see the class."""

    def deactivate_node(self) -> None:
        """Stop working; the last thing published must leave the robot at rest. See the class."""

    def cleanup_node(self) -> None:
        """Undo `configure_node`; see the class."""

    def shutdown_node(self) -> None:
        """Release what is left; see the class."""

    def clock_jumped(self, backward_s: float) -> None:
        """The node's clock went back by `backward_s` seconds, or changed between wall and simulated time (then 0).

        Clear what is ordered by time. Runs inside a callback of the clock: be brief.
        """

    # State

    @property
    def active(self) -> bool:
        """Whether the node is active."""
        return self._active

    @property
    def state_label(self) -> str:
        """Name of the present lifecycle state."""
        return str(self._state_machine.current_state[1])

    def now_ns(self) -> int:
        """Present time of the node's clock (simulated if `use_sim_time` is set), in nanoseconds."""
        return int(self.get_clock().now().nanoseconds)

    # Making publishers and subscriptions

    def advertise(
        self, message_type: type, topic: str, profile: QoSProfile, group: CallbackGroup | None = None
    ) -> CountingPublisher:
        """Create a publisher that is open only while the node is active; middleware events are counted and logged."""
        events = self._events_of(topic)
        arguments = {
            'callback_group': group or self.service_group,
            'qos_overriding_options': QoSOverridingOptions.with_default_policies(),
            'publisher_class': CountingPublisher,
        }
        try:
            callbacks = qos.publisher_events(events, self.get_logger())
            publisher = Node.create_publisher(
                self, message_type, topic, profile, event_callbacks=callbacks, **arguments
            )
        except UnsupportedEventTypeError:
            publisher = Node.create_publisher(self, message_type, topic, profile, **arguments)
        self.add_managed_entity(publisher)
        self._counting_publishers.append(publisher)
        return publisher

    def subscribe(
        self,
        message_type: type,
        topic: str,
        callback: Callable[[Any], None],
        profile: QoSProfile,
        group: CallbackGroup | None = None,
        *,
        raw: bool = False,
    ) -> Subscription:
        """Create a subscription, open in every state; middleware events are counted and logged.

        With `raw` the callback gets messages as the bytes that came over the wire.
        """
        events = self._events_of(topic)
        arguments = {
            'raw': raw,
            'callback_group': group or self.sensor_group,
            'qos_overriding_options': QoSOverridingOptions(qos.OVERRIDABLE),
        }
        try:
            callbacks = qos.subscription_events(events, self.get_logger())
            return self.create_subscription(
                message_type, topic, callback, profile, event_callbacks=callbacks, **arguments
            )
        except UnsupportedEventTypeError:  # not every middleware reports everything
            return self.create_subscription(message_type, topic, callback, profile, **arguments)

    def _events_of(self, topic: str) -> qos.TopicEvents:
        name = self.resolve_topic_name(topic)
        return self.topic_events.setdefault(name, qos.TopicEvents(name))

    @property
    def subscriptions(self) -> Iterator[Subscription]:
        """All subscriptions, every time beginning with another one.

        rclpy serves what is ready in this order, and one callback of a group at a time. In a fixed order the last
        subscription of a group is never served as long as there is always a message for one of those before it, which
        is what a machine that cannot keep up with its cameras looks like.
        """
        found = list(super().subscriptions)
        self._turn += 1
        first = self._turn % len(found) if found else 0
        yield from found[first:] + found[:first]

    # Transitions

    def on_configure(self, state: LifecycleState) -> Outcome:
        """Run `configure_node`; on failure nothing of it is left."""
        if self._permanent_entities is None:
            self._permanent_entities = {id(entity) for entity in self._entities()}
        self._configured = True
        outcome = self._attempt('configure', self.configure_node)
        if outcome is not Outcome.SUCCESS:
            self._undo_configure()
        return outcome

    def on_activate(self, state: LifecycleState) -> Outcome:
        """Open the publishers and run `activate_node`; on failure they are closed again."""
        self._active = True
        super().on_activate(state)
        outcome = self._attempt('activate', self.activate_node)
        if outcome is not Outcome.SUCCESS:
            self._undo_activate(state)
        return outcome

    def on_deactivate(self, state: LifecycleState) -> Outcome:
        """Run `deactivate_node` and close the publishers, also if it fails."""
        return _all_or_error(self._undo_activate(state))

    def on_cleanup(self, state: LifecycleState) -> Outcome:
        """Run `cleanup_node` and destroy what `configure_node` created, also if it fails."""
        return _all_or_error(self._undo_configure())

    def on_shutdown(self, state: LifecycleState) -> Outcome:
        """Go down from any state: deactivate, clean up, shut down, each even if the one before failed."""
        return _all_or_error(*self._release(state), self._attempt('shutdown', self.shutdown_node))

    def on_error(self, state: LifecycleState) -> Outcome:
        """Return to unconfigured if everything can be released, to finalized otherwise."""
        return _all_or_error(*self._release(state))

    def _release(self, state: LifecycleState) -> list[Outcome]:
        return [
            self._undo_activate(state) if self._active else Outcome.SUCCESS,
            self._undo_configure() if self._configured else Outcome.SUCCESS,
        ]

    def _attempt(self, transition: str, hook: Callable[[], None]) -> Outcome:
        self.last_failure = ''
        try:
            hook()
        except CosmosError as error:
            self.last_failure = f'{transition}: {error}'
            self.get_logger().error(f'{transition} failed, mend it and try again: {error}')
            return Outcome.FAILURE
        except Exception as error:  # rclpy would swallow it without a word
            self.last_failure = f'{transition}: {error!r}'
            self.get_logger().error(f'{transition} broke down:\n{traceback.format_exc()}')
            return Outcome.ERROR
        return Outcome.SUCCESS

    def _undo_activate(self, state: LifecycleState) -> Outcome:
        failure = self.last_failure
        outcome = self._attempt('deactivate', self.deactivate_node)
        super().on_deactivate(state)
        self._active = False
        self._await_acknowledgements()
        self.last_failure = failure or self.last_failure
        return outcome

    def _undo_configure(self) -> Outcome:
        failure = self.last_failure
        outcome = self._attempt('cleanup', self.cleanup_node)
        self._destroy_configured_entities()
        self._configured = False
        self.last_failure = failure or self.last_failure
        return outcome

    def _await_acknowledgements(self) -> None:
        """Let the last commands arrive before anything else goes down; their publishers are closed already."""
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        deadline_ns = clock.now().nanoseconds + int(_ACKNOWLEDGE_S * 1e9)
        for publisher in self._counting_publishers:
            left_ns = deadline_ns - clock.now().nanoseconds
            reliable = publisher.qos_profile.reliability == QoSReliabilityPolicy.RELIABLE
            if reliable and publisher.sent and left_ns > 0:
                publisher.wait_for_all_acked(Duration(nanoseconds=left_ns))

    def _entities(self) -> list[Any]:
        groups: Sequence[Iterable[Any]] = (
            self.publishers,
            self.subscriptions,
            self.clients,
            self.services,
            self.timers,
            self.guards,
            self.waitables,
        )
        return [entity for group in groups for entity in group]

    def _destroy_configured_entities(self) -> None:
        """Destroy whatever ROS entities exist beyond those of the unconfigured node."""
        destroyers: dict[str, Callable[[Any], object]] = {
            'publishers': self.destroy_publisher,
            'subscriptions': self.destroy_subscription,
            'clients': self.destroy_client,
            'services': self.destroy_service,
            'timers': self.destroy_timer,
            'guards': self.destroy_guard_condition,
            'waitables': self._destroy_waitable,  # last: publishers and subscriptions own some, action servers are some
        }
        keep = self._permanent_entities or set()
        for kind, destroy in destroyers.items():
            for entity in [entity for entity in getattr(self, kind) if id(entity) not in keep]:
                destroy(entity)
        self._managed_entities.difference_update(self._counting_publishers)
        self._counting_publishers.clear()
        self.topic_events.clear()

    def _destroy_waitable(self, waitable: Any) -> None:
        waitable.destroy()
        if waitable in list(self.waitables):
            self.remove_waitable(waitable)

    def _serve_transitions_one_at_a_time(self) -> None:
        """Guard the transition service: rclpy lets an impossible request end the process, and two run at once."""
        service: Service = self._service_change_state
        serve = service.callback

        def guarded(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
            response.success = False
            if not self._transition_lock.acquire(blocking=False):
                self.get_logger().warning('a transition is in progress; another was refused')
                return response
            try:
                return serve(request, response)
            except Exception as error:  # rclpy raises a bare RCLError for an impossible transition
                wanted = request.transition.label or request.transition.id
                self.get_logger().error(f'transition {wanted} is not possible while {self.state_label}: {error}')
                return response
            finally:
                self._transition_lock.release()

        service.callback = guarded

    def transition(self, name: str, timeout_s: float = -1.0) -> bool:
        """Go through a transition; return whether it succeeded.

        Args:
            name: `configure`, `activate`, `deactivate`, `cleanup` or `shutdown`.
            timeout_s: How long to wait for one that is in progress; negative: as long as it takes.
        """
        if not self._transition_lock.acquire(timeout=timeout_s):
            return False
        try:
            return bool(getattr(self, f'trigger_{name}')() is Outcome.SUCCESS)
        except Exception as error:  # rclpy raises a bare RCLError for an impossible transition
            self.get_logger().error(f'{name} is not possible while {self.state_label}: {error}')
            return False
        finally:
            self._transition_lock.release()

    # Start and end

    def _schedule_autostart(self) -> Any:
        if not self._base_parameters['autostart']:
            return None
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        return self.create_timer(0.0, self._autostart, callback_group=MutuallyExclusiveCallbackGroup(), clock=clock)

    def _autostart(self) -> None:
        self._autostart_timer.cancel()
        if self.state_label == 'unconfigured' and self.transition('configure'):
            self.transition('activate')

    def stop(self, timeout_s: float = -1.0) -> bool:
        """Shut down from whatever state; return whether that succeeded.

        Args:
            timeout_s: How long to wait for a transition that is in progress; negative: as long as it takes.
        """
        if self._autostart_timer is not None:
            self._autostart_timer.cancel()
        if self._state_machine.current_state[0] == State.PRIMARY_STATE_FINALIZED:
            return True
        return self.transition('shutdown', timeout_s)

    def _on_clock_jump(self, jump: Any) -> None:
        # rclpy hands over a dictionary, its documentation promises a TimeJump.
        delta = jump['delta'] if isinstance(jump, dict) else jump.delta
        nanoseconds = delta if isinstance(delta, int) else delta.nanoseconds
        self.clock_jumped(max(0.0, -nanoseconds / 1e9))

    # Diagnostics

    def _report_lifecycle(self, stat: diagnostics.DiagnosticStatusWrapper) -> diagnostics.DiagnosticStatusWrapper:
        if self.last_failure:
            stat.summary(diagnostics.ERROR, f'{self.state_label}: {self.last_failure}')
        else:
            stat.summary(diagnostics.OK, self.state_label)
        return stat

    def _report_middleware(self, stat: diagnostics.DiagnosticStatusWrapper) -> diagnostics.DiagnosticStatusWrapper:
        stat.summary(diagnostics.OK, 'OK')
        for events in list(self.topic_events.values()):
            if events.incompatible:
                stat.mergeSummary(diagnostics.ERROR, f'{events.topic}: incompatible {events.last_incompatible_policy}')
            if events.deadlines_missed or events.messages_lost:
                stat.add(f'{events.topic} lost', events.messages_lost)
                stat.add(f'{events.topic} deadlines missed', events.deadlines_missed)
        for publisher in list(self._counting_publishers):
            if publisher.dropped:
                stat.add(f'{publisher.topic_name} dropped while inactive', publisher.dropped)
        return stat


def _all_or_error(*outcomes: Outcome) -> Outcome:
    """Going down cannot merely fail: that would leave the state machine up with its publishers closed."""
    return Outcome.SUCCESS if all(outcome is Outcome.SUCCESS for outcome in outcomes) else Outcome.ERROR


def configured[T](part: T | None) -> T:
    """`part` of a node, which exists from its configuration to its clean-up.

    Raises:
        RuntimeError: It is asked for outside that time, which is a defect of the caller.
    """
    if part is None:
        raise RuntimeError('the node is not configured')
    return part


NodeFactory = Callable[[], CosmosLifecycleNode | Sequence[CosmosLifecycleNode]]


def spin(
    factory: NodeFactory, *, args: Sequence[str] | None = None, threads: int = 4, grace_s: float | None = None
) -> NoReturn:
    """Run nodes until SIGINT or SIGTERM, and end the process; its whole life.

    The exit code is 0 after a signal, 1 if a callback raised or a node could not be stopped, and 2 if arguments or
    parameters are wrong. On a signal every node is shut down from whatever state it is in, so that its stop command
    goes out. A node that is still configuring when the grace is over is abandoned; nothing of it was moving.

    Args:
        factory: Makes the node, or several that share the process; called after ROS is initialised.
        args: Command line; None: that of the process.
        threads: Threads that run callbacks.
        grace_s: Seconds from the signal to the end of the process; None: :func:`~cosmos3_ros.process.stop_grace_s`.
    """
    grace_s = stop_grace_s() if grace_s is None else grace_s
    leave(_Program(answer_signals(), grace_s).run(factory, args, threads))


class _Program:
    """One run of :func:`spin`."""

    def __init__(self, stop_request: StopRequest, grace_s: float) -> None:
        self.stop_request = stop_request
        self._nodes: list[CosmosLifecycleNode] = []
        self._exit_code = EXIT_OK
        stop_request.take_over(self._late_exit_code, grace_s)

    def run(self, factory: NodeFactory, args: Sequence[str] | None, threads: int) -> int:
        logger = get_logger('cosmos3_ros')
        try:
            rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
            made = factory()
            self._nodes = list(made) if isinstance(made, Sequence) else [made]
        except (CosmosError, rclpy.exceptions.ROSInterruptException) as error:
            logger.fatal(str(error))
            return self._end(EXIT_USAGE)
        except Exception:  # whatever it is, it ends the program and must be told
            logger.fatal(f'cannot start:\n{traceback.format_exc()}')
            return self._end(EXIT_FAILED)
        executor = NodeExecutor(num_threads=threads)
        for node in self._nodes:
            executor.add_node(node)
        spinning = threading.Thread(target=self._spin, args=(executor,), name='executor', daemon=True)
        spinning.start()
        self.stop_request.requested.wait()
        return self._stop(executor, spinning)

    def _spin(self, executor: NodeExecutor) -> None:
        try:
            executor.spin()
        except Exception:  # out of a callback; the robot must be stopped all the same
            self._exit_code = EXIT_FAILED
            get_logger('cosmos3_ros').fatal(f'a callback raised, stopping:\n{traceback.format_exc()}')
        self.stop_request.request()

    def _stop(self, executor: NodeExecutor, spinning: threading.Thread) -> int:
        # Side by side, without a time limit: one that is stuck must not keep the others from stopping, and the stop
        # request ends the process when the grace is over.
        stopping = [threading.Thread(target=self._stop_node, args=(node,), daemon=True) for node in self._nodes]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()
        # Python ends daemon threads by force when it exits; one that is inside C++ then takes the process down with it.
        executor.end(spinning)
        for node in self._nodes:
            node.destroy_node()
        return self._end(self._exit_code)

    def _stop_node(self, node: CosmosLifecycleNode) -> None:
        if not node.stop():
            self._exit_code = EXIT_FAILED

    def _end(self, code: int) -> int:
        rclpy.try_shutdown()
        return code

    def _late_exit_code(self) -> int:
        return EXIT_FAILED if any(node.active for node in self._nodes) else self._exit_code
