"""From noise to clean tensors: schedules, the UniPC solver, guidance, the distilled sampler and reproducible noise.

The flow-matching convention throughout: ``x = (1 - sigma) * clean + sigma * noise``, and the network predicts the
velocity ``v = noise - clean``, so ``clean = x - sigma * v``.

The solver is FlowUniPC: UniPC (Zhao et al., arXiv 2302.04867) of order 2 with the ``bh2`` variant of B(h), predicting
clean data, the corrector always on, and first order at both ends. It equals diffusers' ``UniPCMultistepScheduler`` with
flow sigmas up to float32 rounding.

Every sample it visits is the first one plus a weighted sum of the velocities so far, with weights that depend on the
schedule alone. In a short run each sample is therefore the one before and one more sum for each velocity so far.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from engine.errors import InvalidInput, Problem

Samples = torch.Tensor | tuple[torch.Tensor, ...] | dict[str, torch.Tensor]
"""One tensor, or one tensor for each modality as a tuple or a dict; modalities are stepped together."""

TRAIN_TIMESTEPS = 1000

SHORT = 4
"""Steps up to which a run keeps its velocities, which is fastest; longer ones would need more memory."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise levels that a sampler visits.

    Attributes:
        timesteps: What the network is told at each step, in 0..1000, descending.
        sigmas: Noise level before each step, then the final 0; float32 [steps + 1], read-only.
    """

    timesteps: tuple[int, ...]
    sigmas: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        self.sigmas.setflags(write=False)

    def __len__(self) -> int:
        return len(self.timesteps)

    @cached_property
    def solver_steps(self) -> tuple[SolverStep, ...]:
        """What :class:`UniPc` does in each step."""
        return _unipc_steps(self.sigmas)

    @cached_property
    def velocity_weights(self) -> npt.NDArray[np.float64]:
        """Weight of each velocity in each sample but the last, float64 [steps, steps], strictly lower triangular.

        Sample k is the first one plus ``weights[k] @ velocities``.
        """
        return _velocity_weights(self.solver_steps)


def flow_unipc_schedule(steps: int, shift: float) -> Schedule:
    """Noise levels of FlowUniPC: evenly spaced, then shifted towards noise by `shift`.

    ``sigma = shift * s / (1 + (shift - 1) * s)`` with `s` evenly spaced from 0.999 down, 0 excluded. The timestep is
    the *truncated* ``1000 * sigma``. The figures agree with the `FlowUniPCMultistepScheduler` of NVIDIA's
    cosmos-framework; the start is 0.999 rounded to float32, as there, because truncation makes the last bit visible.

    Args:
        steps: Number of network evaluations, at least 1.
        shift: Time shift, above 0; 1 leaves the spacing even.

    Raises:
        InvalidInput: `steps` or `shift` is out of range.
    """
    _check_schedule(steps, shift)
    start = float(np.float32(1.0 - 1.0 / TRAIN_TIMESTEPS))
    spaced = np.linspace(start, 0.0, steps + 1)[:-1]
    sigmas = shift * spaced / (1.0 + (shift - 1.0) * spaced)
    timesteps = tuple(int(t) for t in TRAIN_TIMESTEPS * sigmas)
    return Schedule(timesteps, np.append(sigmas, 0.0).astype(np.float32))


def _check_schedule(steps: int, shift: float) -> None:
    problems = []
    if steps < 1:
        problems.append(Problem('steps', 'too few', str(steps), 'a whole number from 1'))
    # From 30,000 up the first sigma rounds to 1 in float32, where the solver's log-SNR is infinite.
    if not 0.0 < shift <= 10_000.0:
        problems.append(Problem('shift', 'out of range', str(shift), 'above 0 and at most 10000'))
    if problems:
        raise InvalidInput('sampling schedule', problems)


@dataclass(frozen=True)
class SolverStep:
    """Coefficients of one solver step, on differences that vanish wherever the velocity is zero.

    With `m` the predicted clean tensor, `d = m - previous m`, and `base` the corrected sample of the step before::

        corrected = base + correct_mean * (previous m - base) + correct_old * previous d + correct_new * d
        next      = corrected + predict_mean * (m - corrected) + predict_new * d
    """

    sigma: float
    correct_mean: float
    correct_old: float
    correct_new: float
    predict_mean: float
    predict_new: float


def _unipc_steps(sigmas: npt.NDArray[np.float32]) -> tuple[SolverStep, ...]:
    """All coefficients of a run, in float64 from the float32 noise levels."""
    levels = [float(s) for s in sigmas]
    return tuple(_unipc_step(levels, k) for k in range(len(levels) - 1))


def _unipc_step(sigmas: list[float], k: int) -> SolverStep:
    steps = len(sigmas) - 1
    correct_mean = correct_old = correct_new = predict_new = 0.0
    if k > 0:
        correct_mean = 1.0 - sigmas[k] / sigmas[k - 1]
        correct_old, correct_new = _corrector(sigmas, k, order=_order(k - 1, steps))
    if _order(k, steps) == 2:
        h = _log_snr(sigmas[k + 1]) - _log_snr(sigmas[k])
        ratio = (_log_snr(sigmas[k - 1]) - _log_snr(sigmas[k])) / h
        predict_new = (1.0 - sigmas[k + 1]) * math.expm1(-h) * 0.5 / ratio
    predict_mean = 1.0 - sigmas[k + 1] / sigmas[k]
    return SolverStep(sigmas[k], correct_mean, correct_old, correct_new, predict_mean, predict_new)


def _corrector(sigmas: list[float], k: int, order: int) -> tuple[float, float]:
    """Weights of the corrector's differences: (previous one, newest one)."""
    h = _log_snr(sigmas[k]) - _log_snr(sigmas[k - 1])
    b = math.expm1(-h)
    scale = -(1.0 - sigmas[k]) * b
    if order == 1:
        return 0.0, 0.5 * scale
    ratio = (_log_snr(sigmas[k - 2]) - _log_snr(sigmas[k - 1])) / h
    phi_1 = b / -h - 1.0
    phi_2 = phi_1 / -h - 0.5
    rhs_1, rhs_2 = phi_1 / b, 2.0 * phi_2 / b
    # Solve [1 1; ratio 1] [old new] = [rhs_1 rhs_2].
    old = (rhs_2 - rhs_1) / (ratio - 1.0)
    return -scale * old / ratio, scale * (rhs_1 - old)


