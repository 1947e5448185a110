"""Promises of starting up: one description of the processes, two ways to start it, and a clean end either way."""

from __future__ import annotations

import ast
import importlib.util
import io
import os
import runpy
import signal
from pathlib import Path

import pytest
import yaml
from sensor_msgs.msg import JointState

from cosmos3_ros import qos, runner
from cosmos3_ros.bringup import LAUNCH_ARGUMENTS, Options, ProcessSpec, options_from_text, processes
from cosmos3_ros.host import wanted
from cosmos3_ros.lifecycle_client import LifecycleClient
from cosmos3_ros.runner import Runner, command, show_arguments
from engine.errors import CosmosError, InvalidInput

HAS_LAUNCH = importlib.util.find_spec('launch_ros') is not None
LAUNCH_FILE = 'launch/policy.launch.py'


def by_name(**options: object) -> dict[str, ProcessSpec]:
    return {spec.name: spec for spec in processes(Options(**{'checkpoint': 'somewhere', **options}))}


# The description


def test_every_argument_has_a_description_and_a_default_among_its_choices():
    for argument in LAUNCH_ARGUMENTS:
        assert len(argument.description) > 20, argument.name
        assert not argument.choices or argument.default in argument.choices


def test_the_defaults_of_the_arguments_are_the_defaults_of_the_options():
    assert options_from_text({}) == Options()


def test_all_faulty_arguments_are_reported_at_once():
    with pytest.raises(InvalidInput) as raised:
        options_from_text({'robot': 'real', 'dry_run': 'perhaps', 'speed': '2'})
    assert {problem.where for problem in raised.value.problems} == {'robot', 'dry_run', 'speed'}


@pytest.mark.parametrize(
    ('robot', 'names'),
    [
        ('sim', ['sim_robot', 'guard', 'policy']),
        ('replay', ['replay_robot', 'guard', 'policy']),
        ('none', ['guard', 'policy']),
    ],
)
def test_each_kind_of_robot_has_its_processes(robot, names, tmp_path):
    episode = str(tmp_path) if robot == 'replay' else ''
    assert list(by_name(robot=robot, episode=episode)) == names


@pytest.mark.parametrize(
    ('robot', 'dry_run', 'expected'),
    [
        ('sim', None, False),
        ('none', None, True),
        ('replay', None, True),
        ('none', False, False),
        ('sim', True, True),
    ],
)
def test_a_dry_run_is_the_default_unless_the_robot_is_simulated(robot, dry_run, expected, tmp_path):
    episode = str(tmp_path) if robot == 'replay' else ''
    assert by_name(robot=robot, dry_run=dry_run, episode=episode)['guard'].parameters['dry_run'] is expected


def test_only_the_guard_is_essential():
    assert [spec.name for spec in by_name(instruction='wave').values() if spec.essential] == ['guard']


def test_simulated_time_is_made_by_the_robot_and_followed_by_the_others():
    specs = by_name(use_sim_time=True)
    assert specs['sim_robot'].parameters['publish_clock'] is True
    assert 'use_sim_time' not in specs['sim_robot'].parameters
    assert specs['guard'].parameters['use_sim_time'] is specs['policy'].parameters['use_sim_time'] is True


def test_an_instruction_adds_a_process_that_may_end():
    spec = by_name(instruction='wave')['instruct']
    assert (spec.transient, spec.parameters['instruction']) == (True, 'wave')


def test_imagination_shares_the_process_of_the_policy_and_gets_its_thresholds(tmp_path):
    file = tmp_path / 'bands.json'
    file.write_text('{}')
    host = by_name(dynamics=True, calibration=str(file))['policy']
    assert (host.nodes, host.parameters['calibration']) == (('policy', 'dynamics'), str(file))
    assert '__node:=policy' not in ' '.join(command(host)), 'each node keeps its name'
    assert command(host)[3:5] == ['policy', 'dynamics']
    assert by_name()['policy'].nodes == ()
    with pytest.raises(InvalidInput) as raised:
        by_name(calibration=str(tmp_path / 'nowhere'))
    assert [problem.where for problem in raised.value.problems] == ['calibration', 'calibration']


@pytest.mark.parametrize(
    ('arguments', 'nodes'),
    [
        ([], ['policy']),
        (['--ros-args', '-p', 'a:=b'], ['policy']),
        (['policy', 'dynamics', '--ros-args'], ['policy', 'dynamics']),
    ],
)
def test_the_host_holds_the_nodes_that_its_command_line_names(arguments, nodes):
    assert wanted(arguments) == nodes


def test_the_host_refuses_a_node_that_it_does_not_know():
    with pytest.raises(SystemExit, match='no such node: guard'):
        wanted(['guard'])


