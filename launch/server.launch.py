"""A policy for robots elsewhere: `ros2 launch cosmos3_ros server.launch.py --show-args`."""

from launch import LaunchContext, LaunchDescription
from launch.action import Action
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from cosmos3_ros.bringup import Argument
from cosmos3_ros.bringup_server import SERVER_ARGUMENTS, server_processes


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*map(declare, SERVER_ARGUMENTS), OpaqueFunction(function=start)])


def declare(argument: Argument) -> DeclareLaunchArgument:
    choices = list(argument.choices) or None
    return DeclareLaunchArgument(
        argument.name, default_value=argument.default, description=argument.description, choices=choices
    )


def start(context: LaunchContext) -> list[Action]:
    given = {argument.name: LaunchConfiguration(argument.name).perform(context) for argument in SERVER_ARGUMENTS}
    return [
        Node(
            package=spec.package,
            executable=spec.executable,
            arguments=list(spec.nodes),
            namespace=spec.namespace,
            parameters=[*map(str, spec.parameter_files), dict(spec.parameters)],
            ros_arguments=['--log-level', spec.log_level],
            output='screen',
        )
        for spec in server_processes(given)
    ]
