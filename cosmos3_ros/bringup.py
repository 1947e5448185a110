"""Which processes make up the system, described once.

`launch/policy.launch.py` starts them with ROS 2's launch, :mod:`cosmos3_ros.runner` without it. Both offer the
arguments of :data:`LAUNCH_ARGUMENTS`, turn them into :class:`Options` and start what :func:`processes` returns. Nothing
here needs ROS.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.contract import Contract, load_contract
from engine.errors import InvalidInput, Problem
from engine.evaluation.franka_scene import PANDA_PAIR
from engine.resources import config_folders

PACKAGE = 'cosmos3_ros'
TRUTH = {'true': True, 'false': False}
"""What a switch says, as text."""
_SWITCHES = ('use_sim_time', 'autostart', 'dynamics', 'reasoner', 'viewer', 'server')
REMOTE = 'remote'
_OF_A_SERVER = ('url', 'dialect', 'api_key_variable')
_OF_WEIGHTS = ('checkpoint', 'device', 'compiled', 'preset', 'record')
_LOG_LEVELS = ('debug', 'info', 'warn', 'error', 'fatal')
_FASTDDS_VARIABLES = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')


@dataclass(frozen=True)
class Argument:
    """One argument of the launch file and of the runner, given as `name:=value`.

    Attributes:
        name: Its name.
        default: Value as text if none is given.
        description: What it does, for `--show-args`.
        choices: The only values accepted; empty if any is.
    """

    name: str
    default: str
    description: str
    choices: tuple[str, ...] = ()


LAUNCH_ARGUMENTS = (
    Argument('contract', 'droid_joint_pos', 'Contract: a name in config/contracts, or the path of a file.'),
    Argument(
        'checkpoint',
        '',
        'Checkpoint: a directory in the public layout, a hub id, or cosmos3-micro, which ships. Empty: the one the '
        'contract names.',
    ),
    Argument(
        'backend',
        'local',
        'local: the weights of this machine, run as the parameter file says. remote: a policy server at url; see '
        'docs/serving.md.',
        ('local', 'remote'),
    ),
    Argument('url', '', 'With backend:=remote: the policy server, ws://HOST:PORT. Empty: as in the parameter file.'),
    Argument('dialect', '', 'With backend:=remote: what that server speaks. Empty: as in the parameter file.'),
    Argument(
        'api_key_variable',
        '',
        'With backend:=remote: environment variable with the key of that server. Empty: as in the parameter file.',
    ),
    Argument('device', '', 'Device of the network: cpu, cuda, cuda:1, ... Empty: as in the parameter file.'),
    Argument('compiled', '', 'Folder that cosmos3 compile made of the checkpoint. Empty: as in the parameter file.'),
    Argument(
        'preset',
        '',
        "Denoising: the contract's own (reference), or two steps (fast). Empty: as in the parameter file.",
    ),
    Argument(
        'robot',
        'sim',
        'sim: the simulated Franka, or two of them if the contract has two arms. replay: a recording plays sensors. '
        'none: your own drivers run already.',
        ('sim', 'replay', 'none'),
    ),
    Argument('namespace', '', 'Namespace of all nodes and topics. Two robots need two.'),
    Argument('params_file', '', 'Parameter file for all nodes. Empty: config/params/policy.yaml of this package.'),
    Argument(
        'dry_run',
        'auto',
        'true: everything runs and no command is sent. auto: false with robot:=sim, true otherwise.',
        ('auto', 'true', 'false'),
    ),
    Argument(
        'use_sim_time',
        'false',
        'Take the time from /clock, which robot:=sim and robot:=replay then publish.',
        ('true', 'false'),
    ),
    Argument('log_level', 'info', 'Least severity that is logged.', _LOG_LEVELS),
    Argument(
        'instruction', '', 'Follow this instruction as soon as everything is up. Empty: wait for run_policy goals.'
    ),
    Argument(
        'dynamics',
        'false',
        'true: imagine what chunks will do, and tell the guard; see docs/imagination.md.',
        ('true', 'false'),
    ),
    Argument(
        'calibration', '', 'With dynamics:=true: thresholds that cosmos3 calibrate made. Empty: verdicts are unknown.'
    ),
    Argument(
        'reasoner',
        'false',
        'true: answer questions about what the cameras see, make plans and see them through; see docs/reasoner.md.',
        ('true', 'false'),
    ),
    Argument(
        'reasoner_url',
        '',
        'With reasoner:=true: OpenAI-compatible endpoint that answers. Empty: the weights of the policy do.',
    ),
    Argument('reasoner_model', '', 'Name of the model at reasoner_url.'),
    Argument(
        'server',
        'false',
        'true: serve the policy to robots elsewhere, too, with the same weights; see docs/serving.md.',
        ('true', 'false'),
    ),
    Argument('viewer', 'false', 'true: a web page shows views, imagination, verdicts and guard.', ('true', 'false')),
    Argument(
        'bags', '', 'Directory in which runs are recorded, an MCAP bag for each; see docs/datasets.md. Empty: none are.'
    ),
    Argument('record', '', 'Directory in which the latents of every imagined video are kept. Empty: none are.'),
    Argument('episode', '', 'What robot:=replay plays: directory of a LeRobot data set, or of one table and videos.'),
    Argument(
        'video_map', '', "Stand-ins for views that the episode has not: 'wrist:=exterior_2,exterior_1:=exterior_2'."
    ),
    Argument(
        'autostart',
        'true',
        'true: nodes configure and activate by themselves. false: a lifecycle manager of yours does it.',
        ('true', 'false'),
    ),
)


@dataclass(frozen=True)
class Options:
    """The choices of one start; see :data:`LAUNCH_ARGUMENTS` for what each means."""

    contract: str = 'droid_joint_pos'
    checkpoint: str = ''
    backend: str = 'local'
    url: str = ''
    dialect: str = ''
    api_key_variable: str = ''
    device: str = ''
    compiled: str = ''
    preset: str = ''
    robot: str = 'sim'
    namespace: str = ''
    params_file: str = ''
    dry_run: bool | None = None
    use_sim_time: bool = False
    log_level: str = 'info'
    instruction: str = ''
    bags: str = ''
    record: str = ''
    episode: str = ''
    video_map: str = ''
    autostart: bool = True
    dynamics: bool = False
    calibration: str = ''
    reasoner: bool = False
    reasoner_url: str = ''
    reasoner_model: str = ''
    viewer: bool = False
    server: bool = False

    @property
    def sends_commands(self) -> bool:
        """Whether the guard's commands reach the robot: by default only if the robot is simulated."""
        return self.robot == 'sim' if self.dry_run is None else not self.dry_run