def test_the_viewer_is_there_if_it_is_asked_for():
    assert 'viewer' not in by_name()
    assert by_name(viewer=True, contract='demo_joint_pos')['viewer'].parameters['contract'] == 'demo_joint_pos'


def test_a_run_is_recorded_if_a_folder_for_bags_is_named():
    assert 'recorder' not in by_name()
    parameters = by_name(bags='runs', contract='demo_joint_pos')['recorder'].parameters
    assert (parameters['contract'], parameters['directory']) == ('demo_joint_pos', str(Path('runs').absolute()))


def test_a_contract_of_two_arms_has_a_simulated_robot_of_two_with_the_cameras_it_looks_through():
    parameters = by_name(contract='robomind_dual')['sim_robot'].parameters
    assert (parameters['robot'], parameters['views']) == ('panda_pair', ['front', 'left', 'right'])
    assert 'robot' not in by_name()['sim_robot'].parameters


def test_two_arms_that_cannot_be_simulated_are_refused_unless_they_are_real(tmp_path, repository):
    text = (repository / 'config/contracts/robomind_dual.yaml').read_text()
    path = tmp_path / 'others.yaml'
    path.write_text(text.replace('_panda_joint', '_fr3_joint'))
    with pytest.raises(InvalidInput, match='robot:=none'):
        by_name(contract=str(path))
    assert 'guard' in by_name(contract=str(path), robot='none')


def test_the_contract_names_the_checkpoint_if_none_is_given():
    assert by_name(checkpoint='')['policy'].parameters['checkpoint'] == 'nvidia/Cosmos3-Nano-Policy-DROID'


def test_all_contradictions_are_reported_at_once(tmp_path):
    options = Options(
        contract='demo_joint_pos', robot='replay', dry_run=False, params_file=str(tmp_path / 'no.yaml'), namespace='a b'
    )
    with pytest.raises(InvalidInput) as raised:
        processes(options)
    assert {p.where for p in raised.value.problems} == {'episode', 'params_file', 'dry_run', 'namespace', 'checkpoint'}


def test_the_users_middleware_profile_is_left_alone(monkeypatch):
    assert 'large_images.xml' in by_name()['sim_robot'].environment['FASTRTPS_DEFAULT_PROFILES_FILE']
    monkeypatch.setenv('FASTDDS_DEFAULT_PROFILES_FILE', 'mine.xml')
    assert by_name()['sim_robot'].environment == {}


def test_the_shipped_parameter_file_names_only_parameters_that_exist_at_their_defaults(repository):
    from cosmos3_ros import guard_node, policy_node, replay_robot, sim_robot

    declared = {
        '/**/policy': policy_node.PARAMETERS,
        '/**/guard': guard_node.PARAMETERS,
        '/**/sim_robot': sim_robot.PARAMETERS,
        '/**/replay_robot': replay_robot.PARAMETERS,
    }
    content = yaml.safe_load((repository / 'config/params/policy.yaml').read_text())
    for key, parameters in declared.items():
        defaults = {parameter.name: parameter.default for parameter in parameters}
        for name, value in content[key]['ros__parameters'].items():
            assert defaults[name] == value, f'{key} {name}'


# The launch file


