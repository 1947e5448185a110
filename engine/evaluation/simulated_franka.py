"""A simulated Franka Panda, or two, with cameras, driven like a joint trajectory controller drives the real one."""

from __future__ import annotations

import ctypes.util
import importlib
import math
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from engine.errors import CosmosError, InvalidInput, Problem
from engine.evaluation import franka_scene as scene
from engine.evaluation.joint_path import JointPath, as_trajectory, in_the_past

if TYPE_CHECKING:
    import mujoco

Floats = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]

SYSTEM_LIBRARIES = 'apt-get install libegl1 libosmesa6 libgl1-mesa-dri libgles2'
# Pictures are drawn larger and averaged down: the edges get smooth for a fraction of what multisampling costs.
_SUPERSAMPLING = 1.5
_GREATEST_PICTURE = 4096
_FIRST_FINGER = len(scene.ARM_JOINTS)
_OF_ARM = _FIRST_FINGER + len(scene.FINGER_JOINTS)
# Where the loose objects may start, metres in the base frame: inside the view of all cameras and within reach.
_START_X = (0.36, 0.62)
_START_Y = (-0.26, 0.26)
_START_GAP = 0.02
_XYZW = np.array([4, 5, 6, 3])  # of the state of a free joint: MuJoCo's quaternions begin with w


class JointState(NamedTuple):
    """What the joint encoders and torque sensors say.

    Attributes:
        names: For each arm its 7 joints, then its 2 finger joints.
        positions: [9] for one arm, rad for its joints, m for the fingers.
        velocities: Likewise, rad/s and m/s.
        efforts: Likewise, Nm and N: what the drives exert, the share that carries the arm's own weight included.
    """

    names: tuple[str, ...]
    positions: Floats
    velocities: Floats
    efforts: Floats


class Pose(NamedTuple):
    """Position [3] in metres and unit quaternion [4] as x, y, z, w, both in the base frame of the robot."""

    position: Floats
    quaternion: Floats


def choose_gl_backend() -> str:
    """Library for rendering without a display: what `MUJOCO_GL` says, else 'egl', else 'osmesa'.

    Raises:
        CosmosError: Neither library is installed; the text says how to install them.
    """
    chosen = os.environ.get('MUJOCO_GL', '').strip().lower()
    if chosen or sys.platform != 'linux':
        return chosen
    for backend, library in (('egl', 'EGL'), ('osmesa', 'OSMesa')):
        if ctypes.util.find_library(library):
            return backend
    raise CosmosError(f'neither EGL nor OSMesa is installed, so nothing can be rendered -> {SYSTEM_LIBRARIES}')


def _import_mujoco() -> ModuleType:
    try:
        return importlib.import_module('mujoco')
    except ImportError as error:
        raise CosmosError(f'MuJoCo, which simulates the robot, is missing ({error}) -> pip install mujoco') from error


