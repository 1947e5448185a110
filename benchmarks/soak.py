"""Half an hour of the real processes under random faults: does anything break a limit, get stuck, or grow?

    python benchmarks/soak.py --minutes 30 --save
    python benchmarks/soak.py --minutes 30 --use-sim-time    # a restart of the robot then sets the clock back

The simulated robot, the guard, and the policy with a tiny random checkpoint run as they do in service. Faults come at
random moments while the arm moves. After each, the arm has to move again within a bound; a person's part (reset, a new
instruction, starting what was ended) is done for it. In the last three fifths nothing is ended, so that the memory of
each process can be watched once its caches are full. The exit code is 1 if a promise was broken. See README.md.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import rclpy
from figures import facts, machine, save, table
from soak_world import CONTRACT, Memory, System, Watcher, begin_ros, growth, recover

from cosmos3_ros.guard_node import limits_of
from engine.contract import load_contract
from engine.tiny import make_tiny

BOUND_S = 120.0
"""Time in which the arm has to move again; a host that is started anew imports PyTorch on a busy machine."""
CALM_S = (2.0, 6.0)
GROWTH = 0.01
_SAMPLE_S = 1.0
_KEPT_EACH = 20
"""Of so many samples of the memory one is kept in the results."""
DEADLY_SHARE = 0.4
"""Share of the time in which processes are ended."""
_WARM_UP_S = 300.0  # what a process keeps of the latest minutes has its full size by then


@dataclass(frozen=True)
class Event:
    """One fault: what it was, when (s), how long until the arm moved again, and what was missing if it did not."""

    fault: str
    at_s: float
    recovered_s: float
    missing: str


@dataclass
class Soak:
    """What the faults act on, and what is noted."""

    system: System
    watcher: Watcher
    rng: random.Random
    began: float = field(default_factory=time.monotonic)
    events: list[Event] = field(default_factory=list)
    memory: dict[str, list[tuple[float, Memory]]] = field(default_factory=dict)
    badly_ended: list[str] = field(default_factory=list)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def pass_time(self, seconds: float) -> None:
        """Watch for a while."""
        deadline, pause = time.monotonic() + seconds, threading.Event()
        while (left := deadline - time.monotonic()) > 0:
            pause.wait(min(left, _SAMPLE_S))
            for name, size in self.system.memory().items():
                self.memory.setdefault(name, []).append((self.elapsed_s, size))
            self.watcher.judge()


def camera_drop(soak: Soak) -> None:
    """No picture of one camera for up to four seconds."""
    _hold_back(soak, 'wrist', soak.rng.uniform(0.3, 4.0))


def joint_state_gap(soak: Soak) -> None:
    """No joint state for up to two seconds."""
    _hold_back(soak, 'joint_states', soak.rng.uniform(0.1, 2.0))


def _hold_back(soak: Soak, what: str, seconds: float) -> None:
    soak.watcher.passing[what] = False
    soak.pass_time(seconds)
    soak.watcher.passing[what] = True


def stop_and_reset(soak: Soak) -> None:
    """Somebody stops the arm; the reset follows when things are brought in order."""
    soak.watcher.ask('stop')
    soak.pass_time(soak.rng.uniform(0.2, 2.0))


def emergency_stop(soak: Soak) -> None:
    """Somebody presses the emergency stop and releases it; the reset follows when things are brought in order."""
    soak.watcher.pressed = True
    soak.pass_time(soak.rng.uniform(0.3, 2.0))
    soak.watcher.pressed = False


def emergency_stop_silent(soak: Soak) -> None:
    """Nothing is heard of the emergency stop for up to three seconds, one of which it may be silent."""
    _hold_back(soak, 'emergency_stop', soak.rng.uniform(0.5, 3.0))


def frozen_host(soak: Soak) -> None:
    """The policy's process hangs for up to four seconds."""
    _freeze(soak, 'policy', soak.rng.uniform(0.2, 4.0))


def frozen_robot(soak: Soak) -> None:
    """The robot's process hangs for up to a second: no joints, no pictures, no motion."""
    _freeze(soak, 'sim_robot', soak.rng.uniform(0.05, 1.0))


def frozen_guard(soak: Soak) -> None:
    """The guard's process hangs for up to a second."""
    _freeze(soak, 'guard', soak.rng.uniform(0.05, 1.0))


def _freeze(soak: Soak, name: str, seconds: float) -> None:
    soak.system.signal(name, signal.SIGSTOP)
    try:
        soak.pass_time(seconds)
    finally:
        soak.system.signal(name, signal.SIGCONT)


def slow_inference(soak: Soak) -> None:
    """Other programs take the processor for up to four seconds."""
    burners = [subprocess.Popen([sys.executable, '-S', '-c', 'while True: pass']) for _ in range(2)]
    try:
        soak.pass_time(soak.rng.uniform(1.0, 4.0))
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def _ending(name: str, number: signal.Signals) -> Callable[[Soak], None]:
    def end(soak: Soak) -> None:
        code = soak.system.end(name, number)
        expected = -number if number is signal.SIGKILL else 0
        if code != expected:
            soak.badly_ended.append(f'{name} after {number.name}: exit code {code}')

    return end


HARMLESS: dict[str, Callable[[Soak], None]] = {
    'camera drop': camera_drop,
    'joint state gap': joint_state_gap,
    'stop, then reset': stop_and_reset,
    'emergency stop': emergency_stop,
    'emergency stop silent': emergency_stop_silent,
    'host frozen': frozen_host,
    'robot frozen': frozen_robot,
    'guard frozen': frozen_guard,
    'slow inference': slow_inference,
}
DEADLY: dict[str, Callable[[Soak], None]] = {
    'host ended by SIGTERM': _ending('policy', signal.SIGTERM),
    'host killed': _ending('policy', signal.SIGKILL),
    'guard ended by SIGTERM': _ending('guard', signal.SIGTERM),
    'guard killed': _ending('guard', signal.SIGKILL),
    'robot killed': _ending('sim_robot', signal.SIGKILL),
}


