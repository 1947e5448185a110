"""The command `cosmos3 serve`: a policy for robots elsewhere."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from engine.errors import InvalidInput, Problem

if TYPE_CHECKING:
    from engine.serving.options import ServerOptions

Commands = Any  # argparse has no public name for what add_subparsers returns


def add_serve(commands: Commands) -> None:
    """Add `cosmos3 serve`."""
    serve = commands.add_parser(
        'serve',
        help='serve a policy to clients of openpi, cosmos-framework, RoboArena and vLLM-Omni',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    serve.add_argument('checkpoint', help='directory or hub id')
    serve.add_argument('--contract', required=True, help='name in config/contracts or a path')
    serve.add_argument('--preset', default='reference', help='how the sampler is run: reference or fast')
    serve.add_argument('--no-warm-up', action='store_true', help='let the first request pay for first-time work')
    _add_network(serve.add_argument_group('the port'))
    _add_requests(serve.add_argument_group('requests'))
    runs = serve.add_argument_group('where it runs')
    runs.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, ...')
    runs.add_argument('--dtype', default='float32', help='float32, bfloat16, float16 or fp8')
    runs.add_argument('--backend', default='auto', help='auto, torch, torch-compiled, onnxruntime or tensorrt')
    runs.add_argument('--compiled', default=None, help='folder that cosmos3 compile made')
    serve.set_defaults(run=_serve)


def _add_network(port: argparse._ArgumentGroup) -> None:
    port.add_argument('--host', default='127.0.0.1', help='address to listen at; 0.0.0.0: the whole network')
    port.add_argument('--port', type=int, default=8000, help='0: any that is free')
    port.add_argument('--dialect', default='auto', help='auto, openpi, cosmos-framework, roboarena or vllm-omni')
    port.add_argument(
        '--api-key-variable', metavar='NAME', default=None, help='environment variable with the key that is asked for'
    )
    port.add_argument('--origin', action='append', help='web page that may connect, https://HOST; may be repeated')
    port.add_argument('--connections', type=int, default=64, help='clients at a time')
    port.add_argument('--idle', type=float, default=3600.0, help='seconds after which a silent client is cut; 0: never')
    port.add_argument('--drain', type=float, default=10.0, help='seconds to finish what is under way when stopped')


def _add_requests(requests: argparse._ArgumentGroup) -> None:
    requests.add_argument('--queue', type=int, default=16, help='requests that may wait')
    requests.add_argument('--rate', type=float, default=100.0, help='requests a second of one client')
    requests.add_argument('--seed', type=int, default=0, help='of the generator of seeds')
    requests.add_argument('--deterministic', action='store_true', help='the same seed for every request')
    requests.add_argument('--decode-video', action='store_true', help='send the imagined video along')
    requests.add_argument('--tracebacks', action='store_true', help='send tracebacks of defects to clients')


def _options(arguments: argparse.Namespace) -> ServerOptions:
    from engine.serving.options import ServerOptions

    return ServerOptions(
        host=arguments.host,
        port=arguments.port,
        dialect=arguments.dialect,
        api_key=_key(arguments.api_key_variable),
        origins=tuple(arguments.origin or ()),
        seed=arguments.seed,
        deterministic=arguments.deterministic,
        queue=arguments.queue,
        connections=arguments.connections,
        rate_hz=arguments.rate,
        idle_s=arguments.idle,
        drain_s=arguments.drain,
        decode_video=arguments.decode_video,
        tracebacks=arguments.tracebacks,
    )


def _key(variable: str | None) -> str | None:
    """The key, which is never an argument: those can be read by everybody on the machine."""
    if variable is None:
        return None
    key = os.environ.get(variable, '')
    if not key:
        problem = Problem('--api-key-variable', 'names a variable that is empty or not set', variable)
        raise InvalidInput('arguments', [problem])
    return key


def _serve(arguments: argparse.Namespace) -> int:
    import logging

    from engine.contract import load_contract, with_preset

    options = _options(arguments)
    contract = with_preset(load_contract(arguments.contract), arguments.preset)
    logging.basicConfig(format='%(asctime)s %(levelname)s %(message)s', level=logging.WARNING)
    import engine
    from engine.serving.server import PolicyServer, serve_until_stopped

    model = engine.load(
        arguments.checkpoint,
        arguments.device,
        arguments.dtype,
        backend=arguments.backend,
        compiled=arguments.compiled,
    )
    policy = model.policy(contract)
    if not arguments.no_warm_up:
        policy.warm_up()
    server = PolicyServer(policy, contract, options)
    told = f'{contract.name} on {model.runtime.backend.name}, dialect {options.dialect}'
    serve_until_stopped(server, lambda: print(f'{server.url}: {told}; Ctrl-C stops', flush=True))
    return 0
