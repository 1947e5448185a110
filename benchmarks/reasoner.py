"""How fast the reasoner answers: time to the first token and tokens a second, against transformers' `generate`.

    python benchmarks/reasoner.py --threads 1 --save

All sides use the same tensors, not copies of them, the same processor and the same conversation. What they answer is
dictated, token by token, because random weights would babble: a plan, boxes, or a description in words, each to the
question that this package asks. Sides take turns within one run, so that the load of other programs falls on all. In
between, a token's matrix products are done alone: nobody who has PyTorch do them, one token after the other, writes
faster than that. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import figures
import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

import engine
from engine import tiny_configs
from engine.checkpoint import open_checkpoint
from engine.checkpoint.expected import build_transformer
from engine.network.config import TransformerConfig
from engine.network.offload import rests_on_host
from engine.network.transformer import CosmosTransformer
from engine.network.vision_encoder import QwenVision
from engine.reasoner import Parts, Reasoner
from engine.reasoner_guesses import GUESSES
from engine.reasoner_questions import Skills, boxes, plan, text
from engine.reasoner_reading import Reader
from engine.reasoner_sampling import TokenChooser
from engine.reasoner_talk import Message, Picture, Sampling, user
from engine.runtime import Runtime
from engine.tiny_tokenizer import build_tokenizer

GOAL = 1.5
TOLERANCE = 1e-3
"""Between scores of the two models in float32; where sums have other orders, some 1e-5 are usual."""
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
SIDES = ('theirs', 'with lookup', 'one by one', 'ours')
"""Transformers as it comes and with its own guesses, ours without guesses, ours."""
HEAD = (
    'weights, type, answer',
    'prompt, answer',
    'first token, transformers',
    'ours',
    'ratio',
    'tokens/s, transformers',
    'with lookup',
    'ratio',
    'ours one by one',
    'ratio',
    'ours',
    'ratio',
    'tokens a pass',
    'products alone',
)
THINGS = {'red cube': '412, 305, 498, 391', 'green ball': '127, 540, 203, 617', 'yellow bowl': '655, 218, 871, 466'}
SKILLS = Skills(examples=('pick up the red cube', 'put the banana in the bowl', 'open the drawer'))
ANSWERS: Mapping[str, tuple[bool, str, str]] = {
    'a plan': (
        False,
        plan('clear the table', SKILLS).words,
        '{"steps": [{"instruction": "pick up the red cube", "success": "the red cube is held above the table"}, '
        '{"instruction": "put the red cube in the bowl", "success": "the red cube is in the bowl and the gripper is '
        'empty"}, {"instruction": "pick up the green ball", "success": "the green ball is held above the table"}, '
        '{"instruction": "put the green ball in the bowl", "success": "the green ball is in the bowl and the gripper '
        'is empty"}]}',
    ),
    'boxes': (
        True,
        boxes('everything on the table').words,
        '[' + ', '.join(f'{{"bbox_2d": [{box}], "label": "{what}"}}' for what, box in THINGS.items()) + ']',
    ),
    'words': (
        True,
        text('What do you see on the table, and what should the robot do next?').words,
        'A robot arm stands behind a wooden table. On the table lie a red cube, a green ball and a yellow bowl; the '
        'bowl is empty, and the cube is nearest to the arm. To the left there is a small cabinet whose drawer is half '
        'open. The gripper is open and points down, a hand above the cube, so that the next thing to do would be to '
        'lower it, close it around the cube and lift.',
    ),
}
"""For each kind of answer: whether a picture is shown, what is asked, and what is answered."""
SENTENCES = tuple(words for _, *both in ANSWERS.values() for words in both)
"""What the tokenizer reads in as few tokens as a public one would."""


@dataclass
class Line:
    """One case: weights, type and answer, and what was measured.

    Attributes:
        name: In the table.
        prompt: Tokens read.
        answer: Tokens written.
        passes: Of the network in which ours wrote them.
        firsts: Seconds to the first token, by side.
        rates: Tokens per second behind it, by side.
        ceilings: Tokens per second, one by one, if there were nothing but their matrix products.
    """

    name: str
    prompt: int = 0
    answer: int = 0
    passes: int = 0
    firsts: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    rates: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    ceilings: list[float] = field(default_factory=list)

    def row(self) -> tuple[str, ...]:
        """As a line of the table."""
        first = {side: 1e3 * statistics.median(values) for side, values in self.firsts.items()}
        return (
            self.name,
            f'{self.prompt}, {self.answer}',
            *(f'{first[side]:,.1f} ms' for side in ('theirs', 'ours')),
            f'{first["theirs"] / first["ours"]:.2f}',
            f'{self.rate("theirs"):,.1f}',
            f'{self.rate("with lookup"):,.1f}',
            f'{self.ratio("with lookup"):.2f}',
            f'{self.rate("one by one"):,.1f}',
            f'{self.ratio("one by one"):.2f}',
            f'{self.rate("ours"):,.1f}',
            f'{self.ratio("ours"):.2f}',
            f'{self.answer / self.passes:.2f}',
            f'{self.ceiling:,.1f}',
        )

    def rate(self, side: str) -> float:
        """Tokens per second of a side."""
        return statistics.median(self.rates[side])

    def ratio(self, side: str) -> float:
        """By how many times a side writes faster than transformers."""
        return self.rate(side) / self.rate('theirs')

    @property
    def ceiling(self) -> float:
        """Tokens per second of the products alone."""
        return statistics.median(self.ceilings)


class Watch:
    """When the first token of an answer and when the last was there; one of transformers' streamers."""

    def __init__(self) -> None:
        """Start now."""
        self.start = self.first = self.last = time.perf_counter()
        self._seen = self._at_first = -1

    def see(self, tokens: int) -> None:
        """So many tokens are there."""
        self.last, self._seen = time.perf_counter(), tokens
        if tokens and self._at_first < 0:
            self.first, self._at_first = self.last, tokens

    def put(self, ids: torch.Tensor) -> None:
        """The prompt, then tokens as they come."""
        self.see(0 if self._seen < 0 else self._seen + ids.numel())

    @property
    def rate(self) -> float:
        """Tokens per second behind those that came first."""
        return (self._seen - self._at_first) / (self.last - self.first)

    def end(self) -> None:
        """The last token is there."""


