"""A Franka Panda at a table, or two, drawn from primitives: the MuJoCo model text, and the figures it is made of.

No meshes and nothing to download: capsules, cylinders and boxes with the arm's true kinematics, limits and inertia, so
that whatever commands the real arm can command this one. World frame and base frame (`panda_link0`; `base` for two
arms, in the middle between them) are the same: metres, x ahead of the robot, z up, the table top at z = 0.

Sources of the figures: joint origins, limits and hand geometry from the public `franka_description` package
(Apache-2.0); link masses and inertia from Gaz et al., "Dynamic Identification of the Franka Emika Panda Robot With
Retrieval of Feasible Parameters Using Penalty-Based Optimization", IEEE RA-L 2019; servo gains and start pose from the
DROID environment of the public RoboLab benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

REVISION = 2
"""Another number whenever the same episode looks or moves otherwise: what is on disk is then of another scene."""

PHYSICS_STEP_NS = 1_000_000
"""One step of the physics and of the servo: 1 ms, as the arm's own control loop."""

SERVO_STIFFNESS = 400.0
"""Position gain of every arm joint, Nm/rad."""

SERVO_DAMPING = 80.0
"""Velocity gain of every arm joint, Nm s/rad."""

FINGER_TRAVEL = 0.04
"""Travel of one finger from closed (0) to open, m."""

FINGER_SPEED = 0.05
"""Travel speed of one finger, m/s."""

HOME = (0.0, -math.pi / 5, 0.0, -4 * math.pi / 5, 0.0, 3 * math.pi / 5, 0.0)
"""Arm configuration after a reset, rad."""

ARM_JOINTS = tuple(f'panda_joint{i}' for i in range(1, 8))
FINGER_JOINTS = ('panda_finger_joint1', 'panda_finger_joint2')
FLANGE = 'panda_link8'
TOOL = 'panda_hand_tcp'
ARM_BODY = 'panda_'
"""Part of the name of every body of an arm, and of no other."""

CAMERAS = ('wrist', 'exterior_1', 'exterior_2')


@dataclass(frozen=True)
class MountedArm:
    """One arm of the scene.

    Attributes:
        name: What it is called; empty for the only one.
        mount: Where its own base stands in the base of the robot, m; turned as that is.
    """

    name: str
    mount: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def prefix(self) -> str:
        """What the names of its joints and bodies begin with."""
        return f'{self.name}_' if self.name else ''

    @property
    def joints(self) -> tuple[str, ...]:
        """Its seven joints."""
        return tuple(self.prefix + joint for joint in ARM_JOINTS)

    @property
    def fingers(self) -> tuple[str, ...]:
        """Its two finger joints; the first stands for the gripper."""
        return tuple(self.prefix + joint for joint in FINGER_JOINTS)


@dataclass(frozen=True)
class SceneRobot:
    """A robot that the scene can hold.

    Attributes:
        name: That of its file in config/robots.
        base: The frame in which its poses are given, which is that of the world.
        arms: Its arms, in the order of all joints.
        cameras: What looks on.
    """

    name: str
    base: str
    arms: tuple[MountedArm, ...]
    cameras: tuple[str, ...]

    @property
    def joints(self) -> tuple[str, ...]:
        """The joints of all arms, without the fingers."""
        return tuple(joint for arm in self.arms for joint in arm.joints)


PANDA = SceneRobot('panda', 'panda_link0', (MountedArm(''),), CAMERAS)
PANDA_PAIR = SceneRobot(
    'panda_pair',
    'base',
    (MountedArm('left', (0.0, 0.4, 0.0)), MountedArm('right', (0.0, -0.4, 0.0))),
    ('front', 'left', 'right', 'left_wrist', 'right_wrist'),
)
ROBOTS = {robot.name: robot for robot in (PANDA, PANDA_PAIR)}

_ROBOT = 'contype="1" conaffinity="2" solref="0.004 1"'
_THING = 'contype="2" conaffinity="3" density="400" solref="0.004 1"'
_SHOWN = 'contype="0" conaffinity="0"'


