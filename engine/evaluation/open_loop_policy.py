"""How good chunks are that a policy makes of recorded moments: held to what came next, to each other, and to the robot.

Row k of a chunk says where to be k + 1 rows after the observation. It is held to what the recording commanded then or,
where it holds no commands that can be believed, to where the robot was measured. Three guesses that see nothing are
held to the same: `hold` stays where it was measured, `repeat_action` asks again for what was asked for last,
`repeat_step` goes on as in the last row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.evaluation.open_loop_recorded import Track, Truth
from engine.evaluation.open_loop_spaces import Limits, Space
from engine.evaluation.open_loop_statistics import Estimate, Tally, Unit, plain

Floats = NDArray[np.float64]

GUESSES = ('hold', 'repeat_action', 'repeat_step')
CLOSED = 0.5
"""A gripper counts as closed above this fraction."""
EXECUTED = (8, 16)
"""Rows of a chunk that are commonly executed before the next one takes over."""
_CELLS = ('tp', 'fp', 'fn', 'tn')
_SETTLED = 0.05  # of the spectrum's height at zero: SPARC's threshold
_FASTEST_HZ = 10.0
_PAD = 4


class PolicyMeter:
    """Takes the chunks of one moment after the other, and concludes.

    Attributes:
        tally: All that was measured.
        moments: How many there were.
    """

    def __init__(self, space: Space, rows: int, stride: int, fps: float, limits: Limits | None, block: int) -> None:
        """Begin with nothing.

        Args:
            space: Of the rows.
            rows: Of a chunk, K.
            stride: Rows from one moment to the next, where they follow each other.
            fps: Rows per second.
            limits: Of the robot, or None.
            block: Frames of a unit of the bootstrap.
        """
        self.space, self.rows, self.stride, self.fps, self.limits = space, rows, stride, fps, limits
        self.tally, self.moments, self._block = Tally(), 0, block
        self._most: dict[str, Floats] = {}
        self._before: tuple[str, int, Floats] | None = None

    def add(self, track: Track, truth: Truth, index: int, chunks: Floats) -> dict[str, Any]:
        """Count a moment.

        Args:
            track: Its episode.
            truth: The same in the rows of the contract.
            index: Frame of the observation; K + 1 frames are there from it on.
            chunks: [S, K, D], of one seed each.

        Returns:
            What there is to say of this moment alone, in plain values.
        """
        unit: Unit = (track.name, index // self._block)
        line: dict[str, Any] = {'kind': 'policy', 'episode': track.name, 'frame': index, 'time_s': index / track.fps}
        line |= self._errors(unit, truth, index, chunks)
        if chunks.shape[-1] > self.space.columns:
            line |= self._gripper(unit, truth, index, chunks[..., self.space.columns :])
        line |= self._motion(unit, truth, index, chunks[..., : self.space.columns])
        line |= self._seam(unit, truth, index, track.name, chunks[..., : self.space.columns])
        line |= self._spread(unit, chunks[..., : self.space.columns])
        self._before = (track.name, index, chunks[..., : self.space.columns])
        self.moments += 1
        return line

    def _errors(self, unit: Unit, truth: Truth, index: int, chunks: Floats) -> dict[str, Any]:
        columns = self.space.columns
        target = truth.future[index : index + self.rows, :columns]
        found: dict[str, Any] = {}
        for who, rows in (('policy', chunks[..., :columns]), *self._guesses(truth, index).items()):
            apart = self.space.apart(rows, target)
            self.tally.add(unit, f'{who}.squared', (apart**2).mean(axis=0))
            self.tally.add(unit, f'{who}.absolute', apart.mean(axis=0))
            found[who] = plain(np.sqrt((apart**2).mean(axis=(0, 1))))
        return {'rmse': found}

    def _guesses(self, truth: Truth, index: int) -> dict[str, Floats]:
        """Chunks [1, K, columns] of those who see nothing."""
        columns = self.space.columns
        now, before = truth.state[index, :columns], truth.state[max(index - 1, 0), :columns]
        asked = truth.future[index - 1, :columns] if index else now
        last = truth.future[index - 2, :columns] if index > 1 else before
        found = {'hold': np.tile(now, (self.rows, 1))}
        if truth.commanded:  # without commands, what was asked for last is where the robot is now
            found['repeat_action'] = np.tile(asked, (self.rows, 1))
        step = (last, asked) if truth.commanded else (before, now)
        found['repeat_step'] = self.space.go_on(*step, self.rows)
        return {who: rows[None] for who, rows in found.items()}

    def _gripper(self, unit: Unit, truth: Truth, index: int, grips: Floats) -> dict[str, Any]:
        target = truth.future[index : index + self.rows, self.space.columns :]
        holds = np.tile(truth.state[index, self.space.columns :], (1, self.rows, 1))
        for who, values in (('policy', grips), ('hold', holds)):
            said, is_so = values > CLOSED, np.broadcast_to(target > CLOSED, values.shape)
            cells = (said & is_so, said & ~is_so, ~said & is_so, ~said & ~is_so)
            for name, cell in zip(_CELLS, cells, strict=True):
                self.tally.add(unit, f'{who}.{name}', cell.mean(axis=(0, 2)))
            self.tally.add(unit, f'{who}.grip', np.abs(values - target).mean(axis=(0, 2)))
        return {'gripper_accuracy': float(((grips > CLOSED) == (target > CLOSED)).mean())}

    def _motion(self, unit: Unit, truth: Truth, index: int, arm: Floats) -> dict[str, Any]:
        """Smoothness and limits of the chunks, and of what was recorded in their place."""
        columns = self.space.columns
        start = np.broadcast_to(truth.state[index, :columns], (len(arm), 1, columns))
        recorded = np.vstack([truth.state[index, :columns], truth.future[index : index + self.rows, :columns]])
        over: dict[str, float] = {}
        for who, path in (('policy', np.concatenate([start, arm], axis=1)), ('recorded', recorded[None])):
            steps = self.space.steps(path)
            jerk = self.space.sizes(np.diff(steps, n=2, axis=-2)) * self.fps**3
            self.tally.add(unit, f'{who}.jerk', (jerk**2).mean(axis=(0, 1)))
            profile = [sparc(speed, self.fps) for speed in self.space.speed(steps)]
            self.tally.add(unit, f'{who}.sparc', np.array(profile).mean())
            over |= self._over(unit, who, path)
        first = self.space.apart(arm[:, 0], truth.state[index, :columns])
        self.tally.add(unit, 'policy.start', (first**2).mean(axis=0))
        asked = self.space.apart(truth.future[index, :columns], truth.state[index, :columns])
        self.tally.add(unit, 'recorded.start', asked**2)
        return {'start': plain(np.sqrt((first**2).mean(axis=0))), 'rows_over': over}

    def _over(self, unit: Unit, who: str, path: Floats) -> dict[str, float]:
        """Count which limits are violated; returns the share of the policy's rows by kind."""
        if self.limits is None:
            return {}
        found = {}
        for kind, used in self.limits.used(path, self.fps).items():
            over = used > 1
            self.tally.add(unit, f'{who}.{kind}.rows', over.mean(axis=(0, 1)))
            self.tally.add(unit, f'{who}.{kind}.chunks', over.any(axis=(1, 2)).mean())
            key, most = f'{who}.{kind}', used.max(axis=(0, 1))
            self._most[key] = np.maximum(self._most.get(key, most), most)
            found[kind] = float(over.any(axis=2).mean())
        return found if who == 'policy' else {}

    def _seam(self, unit: Unit, truth: Truth, index: int, name: str, arm: Floats) -> dict[str, Any]:
        """Where this chunk takes over from the one before."""
        shift = self.stride
        if self._before is None or self._before[:2] != (name, index - shift) or not 2 <= shift < self.rows:
            return {}
        before = self._before[2]
        shared = self.space.apart(before[:, shift:], arm[:, : self.rows - shift])
        self.tally.add(unit, 'overlap', (shared**2).mean(axis=0))
        jump = shared[:, 0]
        bend = self._bend(np.concatenate([before[:, shift - 2 : shift], arm[:, :2]], axis=1))
        recorded = self._bend(truth.future[index - 2 : index + 2, : self.space.columns])
        self.tally.add(unit, 'jump', (jump**2).mean(axis=0))
        self.tally.add(unit, 'policy.bend', (bend**2).mean(axis=0))
        self.tally.add(unit, 'recorded.bend', recorded**2)
        for key, values in (('jump', jump), ('policy.bend', bend)):
            self._most[key] = np.maximum(self._most.get(key, values.max(axis=0)), values.max(axis=0))
        return {
            'overlap': plain(np.sqrt((shared**2).mean(axis=(0, 1)))),
            'jump': plain(jump.mean(axis=0)),
            'jump_acceleration': plain(bend.mean(axis=0)),
        }

    def _bend(self, path: Floats) -> Floats:
        """The larger of the two accelerations in four rows [..., 4, columns] around a seam, [..., C]."""
        found = self.space.sizes(np.diff(self.space.steps(path), axis=-2)) * self.fps**2
        return np.asarray(found.max(axis=-2))

    def _spread(self, unit: Unit, arm: Floats) -> dict[str, Any]:
        """Variance over seeds: half the mean squared distance of two of them, which needs no mean of rotations."""
        if len(arm) < 2:
            return {}
        pairs = [self.space.apart(arm[i], arm[j]) ** 2 for i, j in combinations(range(len(arm)), 2)]
        variance = np.mean(pairs, axis=0) / 2
        self.tally.add(unit, 'spread', variance)
        return {'seed_spread': plain(np.sqrt(variance.mean(axis=0)))}

    # Conclusions

    def conclude(self) -> dict[str, Any]:
        """All figures; those with an interval are `value`, `low`, `high`, the last dimension the channels."""
        if not self.moments:
            return {}
        who = ['policy', *(name for name in GUESSES if f'{name}.squared' in self.tally)]
        return {
            'channels': [{'name': name, 'unit': unit} for name, unit in self.space.channels],
            'rows': self.rows,
            'fps': self.fps,
            'stride': self.stride,
            'moments': self.moments,
            'lead_time': {name: self._by_lead_time(name) for name in who},
            'executed': {str(rows): {name: self._executed(name, rows) for name in who} for rows in self.horizons},
            'skill': {str(rows): {name: self._skill(name, rows) for name in who[1:]} for rows in self.horizons},
            **self._grippers(),
            **self._seams(),
            'start': {name: self._root(f'{name}.start').document() for name in ('policy', 'recorded')},
            'limits': self._limits(),
            'smoothness': self._smoothness(),
            **({'seed_spread': self._spreads()} if 'spread' in self.tally else {}),
            'intervals': self.tally.how(self._block),
        }

    @property
    def horizons(self) -> tuple[int, ...]:
        """Executed rows that figures are given for; the last is the whole chunk."""
        return (*(rows for rows in EXECUTED if rows < self.rows), self.rows)

    def _with_all(self, squares: Floats) -> Floats:
        """Squares [..., C] with their mean over the channels behind them, if they have one unit."""
        if not self.space.alike:
            return squares
        return np.concatenate([squares, squares.mean(axis=-1, keepdims=True)], axis=-1)

    def _root(self, name: str) -> Estimate:
        return self.tally.estimate(np.sqrt(self._with_all(self.tally.draws(name))))

    def _by_lead_time(self, who: str) -> dict[str, Any]:
        return {'rmse': self._root(f'{who}.squared').document(), 'mae': self._mae(who, self.tally.draws).document()}

    def _mae(self, who: str, draws: Any) -> Estimate:
        return self.tally.estimate(self._with_all(draws(f'{who}.absolute')))

    def _squares(self, who: str, rows: int) -> Floats:
        """Mean squares [1 + draws, C or C + 1] over the first rows."""
        return self._with_all(self.tally.draws(f'{who}.squared')[:, :rows].mean(axis=1))

    def _executed(self, who: str, rows: int) -> dict[str, Any]:
        absolute = self._mae(who, lambda name: self.tally.draws(name)[:, :rows].mean(axis=1))
        return {
            'rmse': self.tally.estimate(np.sqrt(self._squares(who, rows))).document(),
            'mae': absolute.document(),
        }

    def _skill(self, guess: str, rows: int) -> dict[str, Any]:
        """Share of the mean square of a guess that the policy saves: 1 is perfect, 0 no better, below 0 worse."""
        policy, other = self._squares('policy', rows), self._squares(guess, rows)
        skill = 1 - np.divide(policy, other, out=np.full_like(policy, np.nan), where=other > 0)
        return self.tally.estimate(skill).document()

    def _grippers(self) -> dict[str, Any]:
        if 'policy.tp' not in self.tally:
            return {}
        horizons = {str(rows): {who: self._grip(who, rows) for who in ('policy', 'hold')} for rows in self.horizons}
        accuracy = {who: self._accuracy(who).document() for who in ('policy', 'hold')}
        return {'gripper': {'executed': horizons, 'accuracy_by_lead_time': accuracy}}

    def _accuracy(self, who: str) -> Estimate:
        return self.tally.estimate(self.tally.draws(f'{who}.tp') + self.tally.draws(f'{who}.tn'))

    def _grip(self, who: str, rows: int) -> dict[str, Any]:
        hit, false, missed, right = (self.tally.draws(f'{who}.{cell}')[:, :rows].mean(axis=1) for cell in _CELLS)
        positives = 2 * hit + false + missed
        f1 = np.divide(2 * hit, positives, out=np.full_like(hit, np.nan), where=positives > 0)
        return {
            'f1': self.tally.estimate(f1).document(),
            'accuracy': self.tally.estimate(hit + right).document(),
            'mae': self.tally.estimate(self.tally.draws(f'{who}.grip')[:, :rows].mean(axis=1)).document(),
        }

    def _seams(self) -> dict[str, Any]:
        if 'overlap' not in self.tally:
            return {}
        overall = np.sqrt(self._with_all(self.tally.draws('overlap').mean(axis=1)))
        return {
            'overlap': {
                'rmse': self.tally.estimate(overall).document(),
                'by_row': self._root('overlap').document(),
            },
            'seam': {
                'jump': self._root('jump').document() | {'most': plain(self._most['jump'])},
                'acceleration': {name: self._root(f'{name}.bend').document() for name in ('policy', 'recorded')}
                | {'most': plain(self._most['policy.bend'])},
            },
        }

    def _limits(self) -> dict[str, Any]:
        kinds = [kind for kind in ('position', 'velocity', 'acceleration') if f'policy.{kind}.rows' in self.tally]
        return {kind: {who: self._kept(who, kind) for who in ('policy', 'recorded')} for kind in kinds}

    def _kept(self, who: str, kind: str) -> dict[str, Any]:
        return {
            'chunks': self.tally.mean(f'{who}.{kind}.chunks').document(),
            'rows': self.tally.mean(f'{who}.{kind}.rows').document(),
            'most_used': plain(self._most[f'{who}.{kind}']),
        }

    def _smoothness(self) -> dict[str, Any]:
        return {
            who: {'jerk': self._root(f'{who}.jerk').document(), 'sparc': self.tally.mean(f'{who}.sparc').document()}
            for who in ('policy', 'recorded')
        }

    def _spreads(self) -> dict[str, Any]:
        overall = np.sqrt(self._with_all(self.tally.draws('spread').mean(axis=1)))
        return {'all': self.tally.estimate(overall).document(), 'by_row': self._root('spread').document()}


