"""How noise becomes a chunk: the contract's section `sampler`, and the presets that may stand in for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from engine.contract_reader import Reader


@dataclass(frozen=True)
class SamplerTerms:
    """How the sampler is run.

    Attributes:
        steps: Denoising steps.
        guidance: Guidance scale; 1 means none.
        guidance_interval: Timesteps strictly between which guidance is on; None for all.
        guidance_steps: Steps in which guidance is on, counted from 1, ascending; None for all. It and the interval are
            never given together.
        shift: Shift of the flow-matching schedule.
        video: Whether the video that the actions will cause is denoised beside them. Without it a chunk takes a
            fraction of the time, but only a checkpoint that was trained so makes good chunks without.
    """

    steps: int
    guidance: float
    guidance_interval: tuple[float, float] | None
    shift: float
    guidance_steps: tuple[int, ...] | None = None
    video: bool = True


PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        # As the contract has it.
        'reference': {},
        # Half the passes. Of 1,200 episodes of RoboLab-120, cosmos-lite solved 378 this way and 373 in four steps with
        # its 8-bit weights, and 380 and 382 with weights and activations in FP8 (Cosmos3-Nano-Policy-DROID, v0.3.0).
        'fast': {'steps': 2, 'guidance': 3.0, 'guidance_interval': None, 'guidance_steps': None},
    }
)


def read_sampler(reader: Reader) -> SamplerTerms:
    """Read the section; faults go to the reader."""
    steps = reader.integer('steps', 1, 1000)
    interval, masked = _interval(reader), _guided_steps(reader, steps)
    if interval is not None and masked is not None:
        where, remedy = reader.key('guidance_steps'), 'set one of the two to null'
        reader.problem(where, 'cannot be given together with guidance_interval', str(list(masked)), '', remedy)
    terms = SamplerTerms(
        steps=steps,
        guidance=reader.number('guidance', 0.0, 7.0),
        guidance_interval=interval,
        shift=reader.number('shift', 0.0, 100.0, above=True),
        guidance_steps=masked,
        video=bool(reader.take('video', bool, True, optional=True)),
    )
    reader.finish()
    return terms


def _interval(reader: Reader) -> tuple[float, float] | None:
    interval = reader.take('guidance_interval', list, None, optional=True)
    if interval is None:
        return None
    if len(interval) != 2 or not all(isinstance(b, (int, float)) for b in interval) or not interval[0] < interval[1]:
        where = reader.key('guidance_interval')
        reader.problem(where, 'must be [low, high] in timesteps', repr(interval), 'null for every step')
        return None
    return float(interval[0]), float(interval[1])


def _guided_steps(reader: Reader, steps: int) -> tuple[int, ...] | None:
    numbers = reader.take('guidance_steps', list, None, optional=True)
    if numbers is None:
        return None
    sound = all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= steps for n in numbers)
    if not sound or len(set(numbers)) != len(numbers):
        allowed = f'distinct numbers from 1 to {steps}, or null for every step'
        reader.problem(reader.key('guidance_steps'), 'must be a list of steps', repr(numbers), allowed)
        return None
    return tuple(sorted(numbers))