class _Studio:
    """Renders the scene's cameras; bound to the thread that made it, as every OpenGL context is."""

    def __init__(self, mujoco_: ModuleType, model: mujoco.MjModel, size: tuple[int, int]) -> None:
        self._mujoco, self._model, self._size = mujoco_, model, size
        self._thread = threading.get_ident()
        height, width = _supersampled(size)
        self._gl = _open_gl(mujoco_, width, height)
        self._context = mujoco_.MjrContext(model, mujoco_.mjtFontScale.mjFONTSCALE_100)
        mujoco_.mjr_setBuffer(mujoco_.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco_.MjvScene(model, maxgeom=2 * model.ngeom)
        # Shadows, reflections, sky and haze are worth nothing to a policy and cost more than all the rest.
        self._scene.flags[:] = 0
        self._scene.flags[mujoco_.mjtRndFlag.mjRND_CULL_FACE] = 1
        self._option, self._eye = mujoco_.MjvOption(), mujoco_.MjvCamera()
        self._eye.type = mujoco_.mjtCamera.mjCAMERA_FIXED
        self._frame = mujoco_.MjrRect(0, 0, width, height)
        self._pixels = np.empty((height, width, 3), np.uint8)

    def picture(self, data: mujoco.MjData, name: str) -> Picture:
        """What camera `name` sees, u8 [H, W, 3] RGB."""
        self._gl.make_current()
        self._eye.fixedcamid = self._model.camera(name).id
        everything = self._mujoco.mjtCatBit.mjCAT_ALL
        self._mujoco.mjv_updateScene(self._model, data, self._option, None, self._eye, everything, self._scene)
        self._mujoco.mjr_render(self._frame, self._scene, self._context)
        self._mujoco.mjr_readPixels(self._pixels, None, self._frame, self._context)
        height, width = self._size
        small = cv2.resize(self._pixels, (width, height), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(small[::-1], np.uint8)  # OpenGL counts rows from below

    def check_thread(self) -> None:
        """Raise a CosmosError unless called from the thread that made this object."""
        if threading.get_ident() != self._thread:
            raise CosmosError(
                'the simulated robot was rendered from one thread and is now called from another, but an OpenGL '
                'context belongs to one thread -> call render() and close() from the same thread'
            )

    def close(self) -> None:
        """Free the OpenGL context."""
        self._gl.make_current()
        self._context.free()
        self._gl.free()


def _open_gl(mujoco_: ModuleType, width: int, height: int) -> Any:
    """An OpenGL context, current in this thread.

    MuJoCo settles its backend when it is first imported, and loads the functions of the backend that `MUJOCO_GL` names
    when it first renders. So the variable is set here, and the context taken from the backend's own module: it works
    whoever imported MuJoCo before.
    """
    backend = choose_gl_backend()
    try:
        if backend in ('egl', 'osmesa'):
            os.environ['MUJOCO_GL'] = backend
            context = importlib.import_module(f'mujoco.{backend}').GLContext(width, height)
        else:
            context = mujoco_.GLContext(width, height)
        context.make_current()
    except Exception as error:  # each backend fails with types of its own
        raise CosmosError(
            f'OpenGL backend {backend or "default"!r} does not work: {error} -> {SYSTEM_LIBRARIES}'
        ) from error
    return context


def _supersampled(size: tuple[int, int]) -> tuple[int, int]:
    return math.ceil(size[0] * _SUPERSAMPLING), math.ceil(size[1] * _SUPERSAMPLING)


class SimulatedFranka:
    """A Panda with a two-finger hand, or two, at a table with a red cube, a blue disc, a green ball and a yellow bowl.

    Physics and servo run at 1 kHz of simulated time; nothing moves unless :meth:`advance` is called. The arm follows
    :meth:`set_trajectory` as ros2_control's joint trajectory controller does. The servo is a PD with velocity
    feed-forward behind the arm's own torque limits, gravity compensated, so the measured joints lag and sag a little
    under load as they do on metal. Commands are *not* clipped to position or velocity limits: what a careless command
    does is to be seen (joints have hard stops).

    Positions and poses are in the base frame, `panda_link0` or, for two arms, `base` in the middle between them:
    metres, x ahead, z up, table top at z = 0. J joints are 7 for each arm, arm after arm.

    Threads: any method may be called from any thread at any time, except that :meth:`render` and :meth:`close` belong
    to one thread, that of the first :meth:`render`, because an OpenGL context does. Rendering does not hold up the
    physics.
    """

    def __init__(
        self,
        seed: int = 0,
        image_size: tuple[int, int] = (180, 320),
        render_views: Sequence[str] | None = None,
        robot: scene.SceneRobot = scene.PANDA,
        *,
        obstacle: bool = False,
        zone: bool = False,
    ) -> None:
        """Build the scene, arms at the start pose, hands open, objects strewn by `seed`.

        Args:
            seed: Decides where the objects lie.
            image_size: Height and width of the pictures, pixels.
            render_views: Which of the robot's cameras :meth:`render` draws, None for all; empty for physics alone,
                which then needs no OpenGL.
            robot: One arm (`PANDA`) or two (`PANDA_PAIR`).
            obstacle: Whether :meth:`place_obstacle` may be called.
            zone: Whether :meth:`arrange` may lay a mark on the table.

        Raises:
            InvalidInput: A view that is not there, or a size that is not positive.
            CosmosError: MuJoCo or the OpenGL libraries are missing; the text names the packages.
        """
        views = robot.cameras if render_views is None else tuple(render_views)
        _check_options(image_size, views, robot)
        self._mujoco = _import_mujoco()
        if views:
            choose_gl_backend()  # better to hear of a missing library now than at the first picture
        self.kind = robot
        self._views = views
        self._size = (int(image_size[0]), int(image_size[1]))
        text = scene.franka_scene(*_supersampled(self._size), robot, obstacle=obstacle, zone=zone)
        self._model = self._mujoco.MjModel.from_xml_string(text)
        self._data = self._mujoco.MjData(self._model)
        self._picture_data = self._mujoco.MjData(self._model)
        self._has_zone = zone
        self._plain = _Looks.of(self._model)
        self._free = {thing.name: int(self._model.joint(thing.name).qposadr[0]) for thing in scene.OBJECTS}
        self._tools = [self._model.site(arm.prefix + scene.TOOL).id for arm in robot.arms]
        self._studio: _Studio | None = None
        self._lock = threading.Lock()
        self._steps = 0
        self._owed_ns = 0
        # Columns of the state vector, which holds each arm's joints and then its fingers.
        columns = np.arange(_OF_ARM * len(robot.arms)).reshape(-1, _OF_ARM)
        self._arm_columns = columns[:, :_FIRST_FINGER].ravel()
        self._finger_columns = columns[:, _FIRST_FINGER:]
        self.reset(seed)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures, pixels."""
        return self._size

    @property
    def time_ns(self) -> int:
        """Simulated time since construction, ns; a multiple of 1 ms that never goes back, not even at a reset."""
        return self._steps * scene.PHYSICS_STEP_NS

    def reset(self, seed: int) -> None:
        """Arms to the start pose at rest, hands open, any trajectory forgotten, objects strewn anew by `seed`.

        Lamps and cameras are as they were built, the mark is away.
        """
        with self._lock:
            self._begin(np.tile(scene.HOME, len(self.kind.arms)), _start_poses(seed))

    def arrange(self, setting: scene.Setting) -> None:
        """As :meth:`reset`, with everything where `setting` says.

        Pictures that are drawn meanwhile, by another thread, may have the lamps and cameras of either moment.

        Raises:
            InvalidInput: It names things or cameras that are not there, lacks some, or puts joints beyond their range;
                lists every fault.
        """
        _check_setting(setting, self.kind, zone=self._has_zone)
        poses = {thing.name: _on_table(thing, *setting.places[thing.name]) for thing in scene.OBJECTS}
        with self._lock:
            self._begin(np.array(setting.joints), poses, setting)

    def _begin(self, joints: Floats, poses: Mapping[str, Floats], setting: scene.Setting | None = None) -> None:
        """Everything at rest: arms at `joints`, objects at `poses`."""
        self._mujoco.mj_resetData(self._model, self._data)
        self._plain.restore(self._model)
        if setting is not None:
            _apply_looks(self._model, setting)
        self._fingers = np.full(len(self.kind.arms), scene.FINGER_TRAVEL)
        self._finger_targets = self._fingers.copy()
        for values in (self._data.qpos, self._data.ctrl):
            values[self._arm_columns] = joints
            values[self._finger_columns] = scene.FINGER_TRAVEL
        for name, place in poses.items():
            self._data.joint(name).qpos[:] = place
        self._path = JointPath.rest(joints, self.time_ns)
        self._mujoco.mj_forward(self._model, self._data)

    def set_trajectory(
        self,
        times_s: npt.ArrayLike,
        positions: npt.ArrayLike,
        velocities: npt.ArrayLike | None = None,
        start_ns: int | None = None,
    ) -> None:
        """Follow a trajectory from now on, in place of any other; its last point is held.

        The first segment starts from the currently *desired* state, so that a new trajectory does not jolt an arm that
        is under way; points whose time has passed are skipped. Between points the path is a cubic Hermite spline
        if `velocities` are given, else straight.

        Args:
            times_s: [K] seconds after `start_ns`, not negative, strictly increasing.
            positions: [K, J] joint positions, rad, in the order of the robot's joints.
            velocities: [K, J], rad/s; the last row must be zero, as ros2_control demands.
            start_ns: Time of the trajectory's zero on this simulation's clock; None for now.

        Raises:
            InvalidInput: Shapes, order or values are wrong, or every point lies in the past; the arms then go on
                with what they had.
        """
        times, goals, rates = as_trajectory(self.kind.joints, times_s, positions, velocities)
        with self._lock:
            now = self.time_ns
            start = now if start_ns is None else int(start_ns)
            knots = start + np.round(times * 1e9).astype(np.int64)
            ahead = knots > now
            if not ahead.any():
                raise InvalidInput('joint trajectory', [in_the_past(int(knots[-1]), now)])
            position, velocity = self._path.sample(np.array([now], np.int64))
            self._path = JointPath.through(
                np.concatenate([[now], knots[ahead]]),
                np.concatenate([position, goals[ahead]]),
                None if rates is None else np.concatenate([velocity, rates[ahead]]),
            )

    def set_gripper(self, closed_fraction: float, arm: str = '') -> None:
        """Move an arm's fingers at their own speed (5 cm/s each) towards `closed_fraction`: 0 open, 1 closed.

        Raises:
            InvalidInput: Not a number between 0 and 1, or no such arm.
        """
        number = self._number(arm)
        if not 0.0 <= closed_fraction <= 1.0:
            problem = Problem('closed_fraction', 'out of range', repr(closed_fraction), '0 (open) to 1 (closed)')
            raise InvalidInput('gripper command', [problem])
        with self._lock:
            self._finger_targets[number] = scene.FINGER_TRAVEL * (1.0 - closed_fraction)

    def advance(self, seconds: float) -> None:
        """Let `seconds` of simulated time pass; what falls short of a whole 1 ms step is owed to the next call.

        Raises:
            InvalidInput: `seconds` is negative or not finite.
            CosmosError: The physics diverged.
        """
        if not (math.isfinite(seconds) and seconds >= 0.0):
            raise InvalidInput('advance', [Problem('seconds', 'out of range', repr(seconds), 'finite, not negative')])
        with self._lock:
            steps, self._owed_ns = divmod(self._owed_ns + round(seconds * 1e9), scene.PHYSICS_STEP_NS)
            for control in self._controls(steps):
                self._data.ctrl[:] = control
                self._mujoco.mj_step(self._model, self._data)
                self._steps += 1
            if not np.isfinite(self._data.qpos).all():
                raise CosmosError(f'the simulated physics diverged before {self.time_ns * 1e-9:.3f} s -> reset()')

    def joint_state(self) -> JointState:
        """Measured joints, fingers included; see :class:`JointState`."""
        names = tuple(name for arm in self.kind.arms for name in (*arm.joints, *arm.fingers))
        with self._lock:
            joints = slice(0, len(names))
            return JointState(
                names,
                self._data.qpos[joints].copy(),
                self._data.qvel[joints].copy(),
                self._data.qfrc_actuator[joints].copy(),
            )

    def end_effector_pose(self, arm: str = '') -> Pose:
        """Measured pose of an arm's flange, `panda_link8`.

        Raises:
            InvalidInput: There is no such arm.
        """
        prefix = self.kind.arms[self._number(arm)].prefix
        with self._lock:
            self._mujoco.mj_kinematics(self._model, self._data)
            site = self._data.site(prefix + scene.FLANGE)
            quaternion = np.empty(4)
            self._mujoco.mju_mat2Quat(quaternion, site.xmat)
            return Pose(site.xpos.copy(), np.roll(quaternion, -1))

    def tool_position(self, arm: str = '') -> Floats:
        """Measured position [3], m, of the point between an arm's finger tips.

        Raises:
            InvalidInput: There is no such arm.
        """
        number = self._tools[self._number(arm)]
        with self._lock:
            self._mujoco.mj_kinematics(self._model, self._data)
            place: Floats = self._data.site_xpos[number].copy()
            return place

    def place_obstacle(self, position: npt.ArrayLike | None) -> None:
        """Put the obstacle somewhere at once, or away; a reset puts it away too.

        Args:
            position: [3] m, of its centre; None for away.

        Raises:
            InvalidInput: This scene has none, or the position is not three finite numbers.
        """
        place = np.asarray(scene.OBSTACLE_AWAY if position is None else position, np.float64)
        problems = []
        if not self._model.nmocap:
            problems.append(Problem('obstacle', 'this scene has none', remedy='make the robot with obstacle=True'))
        if place.shape != (3,) or not np.isfinite(place).all():
            problems.append(Problem('position', 'is no place', repr(position), 'three finite numbers, m'))
        if problems:
            raise InvalidInput('simulated robot', problems)
        with self._lock:
            self._data.mocap_pos[0] = place
            self._mujoco.mj_forward(self._model, self._data)

    def contacts(self) -> frozenset[tuple[str, str]]:
        """Who touches what at this instant: a body of an arm, and 'table', 'obstacle' or a loose object."""
        model, data = self._model, self._data
        with self._lock:
            pairs = model.geom_bodyid[data.contact.geom[data.contact.dist <= 0.0]]
        names = [[model.body(one).name for one in pair] for pair in {(one, other) for one, other in pairs.tolist()}]
        # Of what is fixed to the world, the table alone can be reached.
        return frozenset(
            (one, 'table' if other == 'world' else other)
            for pair in names
            for one, other in (pair, pair[::-1])
            if scene.ARM_BODY in one and scene.ARM_BODY not in other
        )

    def touched(self) -> frozenset[str]:
        """What the arms touch at this instant: 'table', 'obstacle', or loose objects by name."""
        return frozenset(what for _, what in self.contacts())

    def objects(self) -> dict[str, Pose]:
        """Pose of each loose object by name: 'red_cube', 'blue_disc', 'green_ball', 'yellow_bowl'."""
        with self._lock:
            qpos = self._data.qpos.copy()
        return {name: Pose(qpos[at : at + 3], qpos[at + _XYZW]) for name, at in self._free.items()}

    def render(self) -> dict[str, Picture]:
        """Pictures of the present moment, u8 [H, W, 3] RGB by view name.

        Raises:
            CosmosError: No OpenGL, or called from another thread than the first time.
        """
        if not self._views:
            return {}
        if self._studio is None:
            self._studio = _Studio(self._mujoco, self._model, self._size)
        self._studio.check_thread()
        # A copy of the configuration is all that pictures need, so the physics may go on meanwhile.
        with self._lock:
            self._picture_data.qpos[:] = self._data.qpos
            self._picture_data.mocap_pos[:] = self._data.mocap_pos
        self._mujoco.mj_kinematics(self._model, self._picture_data)
        self._mujoco.mj_camlight(self._model, self._picture_data)
        return {name: self._studio.picture(self._picture_data, name) for name in self._views}

    def close(self) -> None:
        """Free the OpenGL context, from the thread that rendered; further calls of `render` open a new one."""
        if self._studio is not None:
            self._studio.check_thread()
            self._studio.close()
            self._studio = None

    def _number(self, arm: str) -> int:
        names = [one.name for one in self.kind.arms]
        if arm not in names:
            allowed = ', '.join(map(repr, names))
            raise InvalidInput(self.kind.name, [Problem('arm', 'there is no such arm', repr(arm), allowed)])
        return names.index(arm)

    def _controls(self, steps: int) -> Floats:
        """Servo inputs [steps, 9 for each arm] for the coming physics steps."""
        ends = self.time_ns + scene.PHYSICS_STEP_NS * np.arange(1, steps + 1, dtype=np.int64)
        positions, velocities = self._path.sample(ends)
        controls = np.empty((steps, _OF_ARM * len(self.kind.arms)))
        # MuJoCo's position servo exerts kp (u - q) - kv q'. With this u it is kp (q* - q) + kv (q*' - q').
        controls[:, self._arm_columns] = positions + scene.SERVO_DAMPING / scene.SERVO_STIFFNESS * velocities
        travel = scene.FINGER_SPEED * scene.PHYSICS_STEP_NS * 1e-9 * np.arange(1, steps + 1)
        way = self._finger_targets - self._fingers
        fingers = self._fingers + np.sign(way) * np.minimum(travel[:, None], np.abs(way))
        controls[:, self._finger_columns] = fingers[:, :, None]
        if steps:
            self._fingers = fingers[-1]
        return controls


def _check_options(image_size: tuple[int, int], render_views: Sequence[str], robot: scene.SceneRobot) -> None:
    allowed = ', '.join(robot.cameras)
    problems = [
        Problem('render_views', 'no such camera', repr(name), allowed)
        for name in render_views
        if name not in robot.cameras
    ]
    if len(image_size) != 2 or not all(1 <= side <= _GREATEST_PICTURE for side in image_size):
        problems.append(
            Problem('image_size', 'impossible', repr(image_size), f'height, width in 1 to {_GREATEST_PICTURE}')
        )
    if problems:
        raise InvalidInput('simulated robot', problems)


class _Looks(NamedTuple):
    """What of a model an episode may change beside the state: lamps, cameras, and where fixed shapes are."""

    diffuse: Floats
    ambient: Floats
    camera_places: Floats
    camera_turns: Floats
    shapes: Floats

    @classmethod
    def of(cls, model: mujoco.MjModel) -> _Looks:
        """Those of a model as it is now."""
        ambient = np.array(model.vis.headlight.ambient)
        return cls(
            model.light_diffuse.copy(), ambient, model.cam_pos.copy(), model.cam_quat.copy(), model.geom_pos.copy()
        )

    def restore(self, model: mujoco.MjModel) -> None:
        """Give them back to the model."""
        model.light_diffuse[:], model.vis.headlight.ambient[:] = self.diffuse, self.ambient
        model.cam_pos[:], model.cam_quat[:], model.geom_pos[:] = self.camera_places, self.camera_turns, self.shapes


def _apply_looks(model: mujoco.MjModel, setting: scene.Setting) -> None:
    """Lamps, cameras and mark as a setting says; the model is as it was built."""
    model.light_diffuse[:] *= np.array(setting.light[:2])[:, None]
    model.vis.headlight.ambient[:] *= setting.light[2]
    for name, (shift, turn) in setting.cameras.items():
        camera = model.camera(name)
        was = Rotation.from_quat(np.roll(camera.quat, -1))
        camera.pos[:] += was.apply(np.array(shift))
        camera.quat[:] = np.roll((was * Rotation.from_rotvec(np.array(turn))).as_quat(), 1)
    if setting.zone is not None:
        model.geom(scene.ZONE).pos[:] = (*setting.zone, scene.ZONE_HEIGHT)


def _check_setting(setting: scene.Setting, robot: scene.SceneRobot, *, zone: bool) -> None:
    names = {thing.name for thing in scene.OBJECTS}
    problems = [Problem(f'places.{name}', 'is missing') for name in sorted(names - set(setting.places))]
    problems += [
        Problem(f'places.{name}', 'there is no such thing', '', ', '.join(sorted(names)))
        for name in sorted(set(setting.places) - names)
    ]
    problems += [
        Problem(f'cameras.{name}', 'there is no such camera', '', ', '.join(robot.cameras))
        for name in setting.cameras
        if name not in robot.cameras
    ]
    if len(setting.joints) != len(robot.joints):
        problems.append(Problem('joints', 'wrong length', str(len(setting.joints)), str(len(robot.joints))))
    for number, (value, joint) in enumerate(zip(setting.joints, scene.ARM * len(robot.arms), strict=False)):
        if not joint.lower <= value <= joint.upper:
            allowed = f'{joint.lower} to {joint.upper} rad'
            problems.append(Problem(f'joints.{robot.joints[number]}', 'beyond its range', repr(value), allowed))
    if setting.zone is not None and not zone:
        problems.append(Problem('zone', 'this scene has none', remedy='make the robot with zone=True'))
    if problems:
        raise InvalidInput('setting of the simulated robot', problems)


def _start_poses(seed: int) -> dict[str, Floats]:
    """Free-joint states [7] (position, quaternion w first) of the objects: on the table, apart from each other."""
    generator = np.random.default_rng(seed)
    poses: dict[str, Floats] = {}
    taken: list[tuple[float, float, float]] = []
    # The largest first: whatever it takes, room for the smaller ones is left.
    for thing in sorted(scene.OBJECTS, key=lambda o: -o.radius):
        x, y = _free_place(generator, thing.radius, taken)
        taken.append((x, y, thing.radius))
        poses[thing.name] = _on_table(thing, x, y, generator.uniform(-math.pi, math.pi))
    return poses


def _on_table(thing: scene.SceneObject, x: float, y: float, turn: float) -> Floats:
    """Free-joint state [7] of an object that rests on the table, turned about the vertical (rad)."""
    half = turn / 2
    return np.array([x, y, thing.height, math.cos(half), 0.0, 0.0, math.sin(half)])


def _free_place(
    generator: np.random.Generator, radius: float, taken: Sequence[tuple[float, float, float]]
) -> tuple[float, float]:
    """A random place of this radius that touches none of `taken` (x, y, radius); the table has room for all."""
    while True:
        x, y = float(generator.uniform(*_START_X)), float(generator.uniform(*_START_Y))
        if all(math.hypot(x - u, y - v) > radius + r + _START_GAP for u, v, r in taken):
            return x, y
