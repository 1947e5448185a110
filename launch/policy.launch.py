"""Robot (simulated, replayed or none), guard and policy: `ros2 launch cosmos3_ros policy.launch.py --show-args`."""

from launch import LaunchContext, LaunchDescription
from launch.action import Action
from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node

from cosmos3_ros.bringup import LAUNCH_ARGUMENTS, Argument, ProcessSpec, options_from_text, processes


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*map(declare, LAUNCH_ARGUMENTS), OpaqueFunction(function=start)])


def declare(argument: Argument) -> DeclareLaunchArgument:
    choices = list(argument.choices) or None
    return DeclareLaunchArgument(
        argument.name, default_value=argument.default, description=argument.description, choices=choices
    )


def start(context: LaunchContext) -> list[Action]:
    # A function, because which processes there are depends on the values, and so does which of them are faulty.
    given = {argument.name: LaunchConfiguration(argument.name).perform(context) for argument in LAUNCH_ARGUMENTS}
    return [action for spec in processes(options_from_text(given)) for action in actions(spec)]


def actions(spec: ProcessSpec) -> list[Action]:
    # Several nodes in one process keep their names: one name would be given to all of them.
    kind = LifecycleNode if spec.lifecycle and not spec.nodes else Node
    node = kind(
        package=spec.package,
        executable=spec.executable,
        name=None if spec.nodes else spec.name,
        arguments=list(spec.nodes),
        namespace=spec.namespace,
        parameters=[*map(str, spec.parameter_files), dict(spec.parameters)],
        remappings=list(spec.remappings),
        additional_env=dict(spec.environment),
        ros_arguments=['--log-level', spec.log_level],
        output='screen',
    )
    if not spec.essential:
        return [node]
    end = EmitEvent(event=Shutdown(reason=f'{spec.name} ended, and nothing may run without it'))
    return [node, RegisterEventHandler(OnProcessExit(target_action=node, on_exit=[end]))]