def test_the_launch_file_takes_arguments_and_processes_from_the_description_alone(repository):
    tree = ast.parse((repository / LAUNCH_FILE).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {'LAUNCH_ARGUMENTS', 'options_from_text', 'processes'} <= imported
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    known = {argument.name for argument in LAUNCH_ARGUMENTS} | {'sim_robot', 'replay_robot', 'guard', 'policy', 'host'}
    assert not texts & known, 'a second list of arguments or nodes'


@pytest.mark.skipif(not HAS_LAUNCH, reason='the launch packages of ROS 2 are not installed')
def test_the_launch_description_declares_every_argument(repository):
    description = runpy.run_path(str(repository / LAUNCH_FILE))['generate_launch_description']()
    declared = {argument.name: argument for argument in description.get_launch_arguments()}
    assert set(declared) == {argument.name for argument in LAUNCH_ARGUMENTS}
    assert all(argument.description for argument in declared.values())


@pytest.mark.skipif(not HAS_LAUNCH, reason='the launch packages of ROS 2 are not installed')
def test_the_launch_file_makes_an_action_for_every_process(repository, tmp_path):
    from launch import LaunchContext

    context = LaunchContext()
    context.launch_configurations.update({argument.name: argument.default for argument in LAUNCH_ARGUMENTS})
    actions = runpy.run_path(str(repository / LAUNCH_FILE))['start'](context)
    assert len(actions) == len(processes(Options())) + 1  # and the handler that ends everything with the guard


# The runner


def test_the_command_line_carries_names_files_and_parameters():
    spec = ProcessSpec(
        'guard',
        'guard',
        'cosmos3_ros.guard_process',
        parameters={'dry_run': True, 'contract': '007', 'rate_hz': 15.0, 'views': ['a', 'b']},
        parameter_files=(Path('/x.yaml'),),
        remappings=(('joint_states', 'arm/joint_states'),),
        namespace='left',
    )
    line = ' '.join(command(spec)[1:])
    assert '-m cosmos3_ros.guard_process --ros-args -r __node:=guard -r __ns:=/left' in line
    assert '-r joint_states:=arm/joint_states --params-file /x.yaml' in line
    assert '-p dry_run:=true -p contract:="007" -p rate_hz:=15.0 -p views:=["a", "b"] --log-level info' in line


PROBE = """
from cosmos3_ros.process import answer_signals
answer_signals()
import sys
from cosmos3_ros.node_base import CosmosLifecycleNode, spin
from cosmos3_ros.parameters import Parameter, ParameterSet, Required

class Probe(CosmosLifecycleNode):
    def __init__(self):
        super().__init__('probe')
        names = ('text', 'number', 'file_only', 'both')
        values = ParameterSet(self, [Parameter(name, Required(str), 'Probed.') for name in names]).as_dict()
        print(self.get_fully_qualified_name(), values, flush=True)

spin(Probe)
"""
ENDING = 'import sys; print("done", flush=True); sys.exit({code})'
STUBBORN = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])
print('ignoring', flush=True)
signal.pause()
signal.pause()
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Write modules that processes can be made of."""

    def write(**sources: str) -> None:
        for name, source in sources.items():
            (tmp_path / f'{name}.py').write_text(source)

    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    return write


def spec_of(module: str, **fields: object) -> ProcessSpec:
    return ProcessSpec(**{'name': module, 'executable': module, 'module': module, **fields})


@pytest.mark.parametrize('namespace', ['', 'left/arm'])
def test_parameters_reach_the_node_as_text_and_win_over_the_file(graph, modules, tmp_path, namespace):
    modules(probing=PROBE)
    path = tmp_path / 'params.yaml'
    path.write_text('/**/probe:\n  ros__parameters: {file_only: from file, both: from file}\n')
    parameters = {'text': 'a "quoted" one: [x], {y}', 'number': '15', 'both': 'given'}
    spec = spec_of('probing', name='probe', parameters=parameters, parameter_files=(path,), namespace=namespace)
    output = io.StringIO()
    with Runner([spec], output=output):
        graph.eventually(lambda: '}\n' in output.getvalue(), 20.0)
    values = {**parameters, 'file_only': 'from file'}
    assert {name: repr(value) in output.getvalue() for name, value in values.items()} == dict.fromkeys(values, True)
    assert output.getvalue().startswith(f'[probe] {spec.full_name} ')


def test_exit_codes_are_reported_and_only_unwanted_ends_count_as_ended(graph, modules):
    modules(good=ENDING.format(code=0), bad=ENDING.format(code=3), transient=ENDING.format(code=0))
    specs = [spec_of('good'), spec_of('bad'), spec_of('transient', transient=True)]
    with Runner(specs, output=io.StringIO()) as running:
        graph.eventually(lambda: None not in running.poll().values(), 20.0)
        assert running.poll() == {'good': 0, 'bad': 3, 'transient': 0}
        assert running.ended() == {'good': 0, 'bad': 3}


def test_a_process_that_does_not_end_is_killed_after_the_grace(graph, modules):
    modules(stubborn=STUBBORN)
    output = io.StringIO()
    with Runner([spec_of('stubborn')], output=output, grace_s=0.3) as running:
        graph.eventually(lambda: 'ignoring' in output.getvalue(), 20.0)
    assert running.killed == ('stubborn',)
    assert running.poll() == {'stubborn': -signal.SIGKILL}


def test_output_can_go_to_files(graph, modules, tmp_path):
    modules(good=ENDING.format(code=0))
    with Runner([spec_of('good')], log_directory=tmp_path / 'logs') as running:
        graph.eventually(lambda: running.poll() == {'good': 0}, 20.0)
    assert (tmp_path / 'logs' / 'good.log').read_text() == 'done\n'


def test_a_process_can_be_stopped_before_it_has_begun(modules):
    modules(probing=PROBE)
    for number in (signal.SIGINT, signal.SIGTERM):
        with Runner([spec_of('probing', name='probe')], output=io.StringIO()) as running:
            pass  # leaving stops it, at once
        with Runner([spec_of('probing', name='probe')], output=io.StringIO()) as running:
            assert running.stop(number) == {'probe': 0}


def test_processes_do_not_outlive_a_runner_that_was_killed(graph, program, modules, tmp_path):
    modules(probing=PROBE)
    (tmp_path / 'supervisor.py').write_text(
        'import signal\nfrom cosmos3_ros.runner import Runner\nfrom cosmos3_ros.bringup import ProcessSpec\n'
        "parameters = dict.fromkeys(('text', 'number', 'file_only', 'both'), 'x')\n"
        "with Runner([ProcessSpec('probe', 'probe', 'probing', parameters)]) as running:\n"
        "    print('pid', running.pid('probe'), flush=True)\n    signal.pause()\n"
    )
    path = os.pathsep.join([str(Path(runner.__file__).parents[1]), str(tmp_path)])
    supervisor = program(str(tmp_path / 'supervisor.py'), PYTHONPATH=path)
    supervisor.wait_for('/probe')
    pid = int(next(line for line in supervisor.lines if line.startswith('pid')).split()[1])
    supervisor.end(signal.SIGKILL)
    graph.eventually(lambda: not Path(f'/proc/{pid}').exists() or ' Z ' in Path(f'/proc/{pid}/stat').read_text())


def test_show_args_lists_every_argument(capsys):
    assert runner.main(['--show-args']) == 0
    printed = capsys.readouterr().out
    assert printed == show_arguments() + '\n'
    assert all(f'{argument.name}:' in printed for argument in LAUNCH_ARGUMENTS)


@pytest.mark.parametrize('arguments', [['robot:=real'], ['robot', 'sim'], ['contract:=nonsense']])
def test_wrong_arguments_end_the_runner_with_code_2(program, arguments):
    running = program('-m', 'cosmos3_ros.runner', *arguments)
    assert running.wait(20.0) == 2
    assert arguments[0].split(':=')[-1] in running.output


def test_sim_robot_starts_from_its_description_and_ends_with_code_0(graph):
    pytest.importorskip('mujoco')
    heard: list[JointState] = []
    observer = graph.node('observer', namespace='left')
    observer.create_subscription(JointState, 'joint_states', heard.append, qos.sensor(10))
    spec = by_name(namespace='left')['sim_robot']
    output = io.StringIO()
    with Runner([spec], output=output) as running:
        # Not any "failed": the transport says so of a port that another process has, and takes the next one.
        graph.eventually(lambda: heard or running.ended() or 'configure failed' in output.getvalue(), 60.0)
        if 'OpenGL' in output.getvalue() or 'EGL' in output.getvalue():
            pytest.skip('pictures cannot be drawn here')
    assert running.poll() == {'sim_robot': 0}, output.getvalue()
    assert heard, output.getvalue()
    assert 'panda_joint1' in heard[0].name


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_runner_ends_everything_on_a_signal_with_code_0(program, number):
    running = program('-m', 'cosmos3_ros.runner', 'robot:=none', 'contract:=demo_joint_pos', 'checkpoint:=/nowhere')
    running.wait_for('[guard]', timeout=30.0)
    running.wait_for('[policy]', timeout=60.0)  # its log says that there is no such checkpoint; it can be tried again
    code, _ = running.end(number, timeout=20.0)
    assert code == 0, running.output


def test_everything_stops_when_the_guard_dies(graph, program):
    running = program('-m', 'cosmos3_ros.runner', 'robot:=none', 'contract:=demo_joint_pos', 'checkpoint:=/nowhere')
    running.wait_for('[guard]', timeout=30.0)
    children = Path(f'/proc/{running.process.pid}/task/{running.process.pid}/children').read_text().split()
    guard = next(pid for pid in children if b'guard_process' in Path(f'/proc/{pid}/cmdline').read_bytes())
    os.kill(int(guard), signal.SIGKILL)
    assert running.wait(20.0) == 1
    assert 'guard ended by itself with exit code -9' in running.output
    assert not any(Path(f'/proc/{pid}').exists() for pid in children)


# The lifecycle client


def test_the_lifecycle_client_brings_a_node_up_and_tells_its_state(graph):
    from cosmos3_ros.node_base import CosmosLifecycleNode

    node = graph.add(CosmosLifecycleNode('managed', namespace='left'))
    with LifecycleClient() as client:
        assert client.state('/left/managed') == 'unconfigured'
        client.bring_up('/left/managed')
        client.wait_for('/left/managed', 'active')
        assert node.active
        assert client.change('/left/managed', 'deactivate')
        assert not client.change('/left/managed', 'deactivate')


def test_the_lifecycle_client_names_what_does_not_answer():
    with LifecycleClient() as client, pytest.raises(CosmosError, match='nobody offers /nowhere/get_state'):
        client.state('/nowhere', timeout_s=0.2)


def test_the_lifecycle_client_says_that_a_node_could_not_be_configured(graph):
    from cosmos3_ros.node_base import CosmosLifecycleNode

    class Unwilling(CosmosLifecycleNode):
        def configure_node(self) -> None:
            raise CosmosError('not today')

    graph.add(Unwilling('unwilling'))
    with LifecycleClient() as client, pytest.raises(CosmosError, match='/unwilling could not configure'):
        client.bring_up('/unwilling')
