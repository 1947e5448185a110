"""The `server` node: the policy of this process for robots elsewhere, over the network and not over ROS.

==============  ==========================================  =====================================================
serves          `ws://HOST:PORT/`                           clients of openpi, cosmos-framework, RoboArena, vLLM-Omni
                `/healthz`, `/metrics`                      whether it lives; counts and times for Prometheus
==============  ==========================================  =====================================================

It subscribes to nothing and moves nothing. In one process with `policy`, `dynamics` or `reasoner` all of them work with
one copy of the weights; its requests are requests for actions and wait in one line with those of the policy node.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cosmos3_ros import diagnostics
from cosmos3_ros.node_base import CosmosLifecycleNode, configured
from cosmos3_ros.parameters import Parameter, ParameterSet
from cosmos3_ros.policy_model import MODEL_PARAMETERS, load_policy
from cosmos3_ros.policy_remote import DIALECTS
from cosmos3_ros.process import conclude_s
from engine.contract import Contract, load_contract, with_preset
from engine.errors import InvalidInput, Problem

if TYPE_CHECKING:
    from engine.policy import Policy
    from engine.serving.options import ServerOptions
    from engine.serving.server import BackgroundServer
    from engine.serving.service import Infers

PARAMETERS = (
    *MODEL_PARAMETERS,
    Parameter('host', '127.0.0.1', 'Address to listen at: programs on this machine alone; 0.0.0.0: the whole network.'),
    Parameter('port', 8000, 'Port to listen at; 0: any that is free, which the log tells.', minimum=0, maximum=65535),
    Parameter('dialect', 'auto', 'What is spoken; auto: whatever a request is in.', one_of=('auto', *DIALECTS)),
    Parameter('api_key_variable', '', 'Environment variable that holds the key that is asked for; empty: none is.'),
    Parameter('origins', (), 'Web pages that may connect, as https://HOST; those of all others are refused.'),
    Parameter('seed', 0, 'Of the generator of seeds.', minimum=0, maximum=2**31 - 1),
    Parameter('deterministic', False, 'Use `seed` itself for every request.'),
    Parameter('queue', 16, 'Requests that may wait; more are told to come back.', minimum=0, maximum=10_000),
    Parameter('batch', 1, 'Requests of several robots that are computed at once.', minimum=1, maximum=64),
    Parameter('batch_wait_s', 0.0, 'How long the first of them waits for others.', 's', minimum=0.0, maximum=1.0),
    Parameter('connections', 64, 'Clients at a time.', minimum=1, maximum=10_000),
    Parameter('rate_hz', 100.0, 'Requests a second of one client.', 'Hz', minimum=0.01, maximum=1e6),
    Parameter('idle_s', 3600.0, 'Silence after which a client is cut; 0: never.', 's', minimum=0.0, maximum=1e8),
    Parameter(
        'drain_s',
        1.5,
        'Time to finish what is under way when the node is deactivated; less in a process that is being stopped.',
        's',
        minimum=0.0,
        maximum=600.0,
    ),
    Parameter('decode_video', False, 'Send the imagined video along, where the dialect has a place for it.'),
)
_OPTIONS = (
    'host',
    'port',
    'dialect',
    'origins',
    'seed',
    'deterministic',
    'queue',
    'connections',
    'rate_hz',
    'idle_s',
    'drain_s',
    'decode_video',
)
"""Parameters that are options of the server by the same name."""


class ServerNode(CosmosLifecycleNode):
    """Lifecycle shell around a :class:`~engine.serving.server.PolicyServer` on a thread of its own."""

    def __init__(self, name: str = 'server', **kwargs: Any) -> None:
        """Start unconfigured."""
        super().__init__(name, **kwargs)
        self.parameters = ParameterSet(self, PARAMETERS)
        self.policy: Policy | None = None
        self._served: Infers | None = None
        self.server: BackgroundServer | None = None
        self._contract: Contract | None = None
        self._options: ServerOptions | None = None
        self._identity: dict[str, str] = {}
        self._stop_within_s = math.inf
        self._told: Counter[str] = Counter()

    def configure_node(self) -> None:
        """Load contract and checkpoint, build and warm up; nobody is let in yet."""
        from engine.serving.batches import in_rounds

        values = self.parameters
        self._contract = contract = with_preset(load_contract(values['contract']), values['preset'])
        self._options = self._read_options()
        if not values['checkpoint']:
            raise InvalidInput('parameters of the server', [Problem('checkpoint', 'is empty')])
        self.policy = load_policy(values, contract, self.get_logger().info)
        self._served = in_rounds(self.policy, values['batch'], values['batch_wait_s'])
        self._identity = self._find_identity()
        self.diagnostics.add('policy server', self._report)

    def activate_node(self) -> None:
        """Open the port."""
        from engine.serving.server import BackgroundServer, PolicyServer

        contract, options = configured(self._contract), configured(self._options)
        server = BackgroundServer(PolicyServer(configured(self._served), contract, options, self._identity))
        self._told.clear()
        server.__enter__()  # until the node is deactivated
        self.server = server
        self.get_logger().info(f'{contract.name} is served at {server.url}, dialect {options.dialect}')
        if not options.is_local and options.api_key is None:
            self.get_logger().warning(
                f'{server.url} can be reached from other machines, and no key is asked for; set api_key_variable'
            )

    def deactivate_node(self) -> None:
        """Take no more, finish what is under way within `drain_s`, and close the port; see also :meth:`stop`."""
        server, self.server = self.server, None
        if server is not None:
            server.stop(self._stop_within_s)

    def stop(self, timeout_s: float = -1.0) -> bool:
        """Shut down as a process that is being stopped has to: `drain_s` counts as far as there is time."""
        self._stop_within_s = conclude_s()
        return super().stop(timeout_s)

    def cleanup_node(self) -> None:
        """Release the network, unless another node of this process uses it."""
        self.policy = self._served = self._contract = self._options = None
        self.diagnostics.removeByName('policy server')

    def _find_identity(self) -> dict[str, str]:
        """What tells the policy from others, for clients to know."""
        from engine.checkpoint import open_checkpoint
        from engine.serving.terms import identity

        values = self.parameters
        checkpoint = open_checkpoint(values['checkpoint'])
        return identity(checkpoint, values['preset'], values['dtype'], values['compiled'])

    def _read_options(self) -> ServerOptions:
        from engine.serving.addresses import key_from
        from engine.serving.options import ServerOptions

        values = self.parameters
        key = key_from(values['api_key_variable'], 'api_key_variable', 'parameters of the server')
        return ServerOptions(api_key=key, **{name: values[name] for name in _OPTIONS})

    def _report(self, stat: diagnostics.DiagnosticStatusWrapper) -> diagnostics.DiagnosticStatusWrapper:
        background = self.server
        if background is None:
            stat.summary(diagnostics.OK, 'not served')
            return stat
        server = background.server
        metrics = server.service.metrics
        stat.summary(diagnostics.OK, f'at {server.url}')
        self._report_trouble(stat, metrics.outcomes())
        stat.add('clients', server.connections)
        stat.add('queue', f'{server.service.taken} of {server.service.room}')
        stat.add('sessions', server.service.sessions)
        stat.add('clients turned away', metrics.turned_away.total())
        for name, seconds in metrics.latest().items():
            stat.add(f'{name} p50 / p95 [ms]', ' / '.join(f'{1e3 * quantile(seconds, q):.1f}' for q in (0.5, 0.95)))
        return stat

    def _report_trouble(self, stat: diagnostics.DiagnosticStatusWrapper, outcomes: Counter[str]) -> None:
        """Counts of all outcomes, and a word on those that are none of a good server if there were more since."""
        for outcome, count in sorted(outcomes.items()):
            stat.add(f'requests {outcome}', count)
        new, self._told = outcomes - self._told, outcomes
        if new['internal']:
            stat.mergeSummary(diagnostics.ERROR, f'{new["internal"]} requests met a defect; the log says which')
        if new['busy']:
            stat.mergeSummary(diagnostics.WARN, f'{new["busy"]} requests were told to come back: the queue is full')


def quantile(seconds: Sequence[float], share: float) -> float:
    """The smallest of some times that `share` of them do not exceed."""
    return sorted(seconds)[max(0, math.ceil(share * len(seconds)) - 1)]
