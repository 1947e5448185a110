"""Contracts of all kinds, and what compiling for one of them must come to: shared by a property test and a long run."""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import strategies as st

import engine
from engine.backends.card import Card, read_card
from engine.backends.compiled import CompiledBackend, CompiledVae
from engine.backends.onnx_runtime import open_graphs
from engine.checkpoint import open_checkpoint
from engine.contract import COMPOSITIONS, RESOLUTION_TIERS, VIEWPOINTS, parse_contract
from engine.export.accuracy import make_observations
from engine.export.compiling import Order, compile_checkpoint
from engine.policy import Observation, Policy
from engine.resources import find_config
from engine.runtime import Runtime

FAMILIES = ('nano', 'edge')
BOUND = 1e-4
"""Largest difference in float32 that is allowed, in the network's own units; in pixels it is one level of 255."""
_BASES = {'joints': 'demo_joint_pos', 'poses': 'droid_ee_delta', 'two arms': 'demo_dual'}
_DOMAINS = {
    'joints': ('droid_lerobot',),
    'poses': ('droid_lerobot', 'robomind-franka', 'bridge_orig_lerobot'),
    'two arms': ('robomind-franka-dual',),
}
_WITH_STATE = ('droid_lerobot',)
_INSTRUCTION = 'put the red cube that is left of the cup into the bowl and then close the drawer slowly'


@dataclass(frozen=True)
class Case:
    """One contract, and how it is used.

    Attributes:
        family: Of the checkpoint.
        kind: 'joints', 'poses' or 'two arms'.
        document: The contract as it would be read from a file.
        words: Length of the instruction.
        committed: Leading rows of the chunk that are given.
        seed: Of observation and noise.
        precision: That engines are built in; if it is another than float32, beside those of float32.
    """

    family: str
    kind: str
    document: Mapping[str, Any] = field(repr=False)
    words: int
    committed: int
    seed: int
    precision: str

    @property
    def contract(self) -> engine.Contract:
        """The contract, checked."""
        return parse_contract(dict(self.document), 'made up')

    @property
    def traits(self) -> dict[str, str]:
        """What is particular about it, in words."""
        terms, timing, sampler = (self.document[key] for key in ('embodiment', 'timing', 'sampler'))
        return {
            'family': self.family,
            'rows': self.kind,
            'domain': terms['domain'],
            'state row': 'yes' if terms['state_row'] else 'no',
            'history rows': str(terms['history_rows']),
            'views': self.document['views']['composition'],
            'tier': str(timing['resolution_tier']),
            'chunk rows': str(timing['chunk_rows']),
            'committed rows': 'some' if self.committed else 'none',
            'guidance': 'off' if sampler['guidance'] == 1.0 else 'in some steps' if _masked(sampler) else 'on',
            'precision of engines': self.precision,
        }


