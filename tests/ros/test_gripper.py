"""Promises of the gripper's channel: a missing package is named, and an action server never blocks the arm."""

# ruff: noqa: F811 (fixtures are imported, and named again where they are used)

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ros.guard_bench import bench, contract  # noqa: F401 (fixtures)

ROOT = Path(__file__).resolve().parents[2]
# The two actions as control_msgs defines them, as far as a gripper's driver needs them; no wheel carries that package.
SOURCES = {
    'package.xml': """<?xml version="1.0"?>
<package format="3">
  <name>control_msgs</name><version>0.0.0</version><description>Actions of grippers, for tests.</description>
  <maintainer email="nobody@example.invalid">nobody</maintainer><license>Apache-2.0</license>
  <buildtool_depend>ament_cmake</buildtool_depend><buildtool_depend>rosidl_default_generators</buildtool_depend>
  <depend>sensor_msgs</depend><depend>action_msgs</depend>
  <member_of_group>rosidl_interface_packages</member_of_group>
  <export><build_type>ament_cmake</build_type></export>
</package>
""",
    'CMakeLists.txt': """cmake_minimum_required(VERSION 3.20)
project(control_msgs)
find_package(ament_cmake REQUIRED)
find_package(rosidl_default_generators REQUIRED)
find_package(sensor_msgs REQUIRED)
rosidl_generate_interfaces(${PROJECT_NAME} "msg/GripperCommand.msg" "action/GripperCommand.action"
  "action/ParallelGripperCommand.action" DEPENDENCIES sensor_msgs)
ament_package()
""",
    'msg/GripperCommand.msg': 'float64 position\nfloat64 max_effort\n',
    'action/GripperCommand.action': 'GripperCommand command\n---\nfloat64 position\nfloat64 effort\nbool stalled\n'
    'bool reached_goal\n---\nfloat64 position\nfloat64 effort\nbool stalled\nbool reached_goal\n',
    'action/ParallelGripperCommand.action': 'sensor_msgs/JointState command\n---\nsensor_msgs/JointState state\n'
    'bool stalled\nbool reached_goal\n---\nsensor_msgs/JointState state\n',
}
installed = importlib.util.find_spec('control_msgs') is not None


@pytest.fixture(scope='session')
def with_control_msgs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a process that can import control_msgs; it is built if it is not installed."""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    if installed:
        return environment
    if shutil.which('cmake') is None:
        pytest.skip('control_msgs is not installed, and cmake, to build it, is not either')
    folder = tmp_path_factory.mktemp('control_msgs')
    for name, text in SOURCES.items():
        (folder / 'source' / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / 'source' / name).write_text(text)
    ros, prefix = Path(sys.prefix), folder / 'install'
    building = {name: value for name, value in environment.items() if name not in ('PYTHONPATH', 'LD_LIBRARY_PATH')}
    building.setdefault('AMENT_PREFIX_PATH', sys.prefix)  # a process of tests that was started by another may lack it
    definitions = {
        'CMAKE_INSTALL_PREFIX': prefix,
        'CMAKE_PREFIX_PATH': ros,
        'BUILD_TESTING': 'OFF',
        'Python3_EXECUTABLE': sys.executable,
        'CMAKE_PROJECT_INCLUDE': ROOT / 'tools/ros_wheels.cmake',
    }
    configure = ['cmake', '-S', folder / 'source', '-B', folder / 'build']
    configure += [f'-D{name}={value}' for name, value in definitions.items()]
    build = ['cmake', '--build', folder / 'build', '--parallel', '2', '--target', 'install']
    for command in (configure, build):
        done = subprocess.run(
            list(map(str, command)), env=building, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    paths = {
        'AMENT_PREFIX_PATH': str(prefix),
        'LD_LIBRARY_PATH': str(prefix / 'lib'),
        'PYTHONPATH': str(next(prefix.glob('lib/python3*/site-packages'))),
    }
    return environment | {
        name: ':'.join(part for part in (path, environment.get(name, '')) if part) for name, path in paths.items()
    }


@pytest.mark.slow
def test_the_gripper_never_blocks_the_arm(with_control_msgs):
    """Promise 21, with real action servers: see gripper_actions.py, which needs control_msgs to be imported at all."""
    tests = ROOT / 'tests/ros/gripper_actions.py'
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', str(tests)]
    done = subprocess.run(
        command, env=with_control_msgs, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert 'passed' in done.stdout


@pytest.mark.skipif(installed, reason='control_msgs is installed')
@pytest.mark.parametrize('interface', ['parallel_gripper_command', 'gripper_command'])
def test_without_control_msgs_an_action_gripper_is_refused_and_the_package_named(graph, bench, interface):
    b = bench(gripper_interface=interface)
    assert not b.node.transition('configure')
    assert 'control_msgs' in b.node.last_failure
    assert 'apt install' in b.node.last_failure
    assert b.node.state_label == 'unconfigured'


def test_a_dry_run_needs_no_gripper_driver(graph, bench):
    b = bench(gripper_interface='gripper_command', dry_run=True)
    assert b.node.transition('configure'), b.node.last_failure
