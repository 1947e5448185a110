"""The command `cosmos3 serve`: a policy for robots elsewhere."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.errors import InvalidInput, Problem

if TYPE_CHECKING:
    from engine.contract import Contract
    from engine.serving.fleet import FleetPlan
    from engine.serving.options import ServerOptions
    from engine.serving.service import Infers

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
    _add_fleet(serve.add_argument_group('several copies of the policy, with Ray Serve'))
    serve.set_defaults(run=_serve)


def _add_fleet(fleet: argparse._ArgumentGroup) -> None:
    fleet.add_argument('--fleet', metavar='N[-M]', default=None, help='replicas: N, or N to M as there is to do')
    fleet.add_argument(
        '--fleet-address', metavar='ADDRESS', default=None, help='Ray cluster that runs already, or auto'
    )
    fleet.add_argument('--fleet-cpus', metavar='N', type=float, default=1.0, help='cores of each replica')
    fleet.add_argument('--fleet-gpus', metavar='N', type=float, default=-1.0, help='GPUs of each; -1: as --device says')


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
    requests.add_argument('--batch', type=int, default=1, help='requests of several robots that are computed at once')
    requests.add_argument('--batch-wait', type=float, default=0.0, help='seconds that the first waits for others')
    requests.add_argument('--rate', type=float, default=100.0, help='requests a second of one client')
    requests.add_argument('--seed', type=int, default=0, help='of the generator of seeds')
    requests.add_argument('--deterministic', action='store_true', help='the same seed for every request')
    requests.add_argument('--decode-video', action='store_true', help='send the imagined video along')
    requests.add_argument('--tracebacks', action='store_true', help='send tracebacks of defects to clients')


def _options(arguments: argparse.Namespace) -> ServerOptions:
    from engine.serving.addresses import key_from
    from engine.serving.options import ServerOptions

    return ServerOptions(
        host=arguments.host,
        port=arguments.port,
        dialect=arguments.dialect,
        api_key=key_from(arguments.api_key_variable, '--api-key-variable'),
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


def _serve(arguments: argparse.Namespace) -> int:
    import logging

    from engine.contract import load_contract, with_preset

    options = _options(arguments)
    contract = with_preset(load_contract(arguments.contract), arguments.preset)
    plan = _plan(arguments) if arguments.fleet else None
    if plan is not None and arguments.batch != 1:
        problem = Problem('--batch', 'means nothing with --fleet', str(arguments.batch), remedy='leave it out')
        raise InvalidInput('arguments', [problem])
    logging.basicConfig(format='%(asctime)s %(levelname)s %(message)s', level=logging.WARNING)
    if plan is not None:
        return _serve_fleet(plan, arguments.fleet_address, contract, options)
    import engine
    from engine.serving.batches import in_rounds
    from engine.serving.terms import identity

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
    of_policy = identity(model.checkpoint, arguments.preset, arguments.dtype, arguments.compiled)
    served = in_rounds(policy, arguments.batch, arguments.batch_wait)
    _serve_policy(served, contract, options, model.runtime.backend.name, of_policy)
    return 0


def _serve_policy(
    policy: Infers, contract: Contract, options: ServerOptions, where: str, of_policy: Mapping[str, str]
) -> None:
    from engine.serving.server import PolicyServer, serve_until_stopped

    server = PolicyServer(policy, contract, options, of_policy)
    told = f'{contract.name} on {where}, dialect {options.dialect}'
    serve_until_stopped(server, lambda: print(f'{server.url}: {told}; Ctrl-C stops', flush=True))


def _plan(arguments: argparse.Namespace) -> FleetPlan:
    from engine.serving.fleet import FleetPlan

    least, _, most = arguments.fleet.partition('-')
    if not least.isdecimal() or not (most.isdecimal() or arguments.fleet == least):
        raise InvalidInput('arguments', [Problem('--fleet', 'is no number of replicas', arguments.fleet, 'N or N-M')])
    return FleetPlan(
        checkpoint=arguments.checkpoint,
        contract=arguments.contract,
        preset=arguments.preset,
        device=arguments.device,
        dtype=arguments.dtype,
        backend=arguments.backend,
        compiled=arguments.compiled or '',
        replicas=int(least),
        most=int(most or 0),
        cpus=arguments.fleet_cpus,
        gpus=arguments.fleet_gpus,
        warm_up=not arguments.no_warm_up,
    )


def _serve_fleet(plan: FleetPlan, address: str | None, contract: Contract, options: ServerOptions) -> int:
    from engine.serving.fleet import deployed, identity_of, local_ray

    cores = math.ceil(max(plan.replicas, plan.most) * plan.cpus)
    with local_ray(cores, address=address), deployed(plan, video=options.decode_video) as policy:
        size = f'{plan.replicas} to {plan.most}' if plan.most > plan.replicas else str(plan.replicas)
        _serve_policy(policy, contract, options, f'{size} replicas', identity_of(plan))
    return 0