def _order(k: int, steps: int) -> int:
    """Order of the predictor at step `k`: it has no history at the start, and no use for it at the end."""
    return min(2, k + 1, steps - k)


def _log_snr(sigma: float) -> float:
    """Half the log signal-to-noise ratio; the solver's time variable."""
    return math.log1p(-sigma) - math.log(sigma)


def _velocity_weights(steps: tuple[SolverStep, ...]) -> npt.NDArray[np.float64]:
    """See :attr:`Schedule.velocity_weights`."""
    count = len(steps)
    samples, unit = np.zeros((count, count)), np.eye(count)
    base, previous, difference = np.zeros((3, count))
    for k, step in enumerate(steps[:-1]):
        clean = samples[k] - step.sigma * unit[k]
        corrected = samples[k]
        if k > 0:
            corrected = base + step.correct_mean * (previous - base) + step.correct_old * difference
            difference = clean - previous
            corrected = corrected + step.correct_new * difference
        samples[k + 1] = corrected + step.predict_mean * (clean - corrected) + step.predict_new * difference
        base, previous = corrected, clean
    return samples


class _Sums:
    """One tensor during a short run: each sample is the one before and a sum of velocities so far, which are kept."""

    def __init__(self, steps: tuple[SolverStep, ...], weights: npt.NDArray[np.float64]) -> None:
        self._steps = steps
        self._weights = weights
        self._velocities: list[torch.Tensor] = []

    def step(self, velocity: torch.Tensor, sample: torch.Tensor, overwrite: bool) -> torch.Tensor:
        """Return the sample at the next noise level, a new tensor unless it may be where the last one was."""
        k = len(self._velocities)
        place = sample if overwrite and k > 0 else None  # the first sample is the caller's own
        if k + 1 == len(self._steps):  # the next noise level is 0: the prediction of the clean tensor is the answer
            return torch.sub(sample, velocity, alpha=self._steps[k].sigma, out=place)
        self._velocities.append(velocity)
        *others, newest = (float(weight) for weight in self._weights[k + 1, : k + 1] - self._weights[k, : k + 1])
        result = torch.add(sample, velocity, alpha=newest, out=place)
        for other, weight in zip(self._velocities, others, strict=False):
            result.add_(other, alpha=weight)
        return result


