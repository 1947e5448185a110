"""Rotations, poses, pseudo-actions, embodiments and normalisation. NumPy only: knows robots, not tensors."""

from engine.actions import frames
from engine.actions.chunks import MODEL_WIDTH, fit_chunk, pad_channels, read_action_file
from engine.actions.codecs import codec
from engine.actions.embodiments import EMBODIMENTS, Embodiment, embodiment
from engine.actions.gripper import GripperTravel, to_model_gripper, to_robot_gripper
from engine.actions.joint_codec import JointActions, JointCodec
from engine.actions.layouts import ActionSpace, FrameConvention, GripperConvention, Kind, Segment
from engine.actions.normalization import NO_NORMALIZATION, Normalizer, normalizer
from engine.actions.pose_codec import PoseActions, PoseCodec
from engine.actions.poses import (
    Poses,
    anchored_deltas,
    compose,
    framewise_deltas,
    integrate_anchored,
    integrate_framewise,
    inverse,
)
from engine.actions.rotations import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_quaternion,
    matrix_to_rot6d,
    matrix_to_rpy,
    project_to_so3,
    quaternion_to_matrix,
    rot6d_to_matrix,
    rotation_distance,
    rpy_to_matrix,
)
from engine.actions.row_codec import Codec
from engine.actions.statistics import Method, Statistics, parse_statistics, published_statistics, read_statistics

__all__ = [
    'EMBODIMENTS',
    'MODEL_WIDTH',
    'NO_NORMALIZATION',
    'ActionSpace',
    'Codec',
    'Embodiment',
    'FrameConvention',
    'GripperConvention',
    'GripperTravel',
    'JointActions',
    'JointCodec',
    'Kind',
    'Method',
    'Normalizer',
    'PoseActions',
    'PoseCodec',
    'Poses',
    'Segment',
    'Statistics',
    'anchored_deltas',
    'axis_angle_to_matrix',
    'codec',
    'compose',
    'embodiment',
    'fit_chunk',
    'frames',
    'framewise_deltas',
    'integrate_anchored',
    'integrate_framewise',
    'inverse',
    'matrix_to_axis_angle',
    'matrix_to_quaternion',
    'matrix_to_rot6d',
    'matrix_to_rpy',
    'normalizer',
    'pad_channels',
    'parse_statistics',
    'project_to_so3',
    'published_statistics',
    'quaternion_to_matrix',
    'read_action_file',
    'read_statistics',
    'rot6d_to_matrix',
    'rotation_distance',
    'rpy_to_matrix',
    'to_model_gripper',
    'to_robot_gripper',
]
