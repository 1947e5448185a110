"""A simulated Franka Panda with three cameras, driven like a joint trajectory controller drives the real one."""

from __future__ import annotations

import ctypes.util
import importlib
import math
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from engine.errors import CosmosError, InvalidInput, Problem
from engine.evaluation import franka_scene as scene

if TYPE_CHECKING:
    import mujoco

Floats = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]

SYSTEM_LIBRARIES = 'apt-get install libegl1 libosmesa6 libgl1-mesa-dri libgles2'
# Pictures are drawn larger and averaged down: the edges get smooth for a fraction of what multisampling costs.
_SUPERSAMPLING = 1.5
_GREATEST_PICTURE = 4096
_ARM = slice(0, 7)
_FINGERS = slice(7, 9)
# Where the loose objects may start, metres in the base frame: inside the view of all cameras and within reach.
_START_X = (0.36, 0.62)
_START_Y = (-0.26, 0.26)
_START_GAP = 0.02


class JointState(NamedTuple):
    """What the joint encoders and torque sensors say.

    Attributes:
        names: The 7 arm joints, then the 2 finger joints.
        positions: [9], rad for the arm, m for the fingers.
        velocities: [9], rad/s and m/s.
        efforts: [9], Nm and N: what the drives exert, the share that carries the arm's own weight included.
    """

    names: tuple[str, ...]
    positions: Floats
    velocities: Floats
    efforts: Floats


class Pose(NamedTuple):
    """Position [3] in metres and unit quaternion [4] as x, y, z, w, both in the base frame `panda_link0`."""

    position: Floats
    quaternion: Floats


