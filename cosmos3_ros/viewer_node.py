"""The `viewer` node: a web page with what the cameras see, what was imagined, the verdict, and what the guard does.

==============  ==========================================  =====================================================
subscribes      topics of the contract's views              pictures
                `dynamics/imagined`, `dynamics/verdict`     what was imagined, and what imagination makes of it
                `guard/status`, `guard/decision`            what the guard does, and what it decided last
                `policy/status`                             what the policy does, and for which instruction
serves          `http://ADDRESS:PORT/`                      the page; `/state` has the same as JSON
==============  ==========================================  =====================================================

It only shows: nothing on the page moves or stops anything. It imports neither PyTorch nor the network.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from sensor_msgs.msg import Image

from cosmos3_msgs.msg import ChunkDecision, GuardStatus, PolicyStatus, Verdict
from cosmos3_ros import diagnostics, qos
from cosmos3_ros.node_base import CosmosLifecycleNode, configured
from cosmos3_ros.parameters import Parameter, ParameterSet, Required
from cosmos3_ros.viewer_board import Board, PictureSlot
from cosmos3_ros.viewer_server import PageServer, Reply, Site, page_reply, text_reply
from engine.contract import load_contract

PARAMETERS = (
    Parameter('contract', Required(str), 'Contract: a name in config/contracts, or a path.'),
    Parameter(
        'address',
        '127.0.0.1',
        'Address to serve the page at: 127.0.0.1 for browsers on this machine, 0.0.0.0 for everybody on its network, '
        'without a password.',
        check=lambda address: None if address.strip() else 'is empty',
    ),
    Parameter('port', 8073, 'Port of the page; 0: any that is free, which the log tells.', minimum=0, maximum=65535),
    Parameter(
        'rate_hz',
        10.0,
        'How often each picture is encoded, and the state sent, at most.',
        'Hz',
        minimum=0.2,
        maximum=60.0,
    ),
    Parameter('quality', 75, 'Quality of the pictures as JPEG.', minimum=1, maximum=95),
)
LOOPBACK = ('localhost', '::1')

_EVENTS, _STATE, _IMAGINED = '/events', '/state', '/imagined'


class ViewerNode(CosmosLifecycleNode):
    """Lifecycle shell around a :class:`Board` and the :class:`PageServer` that shows it."""

    def __init__(self, name: str = 'viewer', **kwargs: Any) -> None:
        """Start unconfigured."""
        super().__init__(name, **kwargs)
        self.parameters = ParameterSet(self, PARAMETERS)
        self.board: Board | None = None
        self.server: PageServer | None = None
        self._paths: dict[str, str] = {}

    def configure_node(self) -> None:
        """Read the contract, open topics."""
        values = self.parameters
        contract = load_contract(values['contract'])
        self.board = board = Board(contract, self.now_ns, values['quality'], 1.0 / values['rate_hz'])
        self._paths = {name: f'/view/{quote(name, safe="")}' for name in board.views}
        for slot in board.views.values():
            self.subscribe(Image, slot.topic, slot.keep, qos.sensor())
        self.subscribe(Image, 'dynamics/imagined', board.imagined.keep, qos.sensor())
        self._verdicts = self.subscribe(Verdict, 'dynamics/verdict', board.keep_verdict, qos.status())
        self.subscribe(GuardStatus, 'guard/status', board.guard.keep, qos.latched())
        self.subscribe(ChunkDecision, 'guard/decision', board.decision.keep, qos.status())
        self.subscribe(PolicyStatus, 'policy/status', board.policy.keep, qos.latched())
        self.diagnostics.add('page', self._report)

    def activate_node(self) -> None:
        """Open the port and serve the page."""
        address = self.parameters['address']
        self.server = server = PageServer(address, self.parameters['port'], self._site(), self._log_defect)
        server.start()
        self.get_logger().info(f'the page is at {server.url}')
        if address not in LOOPBACK and not address.startswith('127.'):
            self.get_logger().warning(
                f'the page is offered to the network ({address}): whoever reaches this machine sees its cameras; '
                'address: 127.0.0.1 keeps it on this machine'
            )

    def deactivate_node(self) -> None:
        """Close the port and every connection."""
        server, self.server = self.server, None
        if server is not None:
            server.stop()

    def cleanup_node(self) -> None:
        """Forget what was seen."""
        self.board = None
        self.diagnostics.removeByName('page')

    # What is served

    def _site(self) -> Site:
        board = configured(self.board)
        page = page_reply()
        replies: dict[str, Callable[[], Reply]] = {
            '/': lambda: page,
            _STATE: lambda: Reply(HTTPStatus.OK, 'application/json', self._state(board)),
            _IMAGINED: partial(_picture, board.imagined, self.now_ns),
        }
        for name, slot in board.views.items():
            replies[self._paths[name]] = partial(_picture, slot, self.now_ns)
        return Site(replies, _EVENTS, partial(self._state, board), 1.0 / self.parameters['rate_hz'])

    def _state(self, board: Board) -> bytes:
        """The state as one line of JSON."""
        imagination = self._verdicts.get_publisher_count() > 0
        state = board.state(self._paths, _IMAGINED, imagination)
        return json.dumps(state, allow_nan=False, separators=(',', ':')).encode()

    def _log_defect(self, text: str) -> None:
        self.get_logger().error(text, throttle_duration_sec=5.0)

    def _report(self, stat: diagnostics.DiagnosticStatusWrapper) -> diagnostics.DiagnosticStatusWrapper:
        server, board = self.server, self.board
        if server is None or board is None:
            stat.summary(diagnostics.OK, 'not served')
            return stat
        stat.summary(diagnostics.OK, f'at {server.url}')
        stat.add('connections', server.connections)
        for slot in (*board.views.values(), board.imagined):
            stat.add(f'{slot.topic} encoded', slot.encoded)
        return stat


def _picture(slot: PictureSlot, now_ns: Callable[[], int]) -> Reply:
    """The newest picture of a slot, with its number and age; the page must know which one it shows."""
    made = slot.jpeg()
    if isinstance(made, str):
        return text_reply(HTTPStatus.SERVICE_UNAVAILABLE, made)
    headers = {'X-Number': str(made.source.number), 'X-Age-S': f'{slot.age_s(made, now_ns()):.3f}'}
    return Reply(HTTPStatus.OK, 'image/jpeg', made.data, headers)