class Sides:
    """Ours and transformers' on the same tensors."""

    def __init__(self, size: str, dtype: torch.dtype, scratch: Path) -> None:
        """Build both with random weights."""
        root = engine.make_tiny(scratch / 'checkpoint', weights='random', sentences=SENTENCES)
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
        self.pieces = [config[f'{kind}_token_id'] for kind in ('image', 'video')]
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

    def encode(self, answer: str) -> list[int]:
        """Tokens of an answer."""
        return self.ours.parts.reader.encode(answer)

    def compile(self) -> None:
        """Compile the layers with which ours writes."""
        self.ours = self.ours.compiled()
        self.ours.warm_up()

    def answer_ours(self, messages: Sequence[Message], answer: list[int], *, guesses: bool) -> tuple[Watch, int]:
        """When it wrote, and in how many passes of the network."""
        ours = self.ours if guesses else self.ours.without_guesses()
        size = ours.parts.transformer.config.vocab_size
        watch = Watch()

        def dictate(written: Sequence[int]) -> torch.Tensor:
            watch.see(len(written) + 1)  # its scores are there: it is about to be chosen
            return torch.zeros(size, dtype=torch.bool).index_fill_(0, torch.tensor(answer[len(written)]), True)

        said = ours.generate(messages, sampling=Sampling(max_tokens=len(answer)), allowed=dictate)
        watch.see(len(answer))
        if said.text != self.ours.parts.reader.decode(answer).strip():
            raise SystemExit(f'ours wrote {said.text!r}')
        return watch, said.passes

    def answer_theirs(self, messages: Sequence[Message], answer: list[int], **options: Any) -> Watch:
        """When it wrote."""
        watch = Watch()
        inputs = self._inputs(messages)
        prompt = inputs['input_ids'].shape[1]
        out = self.theirs.generate(
            **inputs, max_new_tokens=len(answer), streamer=watch, **options, **dictated(answer, prompt)
        )
        written = out[0, prompt:].tolist()
        self.processor.batch_decode([written])
        watch.see(len(answer))
        if written != answer:
            raise SystemExit(f'transformers wrote {written}')
        return watch

    @torch.inference_mode()
    def check(self, messages: Sequence[Message], answer: list[int]) -> None:
        """End the program if the two models do not say the same at every token, with guesses and without."""
        inputs = self._inputs(messages)
        options = {'output_logits': True, 'return_dict_in_generate': True}
        constrained = dictated(answer, inputs['input_ids'].shape[1])
        out = self.theirs.generate(**inputs, max_new_tokens=len(answer), **options, **constrained)
        choose = TokenChooser.choose
        for guesses in (False, True):
            found: list[torch.Tensor] = []

            def look(self: TokenChooser, scores: torch.Tensor, *args: Any, seen: Any = found) -> int:
                seen.append(scores)
                return choose(self, scores, *args)

            with mock.patch.object(TokenChooser, 'choose', look):
                self.answer_ours(messages, answer, guesses=guesses)
            far = float((torch.stack(found) - torch.cat(out.logits)).abs().max())
            if far > TOLERANCE:
                raise SystemExit(f'the two models differ by {far:.2g}, so their times say nothing')

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


def dictated(answer: list[int], prompt: int) -> dict[str, Any]:
    """Options with which transformers' `generate` writes an answer behind a prompt of so many tokens."""
    return {
        'do_sample': False,
        'prefix_allowed_tokens_fn': lambda _, ids: [answer[min(len(ids) - prompt, len(answer) - 1)]],
    }


