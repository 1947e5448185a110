"""A bench for the guard: a clock turned by hand, an arm that does what it is told, and an auditor of its own."""

from __future__ import annotations

import numpy as np
import pytest

from cosmos3_ros.guard.chunk import ReceivedChunk
from cosmos3_ros.guard.guard import Guard
from cosmos3_ros.guard.limits import load_limits
from cosmos3_ros.guard.options import GuardOptions

MS = 1_000_000
STEP = 66_666_667
HOME = np.array([0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0])


def quintic(command, at):
    """What a trajectory controller makes of a command at the times `at` [S] after its stamp; at rest after the end."""
    times = command.times_ns
    index = np.clip(np.searchsorted(times, at, side='right') - 1, 0, len(times) - 2)
    span = ((times[index + 1] - times[index]) * 1e-9)[:, None]
    s = np.clip((at - times[index])[:, None] * 1e-9 / span, 0.0, 1.0)
    p0, p1 = command.positions[index], command.positions[index + 1]
    v0, v1 = command.velocities[index] * span, command.velocities[index + 1] * span
    a0, a1 = command.accelerations[index] * span**2, command.accelerations[index + 1] * span**2
    d, dv, da = p1 - p0 - v0 - a0 / 2, v1 - v0 - a0, a1 - a0
    c3, c4, c5 = 10 * d - 4 * dv + da / 2, -15 * d + 7 * dv - da, 6 * d - 3 * dv + da / 2
    return p0 + s * (v0 + s * (a0 / 2 + s * (c3 + s * (c4 + s * c5))))


class Auditor:
    """Judges commands by formulas of its own."""

    def __init__(self, limits):
        self.limits = limits

    def command(self, command):
        lim = self.limits
        p, v, a = command.positions, command.velocities, command.accelerations
        assert np.isfinite(p).all()
        assert np.isfinite(v).all()
        assert np.isfinite(a).all()
        assert command.times_ns[0] == 0
        dt = np.diff(command.times_ns)[:, None] * 1e-9
        assert (dt > 0).all()
        assert not v[-1].any(), 'a command must end at rest'
        assert not a[-1].any(), 'a command must end at rest'
        tolerance = 1 + 1e-6
        assert (p >= lim.lower - 1e-9).all()
        assert (p <= lim.upper + 1e-9).all()
        assert (np.abs(v) <= lim.velocity * tolerance).all()
        assert (np.abs(a) <= lim.acceleration * tolerance).all()
        assert (np.abs(np.diff(p, axis=0)) <= lim.velocity * dt * tolerance + 1e-12).all()
        assert (np.abs(np.diff(v, axis=0)) <= lim.acceleration * dt * tolerance + 1e-12).all()
        assert (np.abs(np.diff(a, axis=0)) <= lim.jerk * dt * tolerance + 1e-9).all()

    def trace(self, trace, slack=0.03):
        """Positions at 1 kHz, as an arm executes them between the points; `slack` is what its interpolation adds."""
        lim = self.limits
        trace = np.asarray(trace)
        assert (trace >= lim.lower - 1e-6).all()
        assert (trace <= lim.upper + 1e-6).all()
        speed = np.abs(np.diff(trace, axis=0)) / 1e-3
        assert (speed <= lim.velocity * (1 + slack)).all(), (speed / lim.velocity).max()
        rise = np.abs(np.diff(trace, 2, axis=0)) / 1e-6
        assert (rise <= lim.acceleration * (1 + slack)).all(), (rise / lim.acceleration).max()


class Bench:
    """One guard, one arm, one clock."""

    def __init__(self, options=None, limits=None, home=HOME, activate=True):
        self.limits = limits or load_limits('panda')
        self.guard = Guard(self.limits, options, ('panda_finger_joint1',))
        self.auditor = Auditor(self.limits)
        self.now = 1_700_000_000_000_000_000
        self.arm = np.array(home, dtype=np.float64)
        self.follows = True
        self.reports = True
        self.commands = []
        self.trace = []
        self.told = None
        self.sequence = 0
        if activate:
            assert self.guard.activate(self.now).ok
            self.report()

    def report(self):
        return self.guard.on_joint_state(self.now, self.now, self.limits.joint_names, self.arm)

    def tick(self):
        command = self.guard.tick(self.now)
        if command is not None:
            self.auditor.command(command)
            self.commands.append(command)
            self.told = command
        return command

    def pass_time(self, ms):
        """Let the arm follow what it has been told, at 1 kHz, without the guard taking part."""
        instants = self.now + MS * np.arange(1, ms + 1)
        self.now += ms * MS
        if self.told is not None and self.follows:
            path = quintic(self.told, instants - self.told.stamp_ns)
            self.trace.extend(path)
            self.arm = path[-1]
        else:
            self.trace.extend([self.arm] * ms)

    def run(self, ms, period=10):
        """Report and tick once per control period; the commands that left."""
        before = len(self.commands)
        for _ in range(ms // period):
            self.pass_time(period)
            if self.reports:
                self.report()
            self.tick()
        return self.commands[before:]

    def until_quiet(self, limit_ms=2000):
        """Run until nothing more leaves; the commands up to then."""
        left = []
        for _ in range(limit_ms // 10):
            commands = self.run(10)
            if not commands:
                return left
            left += commands
        raise AssertionError('the guard never fell silent')

    def chunk(self, positions, **changes):
        self.sequence += 1
        fields = {
            'stamp_ns': self.now,
            'epoch': self.guard.epoch,
            'sequence': self.sequence,
            'step_ns': STEP,
            'joint_names': self.limits.joint_names,
            'positions': positions,
            'gripper': None,
        }
        return ReceivedChunk(**{**fields, **changes})

    def send(self, positions, **changes):
        return self.guard.on_chunk(self.chunk(positions, **changes), self.now)

    def wave(self, rows=32, amplitude=0.2, period=3.0, start=None, joints=(1, 3)):
        """A gentle motion of two joints from where the arm stands: amplitude in rad, period in s."""
        t = np.arange(1, rows + 1)[:, None] * STEP * 1e-9
        direction = np.zeros(7)
        direction[list(joints)] = 1.0
        begin = self.arm if start is None else start
        return begin + amplitude * direction * (1 - np.cos(2 * np.pi * t / period)) / 2

    @property
    def speed(self):
        """Measured speed over the last millisecond."""
        return np.abs(self.trace[-1] - self.trace[-2]).max() * 1e3


@pytest.fixture(scope='session')
def panda():
    return load_limits('panda')


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture(scope='session')
def make_bench():
    """Make a bench with options of its own."""

    def make(limits=None, home=HOME, activate=True, **options):
        return Bench(GuardOptions(**options), limits, home, activate)

    return make