def read_arguments(arguments: Iterable[Argument], given: Mapping[str, str]) -> dict[str, str]:
    """Values of all arguments as text, missing ones at their defaults.

    Raises:
        InvalidInput: A name is unknown or a value is not among the choices; lists every fault.
    """
    known = {argument.name: argument for argument in arguments}
    problems = [Problem(name, 'unknown argument', allowed=', '.join(known)) for name in given if name not in known]
    values = {name: given.get(name, argument.default) for name, argument in known.items()}
    for name, value in values.items():
        choices = known[name].choices
        if choices and value not in choices:
            problems.append(Problem(name, 'not one of the choices', repr(value), ', '.join(choices)))
    if problems:
        raise InvalidInput('launch arguments', problems)
    return values


def options_from_text(given: Mapping[str, str]) -> Options:
    """Read arguments as text, missing ones at their defaults.

    Raises:
        InvalidInput: A name is unknown or a value is not among the choices; lists every fault.
    """
    values: dict[str, Any] = {**read_arguments(LAUNCH_ARGUMENTS, given)}
    dry_run = TRUTH.get(values.pop('dry_run'))
    switches: dict[str, Any] = {name: TRUTH[values.pop(name)] for name in _SWITCHES}
    return Options(**values, **switches, dry_run=dry_run)


