"""How fast the reasoner answers: time to the first token and tokens a second, against transformers' `generate`.

    python benchmarks/reasoner.py --threads 1 --save

Both sides use the same tensors, not copies of them, the same processor and the same conversation, and answer greedily.
They take turns within one run, so that the load of other programs falls on both. In between, a token's matrix products
are done alone: nobody who has PyTorch do them writes faster than that. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import figures
import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional

import engine
from engine import tiny_configs
from engine.checkpoint import open_checkpoint
from engine.checkpoint.expected import build_transformer
from engine.network.config import TransformerConfig
from engine.network.offload import rests_on_host
from engine.network.transformer import CosmosTransformer
from engine.network.vision_encoder import QwenVision
from engine.reasoner import Parts, Reasoner
from engine.reasoner_reading import Reader
from engine.reasoner_talk import Message, Picture, Sampling, user
from engine.runtime import Runtime
from engine.tiny_tokenizer import build_tokenizer

GOAL = 1.5
SIZES: Mapping[str, Mapping[str, Any]] = {
    'tiny': {},
    'mid': {
        'hidden_size': 1024,
        'num_hidden_layers': 24,
        'num_attention_heads': 8,
        'num_key_value_heads': 2,
        'head_dim': 128,
        'intermediate_size': 3072,
    },
}
"""What a size has in place of the tiny checkpoint's; `mid` is Nano with a quarter of its width and 2/3 of its depth."""
VISION: Mapping[str, Any] = {'depth': 12, 'hidden_size': 512, 'intermediate_size': 2048, 'num_heads': 8}
MROPE = {'tiny': tiny_configs.MROPE_SECTION, 'mid': [24, 20, 20]}
RENAMED = {
    'to_q': 'q_proj',
    'to_k': 'k_proj',
    'to_v': 'v_proj',
    'to_out': 'o_proj',
    'norm_q': 'q_norm',
    'norm_k': 'k_norm',
}
HEAD = (
    'weights, type, what is shown',
    'prompt',
    'first token, transformers',
    'ours',
    'ratio',
    'tokens/s, transformers',
    'ours',
    'ratio',
    'products alone',
)


@dataclass
class Line:
    """One case: weights, type and conversation, and what was measured.

    Attributes:
        name: In the table.
        prompt: Tokens read.
        firsts: Seconds to the first token, by side.
        rates: Tokens per second behind it, by side.
        ceilings: Tokens per second if there were nothing but their matrix products.
    """

    name: str
    prompt: int = 0
    firsts: dict[str, list[float]] = field(default_factory=lambda: {'theirs': [], 'ours': []})
    rates: dict[str, list[float]] = field(default_factory=lambda: {'theirs': [], 'ours': []})
    ceilings: list[float] = field(default_factory=list)

    def row(self) -> tuple[str, ...]:
        """As a line of the table."""
        first = {side: 1e3 * statistics.median(values) for side, values in self.firsts.items()}
        rate = {side: statistics.median(values) for side, values in self.rates.items()}
        return (
            self.name,
            str(self.prompt),
            *(f'{first[side]:,.1f} ms' for side in ('theirs', 'ours')),
            f'{first["theirs"] / first["ours"]:.2f}',
            *(f'{rate[side]:,.1f}' for side in ('theirs', 'ours')),
            f'{self.ratio:.2f}',
            f'{self.ceiling:,.1f}',
        )

    @property
    def ratio(self) -> float:
        """By how many times ours writes faster."""
        return statistics.median(self.rates['ours']) / statistics.median(self.rates['theirs'])

    @property
    def ceiling(self) -> float:
        """Tokens per second of the products alone."""
        return statistics.median(self.ceilings)

    @property
    def within_reach(self) -> float:
        """By how many times anybody could write faster than transformers with the same products."""
        return self.ceiling / statistics.median(self.rates['theirs'])


class Watch:
    """When the first token of an answer and when the last was there; one of transformers' streamers."""

    def __init__(self) -> None:
        """Start now."""
        self.start = self.first = self.last = time.perf_counter()
        self._puts = 0

    def see(self, tokens: int) -> None:
        """So many tokens are there."""
        self.last = time.perf_counter()
        if tokens == 1:
            self.first = self.last

    def put(self, _ids: torch.Tensor) -> None:
        """The prompt, then token by token."""
        self.see(self._puts)
        self._puts += 1

    def end(self) -> None:
        """The last token is there."""