class _Track:
    """The solver's memory of one tensor during one run of many steps.

    Three tensors of its own, written over once they have been read for the last time: at the size of a video, memory is
    what the updates cost.
    """

    def __init__(self, steps: tuple[SolverStep, ...]) -> None:
        self._steps = iter(steps)
        self._base: torch.Tensor | None = None
        self._clean: torch.Tensor | None = None
        self._difference: torch.Tensor | None = None
        self._owns_base = False

    def step(self, velocity: torch.Tensor, sample: torch.Tensor, _overwrite: bool) -> torch.Tensor:
        """Return the sample at the next noise level, a new tensor."""
        weights = next(self._steps)
        clean = torch.sub(sample, velocity, alpha=weights.sigma)
        if weights.predict_mean == 1.0:  # the next noise level is 0: the prediction is the answer
            return clean
        if self._base is None or self._clean is None:
            self._base, self._clean = sample, clean
            return torch.lerp(sample, clean, weights.predict_mean)
        sample, difference = self._correct(weights, self._base, self._clean, clean)
        self._base, self._clean, self._difference = sample, clean, difference
        result = torch.lerp(sample, clean, weights.predict_mean)
        if weights.predict_new != 0.0:
            result.add_(difference, alpha=weights.predict_new)
        return result

    def _correct(
        self, weights: SolverStep, base: torch.Tensor, previous: torch.Tensor, clean: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Estimate the sample at this noise level again, now that the network has been evaluated there.

        Returns:
            The estimate, and by how much the prediction of the clean tensor differs from the one before.
        """
        # The first base is the caller's own sample, which stays as it is.
        into = base if self._owns_base else None
        result = torch.lerp(base, previous, weights.correct_mean, out=into)
        self._owns_base = True
        if self._difference is not None:
            result.add_(self._difference, alpha=weights.correct_old)
        difference = torch.sub(clean, previous, out=previous)
        return result.add_(difference, alpha=weights.correct_new), difference


class UniPc:
    """FlowUniPC over one run: call :meth:`step` with k = 0, 1, ... once for each entry of the schedule.

    A call with k = 0 starts a new run, so one object serves many requests, one after another. Between steps the object
    holds at most :data:`SHORT` tensors for each modality, and it never synchronises with the device.

    Positions whose velocity is exactly zero keep their value bit for bit: every update is a sum of differences that
    are zero there. Conditioning therefore needs no re-injection, as long as tensors are float32.
    """

    def __init__(self, schedule: Schedule) -> None:
        """Precompute every coefficient of `schedule`."""
        self.schedule = schedule
        self._steps = schedule.solver_steps
        self._weights = schedule.velocity_weights if len(schedule) <= SHORT else None
        self._next = 0
        self._tracks: dict[Any, _Track | _Sums] = {}

    def step[S: Samples](self, k: int, velocity: Samples, sample: S, *, overwrite: bool = False) -> S:
        """Move `sample` from noise level k to k + 1.

        Args:
            k: Index into the schedule; 0, or one more than in the last call.
            velocity: Predicted ``noise - clean`` at `sample`, any float type; same structure and shapes as `sample`.
                Not to be altered before the run is over.
            sample: The sample at noise level k, float32 (or float64), as the last call returned it.
            overwrite: Whether the result may be put where `sample` is, if that came from this object: on a processor
                new memory costs more than the sums do.

        Returns:
            The sample at noise level k + 1, new tensors unless `overwrite`; after the last step the predicted clean
            sample itself.

        Raises:
            ValueError: `k` is out of turn, or `velocity` is structured unlike `sample`.
            TypeError: a sample is of lower precision than float32, which drifts visibly over a run.
        """
        if k not in (0, self._next) or k >= len(self._steps):
            raise ValueError(f'step {k} is out of turn: expected 0 or {self._next} of {len(self._steps)} steps')
        check_precision(sample)
        if k == 0:
            self._tracks = {name: self._track() for name in _named(sample)}
        result = _map(partial(_advance, overwrite), sample, velocity, self._tracks)
        self._next = k + 1
        if self._next == len(self._steps):  # a finished run holds no memory
            self._next, self._tracks = 0, {}
        return result

    def _track(self) -> _Track | _Sums:
        return _Track(self._steps) if self._weights is None else _Sums(self._steps, self._weights)


def _advance(overwrite: bool, sample: torch.Tensor, velocity: torch.Tensor, track: _Track | _Sums) -> torch.Tensor:
    wide = sample.to(torch.promote_types(sample.dtype, velocity.dtype))  # for a float64 network
    return track.step(velocity, wide, overwrite)


def check_precision(samples: Samples) -> None:
    """Do nothing if a run may begin with these samples.

    Raises:
        TypeError: One of them is of lower precision than float32.
    """
    for leaf in _named(samples).values():
        if leaf.dtype not in (torch.float32, torch.float64):
            raise TypeError(f'samples must be float32: {leaf.dtype} lets conditioning drift by up to 0.05 in 30 steps')


def _map[S: Samples](function: Callable[..., torch.Tensor], first: S, *others: Any) -> S:
    """Apply `function` to corresponding members of equally structured samples."""
    columns = [_named(samples) for samples in (first, *others)]
    if any(column.keys() != columns[0].keys() for column in columns):
        raise ValueError(f'samples differ in structure: {[list(column) for column in columns]}')
    results = {name: function(*(column[name] for column in columns)) for name in columns[0]}
    if isinstance(first, torch.Tensor):
        return cast('S', results[0])
    return cast('S', results if isinstance(first, dict) else tuple(results.values()))


def _named(samples: Any) -> dict[Any, Any]:
    """The members of `samples` by name, or by position where they have no name."""
    if isinstance(samples, dict):
        return samples
    return {0: samples} if isinstance(samples, torch.Tensor) else dict(enumerate(samples))


@dataclass(frozen=True)
class Guidance:
    """When and how strongly to push away from the unconditional prediction.

    Attributes:
        scale: Guidance scale; 1 means none, and then the unconditional branch is never run.
        interval: Timesteps between which guidance acts; None for all of them.
        strict: Whether the ends of the interval are outside it, as in cosmos-framework; vllm-omni includes them.
        steps: Steps in which guidance acts, counted from 1; None for all of them. Not together with an interval.

    Raises:
        InvalidInput: An interval and steps are given.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    strict: bool = True
    steps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.interval is not None and self.steps is not None:
            problem = Problem(
                'steps', 'cannot be given together with interval', str(self.steps), '', 'give one of them'
            )
            raise InvalidInput('guidance', [problem])

    def mask(self, schedule: Schedule) -> tuple[bool, ...]:
        """For each step of a schedule, whether it needs the unconditional branch."""
        numbered = enumerate(schedule.timesteps, start=1)
        return tuple(self.scale != 1.0 and self._acts(step, timestep) for step, timestep in numbered)

    def _acts(self, step: int, timestep: float) -> bool:
        if self.steps is not None:
            return step in self.steps
        if self.interval is None:
            return True
        low, high = self.interval
        return low < timestep < high if self.strict else low <= timestep <= high


def combine[S: Samples](
    conditional: S, unconditional: S, scale: float, *, normalize: bool = False, overwrite: bool = False
) -> S:
    """Classifier-free guidance: ``unconditional + scale * (conditional - unconditional)``, in the tensors' own type.

    Args:
        conditional: Velocity under the prompt.
        unconditional: Velocity under the empty or negative prompt; same structure and shapes.
        scale: Guidance scale.
        normalize: Shrink the result to the norm of `conditional`, taken over all modalities of the sample together,
            where it is longer (the `normalize_cfg` option of cosmos-framework).
        overwrite: Whether the result may be put where `conditional` is, which is then lost.
    """
    reuse = overwrite and not normalize
    guided = _map(lambda c, u: _extrapolate(c, u, scale, c if reuse else None), conditional, unconditional)
    if not normalize:
        return guided
    shrink = (_norm(conditional) / (_norm(guided) + 1e-8)).clamp(0.0, 1.0)
    return _map(lambda v: (v * shrink).to(v.dtype), guided)


def _extrapolate(
    conditional: torch.Tensor, unconditional: torch.Tensor, scale: float, place: torch.Tensor | None
) -> torch.Tensor:
    if conditional.dtype == unconditional.dtype == torch.float32:
        return torch.lerp(unconditional, conditional, scale, out=place)
    # Rounded after every operation, as the reference does in its narrower types.
    return torch.sub(conditional, unconditional).mul_(scale).add_(unconditional)


def _norm(samples: Samples) -> torch.Tensor:
    """Euclidean norm of everything in `samples`; float32, 0-d, left on the device."""
    norms = [torch.linalg.vector_norm(leaf.float()) for leaf in _named(samples).values()]
    total: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


class Unfinished:
    """A tensor before the last update of its run, which whoever never looks at it need not pay for. Thread-safe."""

    def __init__(
        self,
        sample: torch.Tensor,
        velocity: torch.Tensor,
        unguided: torch.Tensor | None,
        scale: float,
        sigma: float,
    ) -> None:
        """Take what it is made of, which belongs to this object from now on.

        Args:
            sample: Where the run has come to; only read.
            velocity: The last one, under the prompt; written over.
            unguided: The same without the prompt; None without guidance.
            scale: Guidance scale.
            sigma: Noise level of `sample`.
        """
        self._parts: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None] = (sample, velocity, unguided)
        self._scale, self._sigma = scale, sigma
        self._lock = threading.Lock()

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What it is made of, as long as nobody has looked."""
        return tuple(part for part in self._parts if part is not None)

    def finish(self) -> torch.Tensor:
        """The clean tensor. It is made once; what it is made of is let go."""
        # Results of inference can only be written over in its mode; entering it again would cost more than the sum.
        mode = nullcontext() if torch.is_inference_mode_enabled() else torch.inference_mode()
        with self._lock, mode:
            sample, velocity, unguided = self._parts
            if velocity is not None:
                if unguided is not None:
                    velocity = combine(velocity, unguided, self._scale, overwrite=True)
                place = velocity if velocity.dtype == sample.dtype else None
                sample = torch.sub(sample, velocity, alpha=self._sigma, out=place)
                self._parts = (sample, None, None)
            return sample


class DistilledSde:
    """The fixed four-step sampler of the distilled checkpoints: predict the clean sample, add fresh noise, repeat.

    The network is told ``1000 * sigma`` as a float, not truncated, and guidance is not used. The figures are those of
    the `FixedStepSampler` of NVIDIA's cosmos-framework.
    """

    SIGMAS = (1.0, 0.9375, 0.8333333333333334, 0.625)

    def __init__(self, seed: int, sigmas: tuple[float, ...] = SIGMAS) -> None:
        """Sample with noise of step k seeded by ``seed + k``; `sigmas` descends and excludes the final 0."""
        self.seed = seed
        self.sigmas = (*sigmas, 0.0)
        self.timesteps = tuple(TRAIN_TIMESTEPS * sigma for sigma in sigmas)

    def step[S: Samples](
        self, k: int, velocity: Samples, sample: S, *, clean: Samples | None = None, keep: Samples | None = None
    ) -> S:
        """Move `sample` from noise level k to k + 1.

        Args:
            k: Index into `timesteps`.
            velocity: Predicted ``noise - clean`` at `sample`.
            sample: The sample at noise level k.
            clean: Conditioning values, read where `keep` is true.
            keep: Boolean masks of the positions that hold conditioning; broadcastable to `sample`.
        """
        current, following = self.sigmas[k], self.sigmas[k + 1]
        result = _map(lambda x, v: torch.sub(x, v, alpha=current), sample, velocity)
        if following > 0.0:
            result = _map(lambda x, e: (1.0 - following) * x + following * e, result, self._fresh(k, result))
        if clean is None or keep is None:
            return result
        return _map(lambda x, mask, c: torch.where(mask, c.to(x.dtype), x), result, keep, clean)

    def _fresh[S: Samples](self, k: int, like: S) -> S:
        """Noise of step `k`: one draw for all modalities laid end to end, as the reference does."""
        leaves = list(_named(like).values())
        generator = torch.Generator(leaves[0].device).manual_seed(self.seed + k)
        sizes = [leaf.numel() for leaf in leaves]
        flat = torch.randn(sum(sizes), generator=generator, device=leaves[0].device, dtype=leaves[0].dtype)
        parts = iter(torch.split(flat, sizes))
        return _map(lambda leaf: next(parts).view(leaf.shape), like)


def framework_noise(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Initial noise as cosmos-framework draws it: NumPy's legacy generator, started anew for every modality.

    Starting anew has a consequence worth knowing: under one seed the noise of the action rows equals the first values
    of the video noise.

    Args:
        seed: Seed of the request, 0..2**32 - 1.
        shape: Video [1, 48, T, h, w] (already cropped to the content), action [rows, 64], sound [64, T_s].

    Returns:
        Standard normal noise, float32, on the CPU: about 45 ns a number, 26 ms for the video of the DROID policy.
    """
    # The legacy generator is the point: the reference's numbers come from it.
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


class RequestSeed(int):
    """A seed that knows its successor, so that the noise of the next request can be drawn ahead of it.

    Attributes:
        following: Seed of the request after this one; None if it is not known.
    """

    following: int | None

    def __new__(cls, seed: int, following: int | None = None) -> RequestSeed:
        """Make a seed."""
        made = super().__new__(cls, seed)
        made.following = following
        return made


def request_seeds(base: int = 0) -> Iterator[RequestSeed]:
    """Seeds of successive requests as cosmos-framework's RoboLab server draws them from its base seed."""
    generator = np.random.default_rng(base)
    seed = int(generator.integers(0, 2**31))
    while True:
        following = int(generator.integers(0, 2**31))
        yield RequestSeed(seed, following)
        seed = following