@dataclass(frozen=True)
class ArmJoint:
    """One revolute joint; it turns about its own z axis.

    Attributes:
        origin: Joint origin in the parent link's frame, m.
        roll: Rotation of the joint frame about the parent's x axis, rad (the Panda has no other).
        lower: Lower position limit, rad.
        upper: Upper position limit, rad.
        velocity: Velocity limit, rad/s. The simulation does not enforce it: keeping it is the commander's duty.
        effort: Torque limit, Nm.
    """

    origin: tuple[float, float, float]
    roll: float
    lower: float
    upper: float
    velocity: float
    effort: float


_QUARTER = math.pi / 2

ARM = (
    ArmJoint((0.0, 0.0, 0.333), 0.0, -2.8973, 2.8973, 2.175, 87.0),
    ArmJoint((0.0, 0.0, 0.0), -_QUARTER, -1.7628, 1.7628, 2.175, 87.0),
    ArmJoint((0.0, -0.316, 0.0), _QUARTER, -2.8973, 2.8973, 2.175, 87.0),
    ArmJoint((0.0825, 0.0, 0.0), _QUARTER, -3.0718, -0.0698, 2.175, 87.0),
    ArmJoint((-0.0825, 0.384, 0.0), -_QUARTER, -2.8973, 2.8973, 2.61, 12.0),
    ArmJoint((0.0, 0.0, 0.0), _QUARTER, -0.0175, 3.7525, 2.61, 12.0),
    ArmJoint((0.088, 0.0, 0.0), _QUARTER, -2.8973, 2.8973, 2.61, 12.0),
)
"""The seven joints from shoulder to wrist."""

# Links 1 to 7 in their own frames: mass (kg), centre of mass (m), moments about it (kg m²; xx, yy, zz, xy, xz, yz).
_INERTIA = (
    (4.970684, (0.003875, 0.002081, -0.04762), (0.70337, 0.70661, 0.009117, -0.000139, 0.006772, 0.019169)),
    (0.646926, (-0.003141, -0.02872, 0.003495), (0.007962, 0.02811, 0.025995, -0.003925, 0.010254, 0.000704)),
    (3.228604, (0.027518, 0.039252, -0.066502), (0.037242, 0.036155, 0.01083, -0.004761, -0.011396, -0.012805)),
    (3.587895, (-0.05317, 0.104419, 0.027454), (0.025853, 0.019552, 0.028323, 0.007796, -0.001332, 0.008641)),
    (1.225946, (-0.011953, 0.041065, -0.038437), (0.035549, 0.029474, 0.008627, -0.002117, -0.004037, 0.000229)),
    (1.666555, (0.060149, -0.014117, -0.010517), (0.001964, 0.004354, 0.005433, 0.000109, -0.001158, 0.000341)),
    (0.735522, (0.010517, -0.004252, 0.061597), (0.012516, 0.010027, 0.004815, -0.000428, -0.001196, -0.000741)),
)
_ROTOR_INERTIA = 0.1  # kg m² at the joint: motor and gear, which dwarf the light wrist links

FLANGE_OFFSET = 0.107
"""Distance of the flange (`panda_link8`) from joint 7 along the joint axis, m."""