class Sides:
    """Ours and transformers' on the same tensors."""

    def __init__(self, size: str, dtype: torch.dtype, scratch: Path) -> None:
        """Build both with random weights."""
        root = engine.make_tiny(scratch / 'checkpoint', weights='random')
        config = root_config(size)
        generator = torch.Generator().manual_seed(0)
        transformer = make_transformer(size, dtype, generator)
        encoder = QwenVision(config)
        nn.Module.to_empty(encoder.module, device='cpu')
        randomise(encoder.module.to(dtype), generator)
        encoder.settle('cpu')
        model = engine.load(root)
        processor = open_checkpoint(root).load_processor()
        reader = Reader(processor, config)
        runtime = Runtime(type(model.runtime.backend)(transformer), model.runtime.vae, model.runtime.tokenizer)
        self.ours = Reasoner(runtime, Parts(transformer, encoder, reader, (), 262144))
        self.theirs = make_reference(config, transformer, encoder.module)
        self.processor = processor
        self.parameters = sum(p.numel() for p in self.theirs.parameters())
        named = transformer.named_parameters()
        self._matrices = [
            p for name, p in named if p.device.type != 'meta' and p.ndim == 2 and not name.startswith('embed_tokens')
        ]

    @torch.inference_mode()
    def products(self) -> float:
        """Seconds for every matrix product of one token, and nothing else."""
        rows = {matrix.shape[1]: torch.ones(1, 1, matrix.shape[1], dtype=matrix.dtype) for matrix in self._matrices}
        began = time.perf_counter()
        for matrix in self._matrices:
            functional.linear(rows[matrix.shape[1]], matrix)
        return time.perf_counter() - began

    def answer_ours(self, messages: Sequence[Message], tokens: int) -> tuple[Watch, list[int]]:
        """When it wrote, and what."""
        written: list[int] = []
        watch = Watch()

        def look(so_far: Sequence[int]) -> None:
            watch.see(len(so_far) + 1)  # its scores are there: it is about to be chosen
            written[:] = so_far

        self.ours.generate(messages, sampling=Sampling(max_tokens=tokens), allowed=look)
        watch.see(tokens)
        return watch, written

    def answer_theirs(self, messages: Sequence[Message], tokens: int) -> tuple[Watch, list[int]]:
        """When it wrote, and what."""
        watch = Watch()
        inputs = self._inputs(messages)
        prompt = inputs['input_ids'].shape[1]
        out = self.theirs.generate(**inputs, max_new_tokens=tokens, do_sample=False, streamer=watch)
        written = out[0, prompt:].tolist()
        self.processor.batch_decode([written])
        watch.see(tokens)
        return watch, written

    def _inputs(self, messages: Sequence[Message]) -> Any:
        from PIL import Image

        stills = [Image.fromarray(part.rgb) for m in messages for part in m.parts if isinstance(part, Picture)]
        turns = [
            {
                'role': m.role,
                'content': [{'type': 'text', 'text': p} if isinstance(p, str) else {'type': 'image'} for p in m.parts],
            }
            for m in messages
        ]
        text = self.processor.tokenizer.apply_chat_template(
            turns, chat_template=self.processor.chat_template, tokenize=False, add_generation_prompt=True
        )
        return self.processor(text=[text], return_tensors='pt', **({'images': stills} if stills else {}))


def root_config(size: str) -> dict[str, Any]:
    """The root `config.json` of a size."""
    config = tiny_configs.root(build_tokenizer(edge=False, real_ids=False))
    rope = {**config['text_config']['rope_scaling'], 'mrope_section': MROPE[size]}
    config['text_config'] |= {**SIZES[size], 'rope_scaling': rope}
    if SIZES[size]:
        config['vision_config'] |= {**VISION, 'out_hidden_size': SIZES[size]['hidden_size']}
    return config


def make_transformer(size: str, dtype: torch.dtype, generator: torch.Generator) -> CosmosTransformer:
    """Our transformer, of which only what the reasoner reads has memory."""
    vocabulary = build_tokenizer(edge=False, real_ids=False).vocab_size
    document = tiny_configs.transformer(edge=False, sound=False, vocab_size=vocabulary)
    rope = {**document['rope_scaling'], 'mrope_section': MROPE[size]}
    config = TransformerConfig.from_dict({**document, **SIZES[size], 'rope_scaling': rope})
    model = build_transformer(config, sound=False, action=False, lm_head=True)
    needed = [n for n in model.state_dict() if rests_on_host(n) or n.startswith(('norm.', 'lm_head.', 'norm_moe_gen.'))]
    state = {name: torch.empty_like(model.state_dict()[name], device='cpu', dtype=dtype) for name in needed}
    model.load_state_dict(state, strict=False, assign=True)
    randomise(model, generator)
    return model.requires_grad_(False).eval()


def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw weights with which activations neither vanish nor overflow."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.device.type != 'meta':
                scale = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
                drawn = torch.randn(parameter.shape, generator=generator) * scale
                parameter.copy_(drawn + (1 if parameter.ndim < 2 else 0))


def make_reference(config: dict[str, Any], ours: CosmosTransformer, vision: nn.Module) -> Any:
    """Transformers' model on the tensors of ours."""
    described = transformers.Cosmos3OmniConfig.from_dict(config)
    with torch.device('meta'):
        model = transformers.Cosmos3OmniForConditionalGeneration(described)
    weights = {f'model.visual.{name}': tensor for name, tensor in vision.state_dict().items()}
    for name, tensor in ours.state_dict().items():
        parts = [RENAMED.get(part, part) for part in name.split('.')]
        weights['.'.join(parts if parts[0] == 'lm_head' else ['model', 'language_model', *parts])] = tensor
    model.load_state_dict({name: weights[name] for name in model.state_dict()}, assign=True)
    for owner, name in ((model.model.language_model, 'rotary_emb'), (model.model.visual, 'rotary_pos_emb')):
        setattr(owner, name, type(getattr(owner, name))(owner.config))
    model.generation_config = transformers.GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0)
    return model.eval()