@dataclass(frozen=True)
class ProcessSpec:
    """One process to start: one node, or several that share it.

    Attributes:
        name: Name of its node.
        executable: Name of its executable in the package, for `ros2 run` and `ros2 launch`.
        module: Its Python module, for `python -m`.
        parameters: Parameters of the node by name; they win over those of `parameter_files`.
        parameter_files: Parameter files, the last one winning.
        remappings: Pairs of a name in the node and the name to use instead.
        namespace: Namespace of the node, '' for none.
        log_level: Least severity that is logged.
        environment: Variables to add to its environment, unless they are set already.
        forced: Those of them that are set whatever is set already.
        lifecycle: Whether its node is managed.
        essential: Whether everything else must stop when it ends.
        transient: Whether it ends by itself when its work is done.
        package: Package that it belongs to.
        nodes: Nodes that it holds, if they are several: they keep their own names, and `parameters` are for all.
    """

    name: str
    executable: str
    module: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    parameter_files: tuple[Path, ...] = ()
    remappings: tuple[tuple[str, str], ...] = ()
    namespace: str = ''
    log_level: str = 'info'
    environment: Mapping[str, str] = field(default_factory=dict)
    forced: tuple[str, ...] = ()
    lifecycle: bool = True
    essential: bool = False
    transient: bool = False
    package: str = PACKAGE
    nodes: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """Fully qualified name of the node."""
        return f'/{self.namespace}/{self.name}' if self.namespace else f'/{self.name}'


def processes(options: Options) -> tuple[ProcessSpec, ...]:
    """Describe the processes to start, in the order of starting: robot, guard, host, others, instruction.

    They must be stopped guard first, so that its stop command finds the robot still there.

    Raises:
        InvalidInput: The options contradict each other, or a file they name does not exist; lists every fault.
        ContractError: The contract is faulty.
    """
    contract = load_contract(options.contract)
    problems = [*_problems(options), *_sim_problems(options, contract), *_remote_problems(options)]
    checkpoint = options.checkpoint or contract.checkpoint.policy or ''
    if not checkpoint and options.backend != REMOTE:
        what = f'must be given: contract {contract.name} is made for no published checkpoint'
        remedy = (
            'give a directory, a hub id, or cosmos3-micro, which ships, with contract:=micro_joint_pos; `cosmos3 '
            'make-tiny DIR` writes a small random one'
        )
        problems.append(Problem('checkpoint', what, remedy=remedy))
    if problems:
        raise InvalidInput('launch arguments', problems)
    common = _common(options)
    guard = ProcessSpec(
        'guard',
        'guard',
        f'{PACKAGE}.guard_process',
        parameters={**_shared(options), 'contract': options.contract, 'dry_run': not options.sends_commands},
        essential=True,
        **common,
    )
    policy = {'contract': options.contract, **_model(options, checkpoint)}
    policy |= {name: value for name in ('device', 'preset') if (value := getattr(options, name))}
    if options.compiled:
        policy['compiled'] = str(Path(options.compiled).expanduser().absolute())
    if options.robot == 'replay':
        policy['end_effector_chunks'] = 'poses'  # recordings of poses need not have joints
    if options.record:
        policy['record_directory'] = str(Path(options.record).expanduser().absolute())
    if options.calibration:
        policy['calibration'] = str(Path(options.calibration).expanduser().absolute())
    nodes = _nodes(options)
    host = ProcessSpec(
        'policy', 'host', f'{PACKAGE}.host', parameters={**_shared(options), **policy}, nodes=nodes, **common
    )
    others = [found for part in _OTHERS for found in part(options, common)]
    return (*_robot(options, contract, common), guard, host, *others)


def _model(options: Options, checkpoint: str) -> dict[str, str]:
    """Where the policy's chunks come from."""
    if options.backend != REMOTE:
        return {'checkpoint': checkpoint}
    given = {name: value for name in _OF_A_SERVER if (value := getattr(options, name))}
    return {'backend': REMOTE, **given}


def _nodes(options: Options) -> tuple[str, ...]:
    """What shares the process of the policy with it; nothing to name if it is alone."""
    here = {
        'dynamics': options.dynamics,
        'reasoner': options.reasoner and not options.reasoner_url,
        'server': options.server,
    }
    beside = tuple(name for name, is_here in here.items() if is_here)
    return ('policy', *beside) if beside else ()