# Shapes in the frame of their link: kind, material, radius (m; none for a box), then the two ends of the axis, or the
# centre and half sizes of a box (m). The white shells follow the arm's collision volumes and collide with the world,
# not with each other; dark rings and grey caps at the joints are only seen: by them the eye reads a Franka at 320x180.
_Shape = tuple[str, str, float, tuple[float, ...]]
_SHELLS: tuple[tuple[_Shape, ...], ...] = (
    (  # link0: foot and column
        ('box', 'shell', 0.0, (-0.05, 0, 0.03, 0.10, 0.085, 0.03)),
        ('capsule', 'shell', 0.062, (-0.085, 0, 0.07, -0.01, 0, 0.07)),
        ('cylinder', 'shell', 0.066, (0, 0, 0.05, 0, 0, 0.135)),
        ('cylinder', 'dark', 0.0665, (0, 0, 0.135, 0, 0, 0.145)),
    ),
    (
        ('cylinder', 'shell', 0.062, (0, 0, -0.188, 0, 0, -0.02)),
        ('cylinder', 'shell', 0.064, (0, -0.065, 0, 0, 0.065, 0)),
    ),
    (
        ('cylinder', 'dark', 0.058, (0, 0, -0.074, 0, 0, 0.074)),
        ('cylinder', 'grey', 0.05, (0, 0, -0.079, 0, 0, 0.079)),
        ('capsule', 'shell', 0.06, (0, -0.02, 0, 0, -0.11, 0)),
        ('cylinder', 'shell', 0.061, (0, -0.10, 0, 0, -0.185, 0)),
        ('cylinder', 'dark', 0.0615, (0, -0.185, 0, 0, -0.195, 0)),
    ),
    (
        ('cylinder', 'shell', 0.061, (0, 0, -0.121, 0, 0, -0.06)),
        ('capsule', 'shell', 0.057, (0, 0, -0.07, 0.075, 0, -0.005)),
        ('cylinder', 'shell', 0.056, (0.0825, -0.055, 0, 0.0825, 0.055, 0)),
    ),
    (
        ('cylinder', 'dark', 0.051, (0, 0, -0.066, 0, 0, 0.066)),
        ('cylinder', 'grey', 0.043, (0, 0, -0.071, 0, 0, 0.071)),
        ('capsule', 'shell', 0.055, (-0.01, 0.01, 0, -0.0825, 0.07, 0)),
        ('cylinder', 'shell', 0.057, (-0.0825, 0.06, 0, -0.0825, 0.118, 0)),
        ('cylinder', 'dark', 0.0575, (-0.0825, 0.118, 0, -0.0825, 0.128, 0)),
    ),
    (
        ('cylinder', 'shell', 0.057, (0, 0, -0.256, 0, 0, -0.215)),
        ('capsule', 'shell', 0.055, (0, 0.002, -0.215, 0, 0.02, -0.18)),
        ('capsule', 'shell', 0.038, (0, 0.035, -0.18, 0, 0.06, -0.05)),
        ('capsule', 'shell', 0.045, (0, 0.045, -0.02, 0, 0.06, 0)),
        ('cylinder', 'shell', 0.05, (0, -0.045, 0, 0, 0.085, 0)),
    ),
    (
        ('cylinder', 'dark', 0.046, (0, 0, -0.09, 0, 0, 0.056)),
        ('cylinder', 'grey', 0.038, (0, 0, -0.094, 0, 0, 0.060)),
        ('capsule', 'shell', 0.048, (0.01, 0, 0.01, 0.078, 0, 0.01)),
        ('cylinder', 'shell', 0.048, (0.088, -0.05, 0, 0.088, 0.045, 0)),
    ),
    (
        ('cylinder', 'dark', 0.044, (0, 0, 0.045, 0, 0, 0.056)),
        ('cylinder', 'shell', 0.045, (0, 0, 0.056, 0, 0, 0.088)),
        ('capsule', 'shell', 0.026, (0, 0, 0.075, 0.055, 0, 0.075)),
        ('cylinder', 'grey', 0.0455, (0, 0, 0.088, 0, 0, 0.107)),
    ),
)
_HAND_SHELL: tuple[_Shape, ...] = (
    ('cylinder', 'dark', 0.034, (0, 0, 0, 0, 0, 0.012)),
    ('capsule', 'shell', 0.027, (0, -0.072, 0.036, 0, 0.072, 0.036)),
    ('box', 'shell', 0.0, (0, 0, 0.042, 0.0265, 0.095, 0.0165)),
    ('box', 'grey', 0.0, (0, 0, 0.0605, 0.018, 0.093, 0.003)),
)
_CAMERA_SHELL: tuple[_Shape, ...] = (
    ('box', 'dark', 0.0, (0.045, 0, 0.012, 0.03, 0.014, 0.006)),
    ('box', 'dark', 0.0, (0.084, 0, 0.012, 0.012, 0.058, 0.015)),
)


def _numbers(values: Sequence[float]) -> str:
    """`values` as MuJoCo reads them, without loss."""
    return ' '.join(repr(float(v)) for v in values)


def _shape(shape: _Shape, collides: str) -> str:
    kind, material, radius, place = shape
    if kind == 'box':
        geometry = f'pos="{_numbers(place[:3])}" size="{_numbers(place[3:])}"'
    else:
        geometry = f'fromto="{_numbers(place)}" size="{radius}"'
    return f'<geom type="{kind}" {geometry} material="{material}" {collides}/>'