def run(soak: Soak, minutes: float) -> None:
    """Fault after fault; after some time only those that end no process."""
    _settle(soak, 'start')
    queue: list[str] = []
    while soak.elapsed_s < minutes * 60:
        soak.pass_time(soak.rng.uniform(*CALM_S))
        deadly = soak.elapsed_s < DEADLY_SHARE * minutes * 60
        faults = {**HARMLESS, **DEADLY} if deadly else HARMLESS
        queue = [name for name in queue if name in faults]
        if not queue:  # every fault comes as often as every other, in random order
            queue = soak.rng.sample(sorted(faults), len(faults))
        name = queue.pop()
        faults[name](soak)
        _settle(soak, name)


def _settle(soak: Soak, fault: str) -> None:
    at = soak.elapsed_s
    seconds, missing = recover(soak.system, soak.watcher, BOUND_S)
    soak.events.append(Event(fault, round(at, 1), round(seconds, 2), missing))
    outcome = f'STUCK: {missing}' if missing else f'moves again after {seconds:.1f} s'
    print(f'{at:7.1f} s  {fault:<24} {outcome}', flush=True)
    soak.watcher.judge()


def conclude(soak: Soak) -> dict[str, Any]:
    """Everything that was found, and what promises were broken."""
    calm, warm_up = DEADLY_SHARE * soak.elapsed_s, min(_WARM_UP_S, 0.2 * soak.elapsed_s)
    grown = {}
    for name, samples in soak.memory.items():
        later = [(t, size.own) for t, size in samples if t > max(calm, samples[0][0] + warm_up)]
        if len(later) >= 10 and later[-1][0] > 0.9 * soak.elapsed_s:
            grown[name] = {
                'growth': growth(later),
                'mib': _mib(later[-1][1]),
                'shared_mib': _mib(samples[-1][1].shared),
                'seconds': later[-1][0] - later[0][0],
                'course_s_own_shared': [[round(t), _mib(m.own), _mib(m.shared)] for t, m in samples[::_KEPT_EACH]],
            }
    broken = {
        'limit violations': soak.watcher.audit.violations,
        'stuck states': sum(bool(event.missing) for event in soak.events),
        'stops without a reason': len(soak.watcher.unexplained),
        'processes that ended badly': len(soak.badly_ended),
        'processes that grew': sum(found['growth'] > GROWTH for found in grown.values()),
    }
    return {
        'machine': machine(),
        'minutes': round(soak.elapsed_s / 60, 2),
        'broken': broken,
        'audit': soak.watcher.audit.result(),
        'starts_judged': soak.watcher.judged_starts,
        'decisions': dict(soak.watcher.decisions),
        'stops': dict(soak.watcher.stops),
        'unexplained': soak.watcher.unexplained[:10],
        'badly_ended': soak.badly_ended,
        'memory': grown,
        'starts': dict(soak.system.starts),
        'events': [asdict(event) for event in soak.events],
    }


def _mib(size: int) -> float:
    return round(size / 2**20, 2)


def report(found: dict[str, Any]) -> str:
    """The findings as Markdown."""
    by_fault: dict[str, list[float]] = {}
    for event in found['events']:
        by_fault.setdefault(event['fault'], []).append(event['recovered_s'])
    audit = found['audit']
    parts = [
        f'# Soak of {found["minutes"]} minutes',
        facts(found['machine']) + '.',
        table(('promise broken', 'times'), list(found['broken'].items())),
        f'{audit["commands"]:,} commands with {audit["points"]:,} points were judged, '
        f'{found["starts_judged"]} of them as the first after a silence.',
        table(
            ('fault', 'times', 'moves again after, mean s', 'longest s'),
            [(name, len(s), f'{sum(s) / len(s):.1f}', f'{max(s):.1f}') for name, s in sorted(by_fault.items())],
        ),
        table(('stop, by reason', 'times'), sorted(found['stops'].items())),
        table(('chunk', 'times'), sorted(found['decisions'].items())),
        table(
            ('process and start', 'MiB of its own at the end', 'growth', 'over s', 'MiB shared'),
            [
                (n, f'{m["mib"]:.1f}', f'{m["growth"]:+.2%}', f'{m["seconds"]:.0f}', f'{m["shared_mib"]:.1f}')
                for n, m in found['memory'].items()
            ],
        ),
        *(f'- {text}' for text in (*audit['first_violations'], *found['unexplained'], *found['badly_ended'])),
    ]
    return '\n\n'.join(parts)


def main() -> int:
    """Run, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=30.0, help='how long')
    parser.add_argument('--seed', type=int, default=0, help='decides order and length of the faults')
    parser.add_argument('--use-sim-time', action='store_true', help='live by /clock')
    parser.add_argument('--save', action='store_true', help='write results/soak.json and .md')
    options = parser.parse_args()
    begin_ros(101)
    with tempfile.TemporaryDirectory(prefix='soak_') as folder:
        checkpoint = make_tiny(Path(folder) / 'tiny')
        system = System(checkpoint, Path(folder) / 'logs', use_sim_time=options.use_sim_time)
        soak = Soak(system, Watcher(limits_of(load_contract(CONTRACT))), random.Random(options.seed))
        try:
            run(soak, options.minutes)
            found = conclude(soak)
        finally:
            system.close()
            soak.watcher.close()
            rclpy.try_shutdown()
    text = report(found)
    print(text)
    if options.save:
        save('soak', found, text)
    return 1 if any(found['broken'].values()) else 0


if __name__ == '__main__':
    sys.exit(main())