@dataclass(frozen=True)
class Outcome:
    """What compiling for a case came to.

    Attributes:
        rows: Largest difference of action rows from the reference, in the network's units.
        latents: The same of latents.
        levels: The same of the pixels of the imagined video, of 255.
        tokens: Tokens that a step denoises.
        layers: Layers of all engines that were built.
        seconds: Time of exports and builds.
    """

    rows: float
    latents: float
    levels: int
    tokens: int
    layers: int
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether it does what the reference does."""
        return max(self.rows, self.latents) <= BOUND and self.levels <= 1


def _masked(sampler: Mapping[str, Any]) -> bool:
    return sampler['guidance_interval'] is not None or sampler.get('guidance_steps') is not None


@st.composite
def cases(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Case:
    """Any contract that a checkpoint can be compiled for, at sizes for which that takes seconds."""
    kind = draw(st.sampled_from(tuple(_BASES)))
    document = copy.deepcopy(yaml.safe_load(find_config('contracts', _BASES[kind]).read_text(encoding='utf-8')))
    terms, timing = document['embodiment'], document['timing']
    document['name'] = 'made_up'
    document['checkpoint']['families'] = list(FAMILIES)
    terms['domain'] = draw(st.sampled_from(_DOMAINS[kind]))
    terms['state_row'] = terms['domain'] in _WITH_STATE and draw(st.booleans())
    terms['history_rows'] = draw(st.integers(0, 3)) if terms['state_row'] else 0
    timing['chunk_rows'] = draw(st.sampled_from((4, 4, 8, 8, 12, 16)))
    timing['fps'] = draw(st.sampled_from((5, 10, 15, 24, 30)))
    timing['resolution_tier'] = draw(st.sampled_from(RESOLUTION_TIERS))
    document['views'] |= draw(_views())
    document['prompt'] |= draw(_prompts())
    document['sampler'] |= draw(_samplers())
    return Case(
        family=draw(st.sampled_from(FAMILIES)),
        kind=kind,
        document=document,
        words=draw(st.integers(1, len(_INSTRUCTION.split()))),
        committed=draw(st.one_of(st.just(0), st.integers(1, timing['chunk_rows'] - 1))),
        seed=draw(st.integers(0, 2**16)),
        precision=draw(st.sampled_from(('fp32', 'fp32', 'fp32', 'bf16', 'fp8', 'fp16'))),
    )


@st.composite
def _views(draw: Callable[[st.SearchStrategy[Any]], Any]) -> dict[str, Any]:
    composition = draw(st.sampled_from(tuple(COMPOSITIONS)))
    streams = {name: {'topic': f'camera/{name}', 'max_age_s': 0.5} for name in COMPOSITIONS[composition]}
    width = st.integers(64, 400) if composition == 'single' else st.integers(32, 200).map(lambda half: 2 * half)
    size = [draw(st.integers(64, 400)), draw(width)]
    return {'composition': composition, 'size': size, 'streams': streams}


@st.composite
def _prompts(draw: Callable[[st.SearchStrategy[Any]], Any]) -> dict[str, Any]:
    form = draw(st.sampled_from(('plain', 'json')))
    idle = draw(st.one_of(st.none(), st.integers(0, 4))) if form == 'json' else None
    return {'format': form, 'viewpoint': draw(st.sampled_from(VIEWPOINTS)), 'idle_frames': idle}


@st.composite
def _samplers(draw: Callable[[st.SearchStrategy[Any]], Any]) -> dict[str, Any]:
    steps, limit = draw(st.integers(1, 4)), draw(st.sampled_from(('off', 'none', 'interval', 'steps')))
    interval = draw(st.sampled_from(([600, 1001], [0, 900]))) if limit == 'interval' else None
    numbers = st.lists(st.integers(1, steps), min_size=1, unique=True).map(sorted)
    return {
        'steps': steps,
        'guidance': 1.0 if limit == 'off' else draw(st.floats(1.5, 5.0)),
        'guidance_interval': interval,
        'guidance_steps': draw(numbers) if limit == 'steps' else None,
        'shift': draw(st.floats(1.0, 8.0)),
    }


def make_checkpoint(folder: Path, family: str, weights: str = 'random') -> Path:
    """The smallest checkpoint of a family, made for no policy in particular: any contract fits."""
    root = engine.make_tiny(folder, family, sound=False, weights=weights)
    path = root / 'checkpoint.json'
    document = json.loads(path.read_text(encoding='utf-8'))
    document.pop('policy', None)
    path.write_text(json.dumps(document), encoding='utf-8')
    return root


def try_case(
    case: Case, checkpoint: Path, folder: Path, target: str | None = 'sm_89', *, build_again: bool = False
) -> Outcome:
    """Compile, run the graphs in ONNX Runtime beside the reference, and build engines.

    Args:
        case: The contract and how it is used.
        checkpoint: Of its family.
        folder: Where the compiled parts go.
        target: GPU that engines are built for; None: graphs alone.
        build_again: Whether engines are also built in the case's own precision.

    Raises:
        CosmosError: Something cannot be compiled.
    """
    contract, opened = case.contract, open_checkpoint(checkpoint)
    targets = (target,) if target else ()
    cards = [compile_checkpoint(Order(opened, contract, 'fp32', targets), folder / 'fp32').card]
    if build_again and case.precision != 'fp32':
        cards.append(compile_checkpoint(Order(opened, contract, case.precision, targets), folder / 'own').card)
    gc.collect()
    model = engine.load(checkpoint, backend='torch')
    reference, ours = Recording(model.runtime, contract), Recording(_of_graphs(folder / 'fp32', model), contract)
    (observation,) = make_observations(contract, 1, case.seed)
    instruction = ' '.join(_INSTRUCTION.split()[: case.words])
    observation = Observation(**{**vars(observation), 'instruction': instruction})
    expected = reference.infer(observation, case.seed)
    if case.committed:
        committed = expected.actions[: case.committed]
        expected, found = (policy.infer(observation, case.seed, committed=committed) for policy in (reference, ours))
    else:
        found = ours.infer(observation, case.seed)
    levels = reference.imagined_video(expected).astype(int) - ours.imagined_video(expected)
    return Outcome(
        rows=float((ours.rows - reference.rows).abs().max()),
        latents=float((found.latents - expected.latents).abs().max()),
        levels=int(np.abs(levels).max()),
        tokens=ours.layout.tokens(model.runtime.backend.patch),
        layers=sum(part.layers for card in cards for part in card.parts.values()),
        seconds=sum(_seconds(card) for card in cards),
    )


class Recording(Policy):
    """A policy that keeps the rows of its last chunk as the network left them."""

    rows: torch.Tensor

    def _decode(self, rows: torch.Tensor, observation: Observation) -> Any:
        self.rows = rows.clone()
        return super()._decode(rows, observation)


def _of_graphs(folder: Path, model: engine.Cosmos3) -> Runtime:
    """A runtime on the graphs of compiled parts, engines beside them or not."""
    card, cpu = read_card(folder), torch.device('cpu')
    runners = open_graphs(folder, card)
    backend = CompiledBackend('onnxruntime', card, model.checkpoint.transformer_config, cpu, runners)
    return Runtime(backend, CompiledVae(card, cpu, runners), model.runtime.tokenizer)


def _seconds(card: Card) -> float:
    return sum(sum(part.seconds.values()) for part in card.parts.values())