def conversations(rows: int, columns: int) -> Iterator[tuple[str, list[Message]]]:
    """What is asked."""
    words = 'Describe what the robot should do next and answer with the steps of a plan. ' * 4
    yield 'words', [user(words)]
    rgb = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), np.uint8)
    yield 'a picture', [user(Picture(rgb), words)]


def measure(sides: Sides, line: Line, messages: Sequence[Message], tokens: int) -> None:
    """One answer of each side."""
    said = {}
    for side, answer in (('theirs', sides.answer_theirs), ('ours', sides.answer_ours)):
        watch, said[side] = answer(messages, tokens)
        line.firsts[side].append(watch.first - watch.start)
        line.rates[side].append((tokens - 1) / (watch.last - watch.first))
    line.ceilings.append(1.0 / statistics.median(sides.products() for _ in range(5)))
    exact = sides.ours.parts.transformer.dtype is torch.float32
    if exact and said['theirs'][: tokens - 1] != said['ours'][: tokens - 1]:
        raise SystemExit(f'{line.name}: the two sides answer differently, so their times say nothing')


def main() -> None:
    """Measure, print the table, keep it if asked to."""
    options = parse_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    lines: list[Line] = []
    parameters: dict[str, int] = {}
    for size in options.sizes:
        for dtype in options.dtypes:
            with tempfile.TemporaryDirectory() as scratch:
                sides = Sides(size, getattr(torch, dtype), Path(scratch))
            parameters[size] = sides.parameters
            if options.compiled:
                sides.ours = sides.ours.compiled()
            for shown, messages in conversations(*options.picture):
                line = Line(f'{size}, {dtype}, {shown}', len(sides.ours.parts.reader.read(messages).ids))
                tell(line.name)
                lines.append(line)
                measure(sides, Line('warm-up'), messages, 4)
                for _ in range(options.rounds):
                    measure(sides, line, messages, options.tokens)
                if options.save:  # a run that is ended early has measured what it has
                    keep(options, parameters, lines, report(lines))
    print(report(lines))


def report(lines: list[Line]) -> str:
    """The table and what it says."""
    return f'{figures.table(HEAD, [line.row() for line in lines])}\n\n{verdict(lines)}'


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--sizes', nargs='+', default=list(SIZES), choices=SIZES)
    parser.add_argument('--dtypes', nargs='+', default=['float32', 'bfloat16'], choices=['float32', 'bfloat16'])
    parser.add_argument('--picture', nargs=2, type=int, default=(360, 640), metavar=('ROWS', 'COLUMNS'))
    parser.add_argument('--tokens', type=int, default=64, help='length of an answer')
    parser.add_argument('--rounds', type=int, default=7, help='answers of each side in each case')
    parser.add_argument('--compiled', action='store_true', help='compile the layers with which ours writes')
    parser.add_argument('--threads', type=int, help="threads of PyTorch (default: PyTorch's own)")
    parser.add_argument('--save', action='store_true', help='keep figures and table in benchmarks/results')
    return parser.parse_args()


def tell(text: str) -> None:
    """Say what is being done, apart from the table."""
    print(f'{time.strftime("%H:%M:%S")} {text}', file=sys.stderr, flush=True)


def verdict(lines: list[Line]) -> str:
    """Whether the goal is reached, and where it is not."""
    below = [
        f'{line.name} ({line.ratio:.2f}; the products alone allow {line.within_reach:.2f})'
        for line in lines
        if line.ratio < GOAL
    ]
    reached = f'not reached for {"; ".join(below)}' if below else 'reached everywhere'
    return f'Medians. Goal, {GOAL} times the tokens a second of transformers: {reached}.'


def keep(options: argparse.Namespace, parameters: Mapping[str, int], lines: list[Line], text: str) -> None:
    """Write figures and table to `results`."""
    machine = figures.machine() | {
        'torch': torch.__version__,
        'transformers': transformers.__version__,
        'threads': torch.get_num_threads(),
    }
    settings = {
        'tokens': options.tokens,
        'rounds': options.rounds,
        'picture': options.picture,
        'parameters': parameters,
    }
    measured = [
        {
            'name': line.name,
            'prompt': line.prompt,
            'firsts_s': line.firsts,
            'rates': line.rates,
            'ceilings': line.ceilings,
        }
        for line in lines
    ]
    title = '# The reasoner against transformers'
    sizes = ', '.join(f'{size}: {count / 1e6:,.1f} M parameters' for size, count in parameters.items())
    setting = (
        f'{figures.facts(machine)}.\n\nAnswers of {options.tokens} tokens, {options.rounds} of each side. {sizes}.'
    )
    figures.save(
        'reasoner_compiled' if options.compiled else 'reasoner',
        {'machine': machine, 'settings': settings, 'lines': measured},
        f'{title}\n\n{setting}\n\n{text}',
    )


if __name__ == '__main__':
    main()