@contextmanager
def blind_lookup(pieces: Sequence[int]) -> Iterator[None]:
    """Keep what is dictated from transformers' lookup, which would else never guess what is not.

    It may not guess pieces of pictures, for which the model would then want more pictures.
    """
    make = PromptLookupCandidateGenerator.__init__

    def blind(self: Any, *args: Any, logits_processor: Any = None, **options: Any) -> None:
        del logits_processor
        allowed = transformers.LogitsProcessorList([transformers.SuppressTokensLogitsProcessor(list(pieces))])
        make(self, *args, logits_processor=allowed, **options)

    with mock.patch.object(PromptLookupCandidateGenerator, '__init__', blind):
        yield


def root_config(size: str) -> dict[str, Any]:
    """The root `config.json` of a size."""
    config = tiny_configs.root(build_tokenizer(edge=False, real_ids=False, sentences=SENTENCES))
    rope = {**config['text_config']['rope_scaling'], 'mrope_section': MROPE[size]}
    config['text_config'] |= {**SIZES[size], 'rope_scaling': rope}
    if SIZES[size]:
        config['vision_config'] |= {**VISION, 'out_hidden_size': SIZES[size]['hidden_size']}
    return config


def make_transformer(size: str, dtype: torch.dtype, generator: torch.Generator) -> CosmosTransformer:
    """Our transformer, of which only what the reasoner reads has memory."""
    vocabulary = build_tokenizer(edge=False, real_ids=False, sentences=SENTENCES).vocab_size
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


def conversation(kind: str, rows: int, columns: int) -> list[Message]:
    """What is shown and asked."""
    shows, question, _ = ANSWERS[kind]
    rgb = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), np.uint8)
    return [user(*([Picture(rgb)] if shows else []), question)]


def measure(sides: Sides, line: Line, messages: Sequence[Message], answer: list[int]) -> None:
    """One answer of each side."""
    watches = {'theirs': sides.answer_theirs(messages, answer)}
    with blind_lookup(sides.pieces):
        watches['with lookup'] = sides.answer_theirs(messages, answer, prompt_lookup_num_tokens=GUESSES)
    watches['one by one'], _ = sides.answer_ours(messages, answer, guesses=False)
    watches['ours'], line.passes = sides.answer_ours(messages, answer, guesses=True)
    line.answer = len(answer)
    for side, watch in watches.items():
        line.firsts[side].append(watch.first - watch.start)
        line.rates[side].append(watch.rate)
    line.ceilings.append(1.0 / statistics.median(sides.products() for _ in range(5)))


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
                sides.compile()
            for kind, (_, _, words) in ANSWERS.items():
                messages, answer = conversation(kind, *options.picture), sides.encode(words)[: options.tokens]
                line = Line(f'{size}, {dtype}, {kind}', len(sides.ours.parts.reader.read(messages).ids))
                tell(line.name)
                lines.append(line)
                if dtype == 'float32':
                    sides.check(messages, answer)
                measure(sides, Line('warm-up'), messages, answer[:4])
                for _ in range(options.rounds):
                    measure(sides, line, messages, answer)
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
    parser.add_argument('--tokens', type=int, help='of an answer, at most (default: all of it)')
    parser.add_argument('--rounds', type=int, default=5, help='answers of each side in each case')
    parser.add_argument('--compiled', action='store_true', help='compile the layers with which ours writes')
    parser.add_argument('--threads', type=int, help="threads of PyTorch (default: PyTorch's own)")
    parser.add_argument('--save', action='store_true', help='keep figures and table in benchmarks/results')
    return parser.parse_args()


def tell(text: str) -> None:
    """Say what is being done, apart from the table."""
    print(f'{time.strftime("%H:%M:%S")} {text}', file=sys.stderr, flush=True)


def verdict(lines: list[Line]) -> str:
    """Whether the goal is reached, and where it is not."""

    def reached(side: str) -> str:
        below = [f'{line.name} ({line.ratio(side):.2f})' for line in lines if line.ratio(side) < GOAL]
        return f'not reached for {"; ".join(below)}' if below else 'reached everywhere'

    goal = f'Medians. Goal, {GOAL} times the tokens a second of transformers as it comes: '
    return f'{goal}with guesses {reached("ours")}; one by one {reached("one by one")}.'


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
            'answer': line.answer,
            'passes': line.passes,
            'firsts_s': line.firsts,
            'rates': line.rates,
            'ceilings': line.ceilings,
        }
        for line in lines
    ]
    title = '# The reasoner against transformers'
    sizes = ', '.join(f'{size}: {count / 1e6:,.1f} M parameters' for size, count in parameters.items())
    setting = f'{figures.facts(machine)}.\n\n{options.rounds} answers of each side. {sizes}.'
    figures.save(
        'reasoner_compiled' if options.compiled else 'reasoner',
        {'machine': machine, 'settings': settings, 'lines': measured},
        f'{title}\n\n{setting}\n\n{text}',
    )


if __name__ == '__main__':
    main()