def _shapes(shapes: Sequence[_Shape]) -> str:
    return '\n'.join(_shape(s, _ROBOT if s[1] == 'shell' else _SHOWN) for s in shapes)


def _turn_about_x(angle: float) -> str:
    return _numbers((math.cos(angle / 2), math.sin(angle / 2), 0.0, 0.0))


def _inertial(mass: float, centre: Sequence[float], inertia: Sequence[float]) -> str:
    return f'<inertial mass="{mass}" pos="{_numbers(centre)}" fullinertia="{_numbers(inertia)}"/>'


def _finger(prefix: str, index: int) -> str:
    side = 1 if index == 1 else -1
    return f"""
<body name="{prefix}panda_finger{index}" pos="0 0 0.0584" gravcomp="1">
  {_inertial(0.015, (0, 0, 0.03), (1e-5, 1e-5, 5e-6, 0, 0, 0))}
  <joint name="{prefix}panda_finger_joint{index}" type="slide" axis="0 {side} 0" range="0 {FINGER_TRAVEL}"
    armature="0.1" solreflimit="0.004 1"/>
  <geom type="box" pos="0 {side * 0.0165} 0.014" size="0.0105 0.0085 0.012" material="grey" {_ROBOT}/>
  <geom type="box" pos="0 {side * 0.0125} 0.032" size="0.009 0.0055 0.016" material="grey" {_ROBOT}/>
  <geom type="box" pos="0 {side * 0.0055} 0.045" size="0.009 0.0055 0.0095" material="pad" friction="1.5" condim="4"
    {_ROBOT}/>
</body>"""


def _hand(prefix: str) -> str:
    """The hand sits square on the flange, as DROID mounts its gripper; the arm maker's own mount turns it by -45 deg.

    So at the start pose, with joint 7 at zero, the fingers open to the left and right of the robot.
    """
    fingers = _finger(prefix, 1) + _finger(prefix, 2)
    eye = (0.088, 0.0, 0.03)
    return f"""
<body name="{prefix}panda_hand" pos="0 0 {FLANGE_OFFSET}" gravcomp="1">
  {_inertial(0.73, (-0.01, 0, 0.03), (0.001, 0.0025, 0.0017, 0, 0, 0))}
  {_shapes(_HAND_SHELL)}
  {_shapes(_CAMERA_SHELL)}
  <site name="{prefix}panda_hand_tcp" pos="0 0 0.1034" size="0.005" group="4"/>
  <camera name="{prefix}wrist" pos="{_numbers(eye)}" fovy="72" {_camera_axes(eye, (0.032, 0, 0.145), (1, 0, 0))}/>
  {fingers}
</body>"""


def _links(prefix: str, index: int = 0) -> str:
    """Body of link `index` + 1 with everything it carries."""
    joint = ARM[index]
    carried = (
        _links(prefix, index + 1)
        if index + 1 < len(ARM)
        else f'<site name="{prefix}{FLANGE}" pos="0 0 {FLANGE_OFFSET}" size="0.005" group="4"/>{_hand(prefix)}'
    )
    return f"""
<body name="{prefix}panda_link{index + 1}" pos="{_numbers(joint.origin)}" quat="{_turn_about_x(joint.roll)}"
  gravcomp="1">
  {_inertial(*_INERTIA[index])}
  <joint name="{prefix}{ARM_JOINTS[index]}" range="{joint.lower} {joint.upper}" solreflimit="0.004 1"
    armature="{_ROTOR_INERTIA}" actuatorgravcomp="true" actuatorfrcrange="{-joint.effort} {joint.effort}"/>
  {_shapes(_SHELLS[index + 1])}
  {carried}
</body>"""


def _camera_axes(position: Sequence[float], target: Sequence[float], up: Sequence[float]) -> str:
    """Orientation of a camera at `position` that looks at `target`, image top towards `up`."""
    back = _unit([p - t for p, t in zip(position, target, strict=True)])
    right = _unit(_cross(up, back))
    return f'xyaxes="{_numbers([*right, *_cross(back, right)])}"'