def _remote_reasoner(options: Options, common: Mapping[str, Any]) -> tuple[ProcessSpec, ...]:
    """A reasoner that asks an endpoint: it needs no weights, and nothing of the policy's process."""
    if not (options.reasoner and options.reasoner_url):
        return ()
    endpoint = {'backend': 'remote', 'url': options.reasoner_url, 'remote_model': options.reasoner_model}
    parameters = {**_shared(options), 'contract': options.contract, **endpoint}
    return (ProcessSpec('reasoner', 'host', f'{PACKAGE}.host', parameters=parameters, nodes=('reasoner',), **common),)


def _recorder(options: Options, common: Mapping[str, Any]) -> tuple[ProcessSpec, ...]:
    if not options.bags:
        return ()
    folder = str(Path(options.bags).expanduser().absolute())
    parameters = {**_shared(options), 'contract': options.contract, 'directory': folder}
    return (ProcessSpec('recorder', 'recorder', f'{PACKAGE}.recorder_process', parameters=parameters, **common),)


def _viewer(options: Options, common: Mapping[str, Any]) -> tuple[ProcessSpec, ...]:
    if not options.viewer:
        return ()
    parameters = {**_shared(options), 'contract': options.contract}
    return (ProcessSpec('viewer', 'viewer', f'{PACKAGE}.viewer_process', parameters=parameters, **common),)


def _robot(options: Options, contract: Contract, common: Mapping[str, Any]) -> tuple[ProcessSpec, ...]:
    """The stand-in for a robot. It makes the time, so it never follows /clock itself."""
    parameters: dict[str, Any] = {'autostart': options.autostart, 'publish_clock': options.use_sim_time}
    environment = large_image_environment()
    if options.robot == 'sim':
        module = f'{PACKAGE}.sim_robot_node'
        if len(contract.robot.arms) > 1:
            # No more cameras than the contract looks through: each costs time to draw.
            looked_through = {f'camera/{camera}/image_raw': camera for camera in PANDA_PAIR.cameras}
            topics = [stream.topic for stream in contract.views.streams.values()]
            views = [looked_through[topic] for topic in topics if topic in looked_through]
            parameters |= {'robot': PANDA_PAIR.name, **({'views': views} if views else {})}
        return (ProcessSpec('sim_robot', 'sim_robot', module, parameters, environment=environment, **common),)
    if options.robot == 'replay':
        module = f'{PACKAGE}.replay_robot_node'
        parameters |= {'contract': options.contract, 'recording': str(Path(options.episode).expanduser().absolute())}
        if options.video_map:
            parameters['video_map'] = options.video_map.split(',')
        return (ProcessSpec('replay_robot', 'replay_robot', module, parameters, environment=environment, **common),)
    return ()


def _instruction(options: Options, common: Mapping[str, Any]) -> tuple[ProcessSpec, ...]:
    if not options.instruction:
        return ()
    parameters = {'use_sim_time': options.use_sim_time, 'instruction': options.instruction}
    module = f'{PACKAGE}.instruct'
    return (ProcessSpec('instruct', 'instruct', module, parameters, lifecycle=False, transient=True, **common),)


_OTHERS = (_remote_reasoner, _viewer, _recorder, _instruction)
"""What may be started beside robot, guard and host, in this order."""


def _sim_problems(options: Options, contract: Contract) -> list[Problem]:
    """Why the simulated robot is not the one that a contract of several arms is made for."""
    arms = contract.robot.arms
    if options.robot != 'sim' or len(arms) == 1 or contract.robot.joints == PANDA_PAIR.joints:
        return []
    what, given = 'has no simulated robot for the arms of this contract', ', '.join(contract.robot.joints)
    return [Problem('robot', what, given, ', '.join(PANDA_PAIR.joints), 'start your own driver, with robot:=none')]


def _shared(options: Options) -> dict[str, Any]:
    return {'autostart': options.autostart, 'use_sim_time': options.use_sim_time}


def _common(options: Options) -> dict[str, Any]:
    return {
        'parameter_files': (params_file(options.params_file),),
        'namespace': options.namespace.strip('/'),
        'log_level': options.log_level,
    }


