"""How well verdicts of imagination work: `ros2 launch cosmos3_ros safety_sim.launch.py --show-args`."""

from launch import LaunchContext, LaunchDescription
from launch.action import Action
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from cosmos3_ros.bringup import PACKAGE, Argument
from cosmos3_ros.safety_options import SAFETY_ARGUMENTS, safety_options


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*map(declare, SAFETY_ARGUMENTS), OpaqueFunction(function=start)])


def declare(argument: Argument) -> DeclareLaunchArgument:
    choices = list(argument.choices) or None
    return DeclareLaunchArgument(
        argument.name, default_value=argument.default, description=argument.description, choices=choices
    )


def start(context: LaunchContext) -> list[Action]:
    given = {argument.name: LaunchConfiguration(argument.name).perform(context) for argument in SAFETY_ARGUMENTS}
    safety_options(given)  # a wrong value is told here, before anything is started
    words = [f'{name}:={value}' for name, value in given.items()]
    return [Node(package=PACKAGE, executable='safety_sim', arguments=words, output='screen')]