def _cross(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def _unit(vector: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(v * v for v in vector))
    return [v / length for v in vector]


def _arm(arm: MountedArm) -> str:
    """A whole arm on its foot."""
    return f"""
<body name="{arm.prefix}panda_link0" pos="{_numbers(arm.mount)}">
  <geom type="box" pos="-0.04 0 0.002" size="0.15 0.13 0.003" material="mount" {_SHOWN}/>
  {_shapes(_SHELLS[0])}
  {_links(arm.prefix)}
</body>"""


def _camera(name: str, position: Sequence[float], target: Sequence[float], fovy: float) -> str:
    axes = _camera_axes(position, target, (0, 0, 1))
    return f'<camera name="{name}" pos="{_numbers(position)}" fovy="{fovy}" {axes}/>'


# Cameras that do not move with an arm: where they stand, what they look at, and their vertical angle of view (degrees).
# Those of one arm face it from opposite sides as DROID's do, so near that a small composite still has several pixels
# for each thing on the table; those of two arms stand in front and to the sides as RoboMIND's do.
_STANDING = {
    'exterior_1': ((1.08, 0.48, 0.82), (0.48, 0.0, 0.1), 34),
    'exterior_2': ((1.08, -0.48, 0.82), (0.48, 0.0, 0.1), 34),
    'front': ((1.4, 0.0, 0.95), (0.25, 0.0, 0.3), 54),
    'left': ((0.85, 1.25, 1.05), (0.28, 0.1, 0.25), 54),
    'right': ((0.85, -1.25, 1.05), (0.28, -0.1, 0.25), 54),
}


_BOWL_RADIUS = 0.068


def _bowl() -> str:
    """A shallow bowl: a floor and a ring of slanted staves, hollow for contacts too."""
    count, lean, height = 14, math.radians(35), 0.032
    middle = _BOWL_RADIUS - height / 2 * math.tan(lean)
    size = _numbers((_BOWL_RADIUS * math.tan(math.pi / count) + 0.0008, height / 2 / math.cos(lean), 0.0025))
    floor = f'<geom type="cylinder" size="{middle - 0.008} 0.003" pos="0 0 0.003" material="yellow" {_THING}/>'
    staves = []
    for angle in (2 * math.pi * i / count for i in range(count)):
        x, y = math.cos(angle), math.sin(angle)
        place = _numbers((middle * x, middle * y, height / 2 + 0.002))
        axes = _numbers((-y, x, 0.0, math.sin(lean) * x, math.sin(lean) * y, math.cos(lean)))
        staves.append(f'<geom type="box" size="{size}" pos="{place}" xyaxes="{axes}" material="yellow" {_THING}/>')
    return floor + ''.join(staves)


@dataclass(frozen=True)
class SceneObject:
    """One loose thing on the table.

    Attributes:
        name: Colour and shape, as an instruction would say it.
        height: Height of the body's origin above the table when it rests, m.
        radius: Radius of an upright cylinder that holds it, m; keeps objects apart at the start.
        geoms: MuJoCo text of its shapes.
    """

    name: str
    height: float
    radius: float
    geoms: str


_GRIP = f'condim="4" friction="1" {_THING}'
_CUBE = f'<geom type="box" size="0.025 0.025 0.025" material="red" {_GRIP}/>'
_DISC = f'<geom type="cylinder" size="0.037 0.0125" material="blue" {_GRIP}/>'
# Rolling friction, or the ball would never come to rest.
_BALL = f'<geom type="sphere" size="0.03" material="green" condim="6" friction="1 0.005 0.002" {_THING}/>'

OBJECTS = (
    SceneObject('red_cube', 0.025, 0.036, _CUBE),
    SceneObject('blue_disc', 0.0125, 0.037, _DISC),
    SceneObject('green_ball', 0.03, 0.03, _BALL),
    SceneObject('yellow_bowl', 0.0, _BOWL_RADIUS, _bowl()),
)
"""What lies on the table."""


def _object(thing: SceneObject) -> str:
    return f"""
<body name="{thing.name}" pos="0.5 0 {thing.height}">
  <freejoint name="{thing.name}"/>
  {thing.geoms}
</body>"""


@dataclass(frozen=True)
class Setting:
    """How a scene is to be at the beginning of an episode.

    Attributes:
        joints: Where the arms are, rad, in the order of the joints of all arms.
        places: For each loose object x, y (m) and the turn about the vertical (rad), at rest on the table.
        zone: Where the middle of the mark lies, x, y (m); None for nowhere.
        light: Factors of the brightness of the two lamps and of the light from everywhere.
        cameras: For each camera that is off its place a shift [3] (m) and a turn [3] (rad, as a rotation vector), both
            in the camera's own axes: x to the right, y up, z backwards.
    """

    joints: tuple[float, ...]
    places: Mapping[str, tuple[float, float, float]]
    zone: tuple[float, float] | None = None
    light: tuple[float, float, float] = (1.0, 1.0, 1.0)
    cameras: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = field(default_factory=dict)


# Name: colour, specular, shininess, emission.
_MATERIALS = {
    'shell': ('0.90 0.91 0.92', 0.35, 0.5, 0.0),
    'dark': ('0.13 0.14 0.16', 0.3, 0.5, 0.0),
    'grey': ('0.36 0.38 0.41', 0.4, 0.5, 0.0),
    'pad': ('0.10 0.10 0.11', 0.1, 0.2, 0.0),
    'red': ('0.86 0.16 0.14', 0.3, 0.4, 0.0),
    'blue': ('0.13 0.34 0.83', 0.3, 0.4, 0.0),
    'green': ('0.16 0.64 0.27', 0.5, 0.6, 0.0),
    'yellow': ('0.88 0.69 0.13', 0.2, 0.4, 0.0),
    'table': ('0.69 0.57 0.44', 0.05, 0.2, 0.0),
    'edge': ('0.50 0.38 0.27', 0.05, 0.1, 0.0),
    'seam': ('0.57 0.45 0.33', 0.05, 0.1, 0.0),
    'mount': ('0.27 0.29 0.32', 0.2, 0.3, 0.0),
    'floor': ('0.55 0.58 0.61', 0.05, 0.1, 0.0),
    'wall': ('0.83 0.87 0.90', 0.0, 0.0, 0.25),
    'purple': ('0.55 0.25 0.70', 0.05, 0.1, 0.0),
}


def _materials() -> str:
    return ''.join(
        f'<material name="{name}" rgba="{colour} 1" specular="{specular}" shininess="{shininess}" emission="{glow}"/>'
        for name, (colour, specular, shininess, glow) in _MATERIALS.items()
    )


def _surroundings(robot: SceneRobot) -> str:
    cameras = ''.join(_camera(name, *_STANDING[name]) for name in robot.cameras if name in _STANDING)
    behind = (
        f'<geom type="box" pos="-4 0 1" size="0.05 6 2" material="wall" {_SHOWN}/>' if 'front' in robot.cameras else ''
    )
    seams = ''.join(
        f'<geom type="box" pos="0.37 {y} 0.0003" size="0.62 0.0022 0.0001" material="seam" {_SHOWN}/>'
        for y in (-0.49, -0.21, 0.07, 0.35)
    )
    return f"""
<light directional="true" pos="0 0 3" dir="-0.25 -0.45 -1" diffuse="0.55 0.54 0.52" specular="0.25 0.25 0.25"
  castshadow="false"/>
<light directional="true" pos="0 0 3" dir="0.55 0.35 -0.6" diffuse="0.22 0.23 0.25" specular="0.05 0.05 0.05"
  castshadow="false"/>
<geom name="table" type="box" pos="0.37 0 -0.02" size="0.62 0.70 0.02" material="table" {_THING}/>
<geom type="box" pos="0.37 0 -0.07" size="0.60 0.68 0.03" material="edge" {_SHOWN}/>
<geom name="floor" type="plane" pos="0 0 -0.75" size="6 6 0.1" group="4" {_THING}/>
<geom type="box" pos="0 0 -0.8" size="6 6 0.05" material="floor" {_SHOWN}/>
<geom type="box" pos="4 0 1" size="0.05 6 2" material="wall" {_SHOWN}/>
<geom type="box" pos="0 4 1" size="6 0.05 2" material="wall" {_SHOWN}/>
<geom type="box" pos="0 -4 1" size="6 0.05 2" material="wall" {_SHOWN}/>
{behind}
{seams}
{cameras}"""


def _servos(arm: MountedArm) -> str:
    joints = '\n'.join(
        f'<position name="{name}" joint="{name}" kp="{SERVO_STIFFNESS}" kv="{SERVO_DAMPING}"/>' for name in arm.joints
    )
    fingers = '\n'.join(
        f'<position name="{name}" joint="{name}" kp="1000" kv="20" forcerange="-70 70" ctrlrange="0 {FINGER_TRAVEL}"/>'
        for name in arm.fingers
    )
    return joints + '\n' + fingers


def _hand_gear(arm: MountedArm) -> str:
    one, other = arm.fingers
    return f'<joint joint1="{other}" joint2="{one}" polycoef="0 1 0 0 0" solref="0.004 1"/>'


OBSTACLE = 'obstacle'
"""Name of the box that can be put in an arm's way."""

OBSTACLE_HALF = (0.035, 0.035, 0.16)
"""Half sizes of the obstacle, m."""

OBSTACLE_AWAY = (0.0, 0.0, -3.0)
"""Where the obstacle is while it is not wanted: below the floor, m."""


def _obstacle() -> str:
    """A box that nothing moves but the simulation's user; it collides with arms and things."""
    return f"""
<body name="{OBSTACLE}" mocap="true" pos="{_numbers(OBSTACLE_AWAY)}">
  <geom type="box" size="{_numbers(OBSTACLE_HALF)}" material="dark" {_THING}/>
</body>"""


ZONE = 'zone'
"""Name of the mark on the table that things can be pushed to."""

ZONE_RADIUS = 0.06
"""Radius of the mark, m."""

ZONE_AWAY = (0.0, 0.0, -3.0)
"""Where the mark is while it is not wanted: below the floor, m."""

ZONE_HEIGHT = 0.0006
"""Height of the middle of the mark above the table, m."""


def _zone() -> str:
    """A purple circle that is seen and not felt."""
    size = _numbers((ZONE_RADIUS, 0.0004))
    place = _numbers(ZONE_AWAY)
    return f'<geom name="{ZONE}" type="cylinder" size="{size}" pos="{place}" material="purple" {_SHOWN}/>'


def franka_scene(
    picture_height: int,
    picture_width: int,
    robot: SceneRobot = PANDA,
    *,
    obstacle: bool = False,
    zone: bool = False,
) -> str:
    """MuJoCo model text of the robot, the table and the things on it.

    Args:
        picture_height: Greatest height that will be rendered, pixels.
        picture_width: Greatest width that will be rendered, pixels.
        robot: One arm, or two.
        obstacle: Whether there is a box that can be put in the way; it waits where nothing touches it.
        zone: Whether there is a mark that can be laid on the table; it waits where nothing sees it.

    Returns:
        MJCF text. For each arm its `joints` and then its `fingers` come first in the state vector, then one free joint
        for each of `OBJECTS`; actuators are in the order of the joints; cameras are those of the robot.
    """
    # Multisampling and shadow maps cost ten times the picture in software rendering, so both are off; finer slices
    # would cost half as much again and cannot be told apart at this size.
    return f"""
<mujoco model="franka_table">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{PHYSICS_STEP_NS * 1e-9!r}" integrator="implicitfast" cone="elliptic" impratio="5">
    <flag autoreset="disable"/>
  </option>
  <statistic center="0.4 0 0.2" extent="1.5"/>
  <visual>
    <global offwidth="{picture_width}" offheight="{picture_height}"/>
    <quality offsamples="0" shadowsize="0" numslices="18" numstacks="4" numquads="1"/>
    <headlight ambient="0.36 0.36 0.37" diffuse="0.30 0.30 0.30" specular="0 0 0"/>
    <map znear="0.012" zfar="8"/>
  </visual>
  <asset>{_materials()}</asset>
  <worldbody>
    {_surroundings(robot)}
    {''.join(map(_arm, robot.arms))}
    {''.join(_object(o) for o in OBJECTS)}
    {_obstacle() if obstacle else ''}
    {_zone() if zone else ''}
  </worldbody>
  <equality>
    {''.join(map(_hand_gear, robot.arms))}
  </equality>
  <actuator>{''.join(map(_servos, robot.arms))}</actuator>
</mujoco>"""