@dataclass(frozen=True)
class JointPath:
    """Desired motion of the arm: one cubic per segment and joint, then rest at the end.

    Attributes:
        times_ns: [S + 1] knots, strictly increasing, on the simulation's clock.
        coefficients: [S, 4, 7], in ascending powers of the seconds since the segment began.
        end: [7] position held from the last knot on, rad.
    """

    times_ns: npt.NDArray[np.int64]
    coefficients: Floats
    end: Floats

    @classmethod
    def rest(cls, positions: Floats, now_ns: int) -> JointPath:
        """Hold `positions` [7] from now on."""
        return cls(np.array([now_ns], np.int64), np.empty((0, 4, 7)), positions.copy())

    @classmethod
    def through(cls, times_ns: npt.NDArray[np.int64], positions: Floats, velocities: Floats | None) -> JointPath:
        """Path through `positions` [S + 1, 7] at `times_ns`: cubic Hermite with `velocities`, else straight lines."""
        duration = (np.diff(times_ns) * 1e-9)[:, None]
        start, step = positions[:-1], np.diff(positions, axis=0)
        slope = step / duration
        if velocities is None:
            coefficients = np.stack([start, slope, np.zeros_like(step), np.zeros_like(step)], axis=1)
        else:
            v0, v1 = velocities[:-1], velocities[1:]
            square = (3 * slope - 2 * v0 - v1) / duration
            cube = (v0 + v1 - 2 * slope) / duration**2
            coefficients = np.stack([start, v0, square, cube], axis=1)
        return cls(times_ns, coefficients, positions[-1].copy())

    def sample(self, times_ns: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Desired positions and velocities, each [N, 7], at `times_ns` [N] not before the first knot."""
        positions = np.broadcast_to(self.end, (len(times_ns), 7)).copy()
        velocities = np.zeros_like(positions)
        moving = times_ns < self.times_ns[-1]
        if moving.any():
            segment = np.searchsorted(self.times_ns, times_ns[moving], side='right') - 1
            t = ((times_ns[moving] - self.times_ns[segment]) * 1e-9)[:, None]
            a, b, c, d = np.moveaxis(self.coefficients[segment], 1, 0)
            positions[moving] = a + t * (b + t * (c + t * d))
            velocities[moving] = b + t * (2 * c + t * 3 * d)
        return positions, velocities


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
    """A Franka Panda with a two-finger hand at a table with a red cube, a blue disc, a green ball and a yellow bowl.

    Physics and servo run at 1 kHz of simulated time; nothing moves unless :meth:`advance` is called. The arm follows
    :meth:`set_trajectory` as ros2_control's joint trajectory controller does. The servo is a PD with velocity
    feed-forward behind the arm's own torque limits, gravity compensated, so the measured joints lag and sag a little
    under load as they do on metal. Commands are *not* clipped to position or velocity limits: what a careless command
    does is to be seen (joints have hard stops).

    Positions and poses are in the base frame `panda_link0`: metres, x ahead, z up, table top at z = 0.

    Threads: any method may be called from any thread at any time, except that :meth:`render` and :meth:`close` belong
    to one thread, that of the first :meth:`render`, because an OpenGL context does. Rendering does not hold up the
    physics.
    """

    def __init__(
        self,
        seed: int = 0,
        image_size: tuple[int, int] = (180, 320),
        render_views: Sequence[str] = scene.CAMERAS,
    ) -> None:
        """Build the scene, arm at the start pose, hand open, objects strewn by `seed`.

        Args:
            seed: Decides where the objects lie.
            image_size: Height and width of the pictures, pixels.
            render_views: Which of 'wrist', 'exterior_1', 'exterior_2' :meth:`render` draws; empty for physics alone,
                which then needs no OpenGL.

        Raises:
            InvalidInput: A view that is not there, or a size that is not positive.
            CosmosError: MuJoCo or the OpenGL libraries are missing; the text names the packages.
        """
        _check_options(image_size, render_views)
        self._mujoco = _import_mujoco()
        if render_views:
            choose_gl_backend()  # better to hear of a missing library now than at the first picture
        self._views = tuple(render_views)
        self._size = (int(image_size[0]), int(image_size[1]))
        self._model = self._mujoco.MjModel.from_xml_string(scene.franka_scene(*_supersampled(self._size)))
        self._data = self._mujoco.MjData(self._model)
        self._picture_data = self._mujoco.MjData(self._model)
        self._studio: _Studio | None = None
        self._lock = threading.Lock()
        self._steps = 0
        self._owed_ns = 0
        self.reset(seed)

    @property
    def time_ns(self) -> int:
        """Simulated time since construction, ns; a multiple of 1 ms that never goes back, not even at a reset."""
        return self._steps * scene.PHYSICS_STEP_NS

    def reset(self, seed: int) -> None:
        """Arm to the start pose at rest, hand open, any trajectory forgotten, objects strewn anew by `seed`."""
        with self._lock:
            self._mujoco.mj_resetData(self._model, self._data)
            self._data.qpos[_ARM] = scene.HOME
            self._data.qpos[_FINGERS] = scene.FINGER_TRAVEL
            self._finger = self._finger_target = scene.FINGER_TRAVEL
            self._data.ctrl[_ARM] = scene.HOME
            self._data.ctrl[_FINGERS] = scene.FINGER_TRAVEL
            for name, place in _start_poses(seed).items():
                self._data.joint(name).qpos[:] = place
            self._path = JointPath.rest(np.array(scene.HOME), self.time_ns)
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
            positions: [K, 7] joint positions, rad, in the order `panda_joint1` ... `panda_joint7`.
            velocities: [K, 7], rad/s; the last row must be zero, as ros2_control demands.
            start_ns: Time of the trajectory's zero on this simulation's clock; None for now.

        Raises:
            InvalidInput: Shapes, order or values are wrong, or every point lies in the past; the arm then goes on
                with what it had.
        """
        times, goals, rates = _as_trajectory(times_s, positions, velocities)
        with self._lock:
            now = self.time_ns
            start = now if start_ns is None else int(start_ns)
            knots = start + np.round(times * 1e9).astype(np.int64)
            ahead = knots > now
            if not ahead.any():
                raise InvalidInput('joint trajectory', [_in_the_past(int(knots[-1]), now)])
            position, velocity = self._path.sample(np.array([now], np.int64))
            self._path = JointPath.through(
                np.concatenate([[now], knots[ahead]]),
                np.concatenate([position, goals[ahead]]),
                None if rates is None else np.concatenate([velocity, rates[ahead]]),
            )

    def set_gripper(self, closed_fraction: float) -> None:
        """Move the fingers at their own speed (5 cm/s each) towards `closed_fraction`: 0 open, 1 closed.

        Raises:
            InvalidInput: Not a number between 0 and 1.
        """
        if not 0.0 <= closed_fraction <= 1.0:
            problem = Problem('closed_fraction', 'out of range', repr(closed_fraction), '0 (open) to 1 (closed)')
            raise InvalidInput('gripper command', [problem])
        with self._lock:
            self._finger_target = scene.FINGER_TRAVEL * (1.0 - closed_fraction)

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
        with self._lock:
            joints = slice(0, _FINGERS.stop)
            return JointState(
                scene.ARM_JOINTS + scene.FINGER_JOINTS,
                self._data.qpos[joints].copy(),
                self._data.qvel[joints].copy(),
                self._data.qfrc_actuator[joints].copy(),
            )

    def end_effector_pose(self) -> Pose:
        """Measured pose of the flange, `panda_link8`."""
        with self._lock:
            self._mujoco.mj_kinematics(self._model, self._data)
            site = self._data.site(scene.FLANGE)
            quaternion = np.empty(4)
            self._mujoco.mju_mat2Quat(quaternion, site.xmat)
            return Pose(site.xpos.copy(), np.roll(quaternion, -1))

    def objects(self) -> dict[str, Pose]:
        """Pose of each loose object by name: 'red_cube', 'blue_disc', 'green_ball', 'yellow_bowl'."""
        with self._lock:
            states = {thing.name: self._data.joint(thing.name).qpos.copy() for thing in scene.OBJECTS}
        return {name: Pose(state[:3], np.roll(state[3:], -1)) for name, state in states.items()}

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
        self._mujoco.mj_kinematics(self._model, self._picture_data)
        self._mujoco.mj_camlight(self._model, self._picture_data)
        return {name: self._studio.picture(self._picture_data, name) for name in self._views}

    def close(self) -> None:
        """Free the OpenGL context, from the thread that rendered; further calls of `render` open a new one."""
        if self._studio is not None:
            self._studio.check_thread()
            self._studio.close()
            self._studio = None

    def _controls(self, steps: int) -> Floats:
        """Servo inputs [steps, 9] for the coming physics steps."""
        ends = self.time_ns + scene.PHYSICS_STEP_NS * np.arange(1, steps + 1, dtype=np.int64)
        positions, velocities = self._path.sample(ends)
        controls = np.empty((steps, 9))
        # MuJoCo's position servo exerts kp (u - q) - kv q'. With this u it is kp (q* - q) + kv (q*' - q').
        controls[:, _ARM] = positions + scene.SERVO_DAMPING / scene.SERVO_STIFFNESS * velocities
        travel = scene.FINGER_SPEED * scene.PHYSICS_STEP_NS * 1e-9 * np.arange(1, steps + 1)
        way = self._finger_target - self._finger
        fingers = self._finger + np.sign(way) * np.minimum(travel, abs(way))
        controls[:, _FINGERS] = fingers[:, None]
        if steps:
            self._finger = float(fingers[-1])
        return controls


def _check_options(image_size: tuple[int, int], render_views: Sequence[str]) -> None:
    allowed = ', '.join(scene.CAMERAS)
    problems = [
        Problem('render_views', 'no such camera', repr(name), allowed)
        for name in render_views
        if name not in scene.CAMERAS
    ]
    if len(image_size) != 2 or not all(1 <= side <= _GREATEST_PICTURE for side in image_size):
        problems.append(
            Problem('image_size', 'impossible', repr(image_size), f'height, width in 1 to {_GREATEST_PICTURE}')
        )
    if problems:
        raise InvalidInput('simulated robot', problems)


def _in_the_past(end_ns: int, now_ns: int) -> Problem:
    late = (now_ns - end_ns) * 1e-9
    return Problem('times_s', 'the whole trajectory lies in the past', f'an end {late:.3f} s ago', 'an end yet to come')


def _as_trajectory(
    times_s: npt.ArrayLike, positions: npt.ArrayLike, velocities: npt.ArrayLike | None
) -> tuple[Floats, Floats, Floats | None]:
    """The three as float64 arrays, or one InvalidInput with all that is wrong."""
    times = np.asarray(times_s, np.float64)
    goals = np.asarray(positions, np.float64)
    rates = None if velocities is None else np.asarray(velocities, np.float64)
    problems = _time_problems(times) + _table_problems('positions', goals, times.size)
    if rates is not None:
        problems += _table_problems('velocities', rates, times.size)
        if rates.ndim == 2 and rates.size and np.abs(rates[-1]).max() > np.finfo(np.float32).eps:
            problems.append(Problem('velocities', 'the last row is not at rest', repr(rates[-1].tolist()), 'zeros'))
    if problems:
        raise InvalidInput('joint trajectory', problems)
    return times, goals, rates


def _time_problems(times: Floats) -> list[Problem]:
    if times.ndim != 1 or not times.size:
        return [Problem('times_s', 'wrong shape', str(times.shape), '[K] with at least one point')]
    if not np.isfinite(times).all() or times[0] < 0 or (np.diff(times) <= 0).any():
        return [Problem('times_s', 'out of order', repr(times.tolist()), 'finite, not negative, strictly increasing')]
    return []


def _table_problems(name: str, table: Floats, rows: int) -> list[Problem]:
    if table.shape != (rows, 7):
        return [Problem(name, 'wrong shape', str(table.shape), f'({rows}, 7)')]
    bad = np.argwhere(~np.isfinite(table))
    return [
        Problem(f'{name}[{row}]', 'not a finite number', str(table[row, joint]), '', f'{scene.ARM_JOINTS[joint]}')
        for row, joint in bad
    ]


def _start_poses(seed: int) -> dict[str, Floats]:
    """Free-joint states [7] (position, quaternion w first) of the objects: on the table, apart from each other."""
    generator = np.random.default_rng(seed)
    poses: dict[str, Floats] = {}
    taken: list[tuple[float, float, float]] = []
    # The largest first: whatever it takes, room for the smaller ones is left.
    for thing in sorted(scene.OBJECTS, key=lambda o: -o.radius):
        x, y = _free_place(generator, thing.radius, taken)
        taken.append((x, y, thing.radius))
        half_turn = generator.uniform(-math.pi, math.pi) / 2
        poses[thing.name] = np.array([x, y, thing.height, math.cos(half_turn), 0.0, 0.0, math.sin(half_turn)])
    return poses


def _free_place(
    generator: np.random.Generator, radius: float, taken: Sequence[tuple[float, float, float]]
) -> tuple[float, float]:
    """A random place of this radius that touches none of `taken` (x, y, radius); the table has room for all."""
    while True:
        x, y = float(generator.uniform(*_START_X)), float(generator.uniform(*_START_Y))
        if all(math.hypot(x - u, y - v) > radius + r + _START_GAP for u, v, r in taken):
            return x, y