def sparc(speed: Sequence[float] | Floats, fps: float) -> float:
    """Spectral arc length of a profile of speed [N]: 0 would be perfectly smooth, more negative is less smooth.

    S. Balasubramanian, A. Melendez-Calderon, A. Roby-Brami, E. Burdet, J. NeuroEng. Rehab. 12:112, 2015: the length of
    the amplitude spectrum's curve, its height scaled to 1 at zero and its width to 1, up to the last frequency at which
    it is above 0.05, 10 Hz or what the rate allows at most. Not a number for a profile without motion.
    """
    profile = np.asarray(speed, np.float64)
    points = 1 << (int(np.ceil(np.log2(len(profile)))) + _PAD)
    height = np.abs(np.fft.rfft(profile, points))
    hertz = np.fft.rfftfreq(points, 1 / fps)
    if height[0] <= 0:
        return float('nan')
    height, hertz = height[hertz <= _FASTEST_HZ] / height[0], hertz[hertz <= _FASTEST_HZ]
    last = int(np.flatnonzero(height >= _SETTLED)[-1])
    if last == 0:
        return float('nan')
    across = np.diff(hertz[: last + 1]) / hertz[last]
    return -float(np.hypot(across, np.diff(height[: last + 1])).sum())


def figures_of(document: Mapping[str, Any], *path: str) -> Mapping[str, Any] | None:
    """What is at a path of a conclusion, or None if it was not measured."""
    found: Any = document
    for name in path:
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found if isinstance(found, Mapping) else None