def params_file(given: str) -> Path:
    """The parameter file of that name, or that of the package."""
    if given:
        return Path(given).expanduser().absolute()
    return _shipped('params', 'policy.yaml')


def _shipped(kind: str, name: str) -> Path:
    for folder in config_folders(kind):
        if (folder / name).is_file():
            return (folder / name).resolve()
    raise InvalidInput('installation', [Problem(f'config/{kind}/{name}', 'is missing from the package')])


def large_image_environment() -> dict[str, str]:
    """Environment with which Fast DDS hands large pictures over in shared memory; other middlewares ignore it."""
    if any(variable in os.environ for variable in _FASTDDS_VARIABLES):
        return {}  # the user has profiles of their own, and only one file is read
    path = str(_shipped('fastdds', 'large_images.xml'))
    return dict.fromkeys(_FASTDDS_VARIABLES, path)


def _reasoner_problems(options: Options) -> list[Problem]:
    given = {name: value for name in ('reasoner_url', 'reasoner_model') if (value := getattr(options, name))}
    if given and not options.reasoner:
        return [Problem(name, 'means nothing without reasoner', remedy='add reasoner:=true') for name in given]
    if len(given) == 1:
        missing = 'reasoner_model' if 'reasoner_url' in given else 'reasoner_url'
        return [Problem(missing, f'must be given with {next(iter(given))}')]
    return []


def _remote_problems(options: Options) -> list[Problem]:
    """Arguments that do not go with where the policy runs."""
    if options.backend != REMOTE:
        given = {name: value for name in _OF_A_SERVER if (value := getattr(options, name))}
        what, remedy = 'means nothing with backend:=local', 'add backend:=remote'
        return [Problem(name, what, value, remedy=remedy) for name, value in given.items()]
    given = {name: value for name in _OF_WEIGHTS if (value := getattr(options, name))}
    what = 'means nothing with backend:=remote'
    problems = [Problem(name, what, value, remedy='leave it out') for name, value in given.items()]
    if not options.url and not options.params_file:
        problems.append(Problem('url', 'must be given with backend:=remote', '', 'ws://HOST:PORT or wss://HOST:PORT'))
    for name in ('dynamics', 'server'):
        if getattr(options, name):
            problems.append(Problem(name, 'needs weights on this machine', 'true', remedy='leave backend out'))
    if options.reasoner and not options.reasoner_url:
        problems.append(
            Problem('reasoner', 'needs weights on this machine, or an endpoint', remedy='give reasoner_url')
        )
    return problems


def _problems(options: Options) -> list[Problem]:
    problems = []
    if options.robot == 'replay' and not options.episode:
        problems.append(Problem('episode', 'must be given with robot:=replay'))
    if options.robot != 'replay' and options.episode:
        problems.append(Problem('episode', f'means nothing with robot:={options.robot}', remedy='add robot:=replay'))
    if options.episode and not Path(options.episode).expanduser().exists():
        problems.append(Problem('episode', 'does not exist', options.episode))
    if options.calibration and not options.dynamics:
        problems.append(Problem('calibration', 'means nothing without dynamics', remedy='add dynamics:=true'))
    if options.calibration and not Path(options.calibration).expanduser().is_file():
        problems.append(Problem('calibration', 'is not a file', options.calibration))
    problems += _reasoner_problems(options)
    if options.robot == 'replay' and options.dry_run is False:
        remedy = 'leave dry_run out'
        problems.append(Problem('dry_run', 'a recording does not follow commands', 'false', 'true', remedy))
    return [*problems, *node_problems(options.namespace, options.params_file)]


def node_problems(namespace: str, params_file: str) -> Iterator[Problem]:
    """What is wrong with where nodes are to be, and with the file that says how."""
    if params_file and not Path(params_file).expanduser().is_file():
        yield Problem('params_file', 'is not a file', params_file)
    if not all(part.isidentifier() for part in namespace.strip('/').split('/') if namespace):
        allowed = 'letters, digits and underscores, parts separated by /'
        yield Problem('namespace', 'not a valid name', repr(namespace), allowed)
