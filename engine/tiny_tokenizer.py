"""The tokenizer of a tiny checkpoint: a real byte-level BPE with the public special tokens and a chat template.

Everything a real tokenizer does, this one does too: the normaliser, pre-tokeniser and decoder are those that Qwen
publishes, the special tokens keep their names, roles and order, and prompts are rendered through a Jinja chat template.
Only the vocabulary is small: the 256 bytes and a few hundred merges learned from the sentences below. Its ids are
therefore compact, unless the real ones are asked for; then every id of the public vocabulary exists, most as fillers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# The split that Qwen's tokenizers publish: contractions, words, single digits, punctuation, line ends, spaces.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_QWEN_SPECIALS = (
    '<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|object_ref_start|>', '<|object_ref_end|>', '<|box_start|>',
    '<|box_end|>', '<|quad_start|>', '<|quad_end|>', '<|vision_start|>', '<|vision_end|>', '<|vision_pad|>',
    '<|image_pad|>', '<|video_pad|>', '<tool_call>', '</tool_call>', '<|fim_prefix|>', '<|fim_middle|>',
    '<|fim_suffix|>', '<|fim_pad|>', '<|repo_name|>', '<|file_sep|>', '<tool_response>', '</tool_response>', '<think>',
    '</think>',
)  # fmt: skip
# Added tokens that carry text of the answer, so that decoding with `skip_special_tokens` keeps them.
_QWEN_VISIBLE = frozenset(_QWEN_SPECIALS[14:])
_QWEN_BASE, _QWEN_VOCABULARY = 151643, 151936
_QWEN_PINNED = {'user': 872, 'system': 8948, 'assistant': 77091}

_EDGE_NAMED = {
    0: '<unk>', 1: '<s>', 2: '</s>', 10: '<|im_start|>', 11: '<|im_end|>', 12: '<think>', 13: '</think>',
    14: '<tool_call>', 15: '</tool_call>', 16: '<tool_response>', 17: '</tool_response>', 18: '<|video_pad|>',
    19: '<|image_pad|>', 20: '<|vision_start|>', 21: '<|vision_end|>',
}  # fmt: skip
_EDGE_VISIBLE = frozenset(('<think>', '</think>', '<tool_call>', '</tool_call>', '<tool_response>', '</tool_response>'))
_EDGE_COMPACT_SPECIALS, _EDGE_SPECIALS, _EDGE_VOCABULARY = 32, 1000, 131072

_PIECES = 960
_PADDING = 64  # vocabularies are padded to a multiple of this, as the public one is padded beyond its last token

_ROLES = ('user', 'assistant', 'system')
_SENTENCES = (
    'put the banana in the bowl and close the drawer with the robot arm',
    'pick up the red cube from the table and place it on the blue plate',
    'move the gripper towards the green block, then grasp and lift it slowly',
    'the video shows a robot gripper above a wooden table, seen by a wrist camera',
    'this video contains several views from different cameras of the same scene',
    'the top row is the view of the wrist camera and the bottom row holds two outside views',
    'the video is 2.0 seconds long at 15 frames per second with a resolution of 544x736',
    'this video has been captured from the perspective of a third person looking towards the agent',
    'this is a first person perspective of the scene, recorded by a camera mounted on the head',
    'describe what the robot should do next and answer with the steps of a plan',
    'the trajectory of the end effector is a list of points in pixel space of the image',
    '{"cinematography": {"framing": "concatenated views"}, "actions": [{"time": "0:00-0:02", "description": "open"}]}',
    '{"duration": "2s", "fps": 15.0, "resolution": {"H": 544, "W": 736}, "aspect_ratio": "4,3", "idle_frame": "0 out"}',
    '{"bbox_2d": [120, 340, 560, 780], "label": "cup"} {"point_2d": [415, 672], "label": "gripper trajectory"}',
    'I think that the object is behind the cup, so my next step should look like this. The final answer is yes.',
    'you are a helpful assistant who can see images and videos and follows the instructions of the user',
)

_MEDIA_MACRO = """{%- set seen = namespace(images=0, videos=0) -%}
{%- macro body(content) -%}
{%- if content is string -%}
{{- content -}}
{%- else -%}
{%- for part in content -%}
{%- if part.type in ['image', 'image_url'] -%}
{%- set seen.images = seen.images + 1 -%}
{{- ('Picture ' ~ seen.images ~ ': ' if add_vision_id is defined and add_vision_id else '') -}}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type in ['video', 'video_url'] -%}
{%- set seen.videos = seen.videos + 1 -%}
{{- ('Video ' ~ seen.videos ~ ': ' if add_vision_id is defined and add_vision_id else '') -}}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif part.text is defined -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + body(message.content) + '<|im_end|>\\n' -}}
{%- endfor -%}
"""
_QWEN_PROMPT = """{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
# Nemotron's templates open or close the thinking section themselves: a reader of prompts must render, never assume.
_EDGE_PROMPT = """{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{{- ('<think>\\n' if enable_thinking is defined and enable_thinking else '<think></think>') -}}
{%- endif -%}
"""


@dataclass(frozen=True)
class _Special:
    """One added token: its text, its id, and whether decoding may skip it."""

    text: str
    index: int
    skipped: bool


@dataclass(frozen=True)
class TinyTokenizer:
    """A byte-level BPE vocabulary in memory, ready to be written as the files of a fast tokenizer.

    Attributes:
        vocabulary: Text piece to id, without added tokens that live beyond the base vocabulary.
        merges: Pairs of pieces in order of priority.
        specials: Added tokens in order of id.
        vocab_size: Rows of the embedding table: all ids, padded.
        edge: Whether this is the Edge family's tokenizer.
    """

    vocabulary: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]
    specials: tuple[_Special, ...]
    vocab_size: int
    edge: bool

    def id_of(self, text: str) -> int:
        """Id of the special token `text`."""
        return next(special.index for special in self.specials if special.text == text)

    @property
    def chat_template(self) -> str:
        """Jinja source that renders chat messages to the text of a prompt."""
        return _MEDIA_MACRO + (_EDGE_PROMPT if self.edge else _QWEN_PROMPT)

    def files(self) -> dict[str, str]:
        """Content of every file of `text_tokenizer/`, by name."""
        merges = ''.join(f'{left} {right}\n' for left, right in self.merges)
        files = {
            'tokenizer.json': self.tokenizer_json(),
            'tokenizer_config.json': _json(self._settings()),
            'special_tokens_map.json': _json(self._roles()),
            'chat_template.jinja': self.chat_template,
        }
        if not self.edge:
            files['vocab.json'] = json.dumps(dict(self.vocabulary), ensure_ascii=False)
            files['merges.txt'] = '#version: 0.2\n' + merges
        return files

    def tokenizer_json(self) -> str:
        """The whole tokenizer in the `tokenizers` library's own format."""
        tokenizer = Tokenizer(models.BPE(vocab=dict(self.vocabulary), merges=list(self.merges)))
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = _pre_tokenizer()
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
        for special in self.specials:
            added = AddedToken(special.text, normalized=False, special=special.skipped)
            (tokenizer.add_special_tokens if special.skipped else tokenizer.add_tokens)([added])
        return tokenizer.to_str(pretty=True) + '\n'

    def _roles(self) -> dict[str, Any]:
        if self.edge:
            return {'bos_token': '<s>', 'eos_token': '<|im_end|>', 'pad_token': '<unk>', 'unk_token': '<unk>'}
        return {
            'additional_special_tokens': list(_QWEN_SPECIALS[1:14]),
            'eos_token': '<|im_end|>',
            'pad_token': '<|endoftext|>',
        }

    def _settings(self) -> dict[str, Any]:
        added = {
            str(special.index): {
                'content': special.text,
                'lstrip': False,
                'normalized': False,
                'rstrip': False,
                'single_word': False,
                'special': special.skipped,
            }
            for special in self.specials
        }
        return {
            'add_bos_token': False,
            'add_prefix_space': False,
            'added_tokens_decoder': added,
            'bos_token': None,
            'clean_up_tokenization_spaces': False,
            'errors': 'replace',
            'model_max_length': 131072 if self.edge else 262144,
            'split_special_tokens': False,
            'tokenizer_class': 'PreTrainedTokenizerFast' if self.edge else 'Qwen2Tokenizer',
            'unk_token': None,
            **self._roles(),
        }


def build_tokenizer(*, edge: bool, real_ids: bool, sentences: tuple[str, ...] = ()) -> TinyTokenizer:
    """Learn the small vocabulary and give every piece its id.

    Args:
        edge: Build the Edge family's tokenizer (special tokens first, id 11 ends a turn) instead of Qwen's
            (special tokens last).
        real_ids: Place special tokens, roles and line ends where the public vocabulary has them and fill the rest, so
            that rendered prompts have the public ids. The embedding tables then have the public number of rows.
        sentences: What shall be read in few tokens, beside sentences about robots.
    """
    pieces, merges = _learn(sentences)
    if edge:
        return _edge(pieces, merges, real_ids)
    return _qwen(pieces, merges, real_ids)


def _qwen(pieces: list[str], merges: tuple[tuple[str, str], ...], real_ids: bool) -> TinyTokenizer:
    base = _QWEN_BASE if real_ids else len(pieces)
    vocabulary = _place(pieces, base, first=0, pinned=_QWEN_PINNED if real_ids else {})
    specials = tuple(
        _Special(text, base + offset, text not in _QWEN_VISIBLE) for offset, text in enumerate(_QWEN_SPECIALS)
    )
    size = _QWEN_VOCABULARY if real_ids else _padded(base + len(specials))
    return TinyTokenizer(vocabulary, merges, specials, size, edge=False)


def _edge(pieces: list[str], merges: tuple[tuple[str, str], ...], real_ids: bool) -> TinyTokenizer:
    first = _EDGE_SPECIALS if real_ids else _EDGE_COMPACT_SPECIALS
    names = [_EDGE_NAMED.get(index, f'<SPECIAL_{index}>') for index in range(first)]
    size = _EDGE_VOCABULARY if real_ids else _padded(first + len(pieces))
    vocabulary = _place(pieces, size if real_ids else first + len(pieces), first=first, pinned={})
    specials = tuple(_Special(text, index, text not in _EDGE_VISIBLE) for index, text in enumerate(names))
    # Here the added tokens belong to the base vocabulary as well: that is what fixes their ids below the bytes.
    vocabulary = {special.text: special.index for special in specials} | vocabulary
    return TinyTokenizer(vocabulary, merges, specials, size, edge=True)


def _place(pieces: list[str], end: int, *, first: int, pinned: Mapping[str, int]) -> dict[str, int]:
    """Give `pieces` ids from `first` on, `pinned` ones their own; every id left over before `end` gets a filler."""
    taken = {index: piece for piece, index in pinned.items()}
    free = (index for index in range(first, end) if index not in taken)
    placed = {next(free): piece for piece in pieces if piece not in pinned} | taken
    return {placed.get(index, f'<filler_{index}>'): index for index in range(first, end)}


def _learn(sentences: tuple[str, ...]) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """Pieces in order of id (the 256 bytes, then merges) and the merges that build them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=_PIECES,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Repeated roles are merged first and whole: a turn opens with two tokens and a line end, as it does in public.
    tokenizer.train_from_iterator([*_ROLES * 100, *sentences * 10, *_SENTENCES], trainer)
    model = json.loads(tokenizer.to_str())['model']
    vocabulary: dict[str, int] = model['vocab']
    merges = tuple((left, right) for left, right in model['merges'])
    return sorted(vocabulary, key=vocabulary.__getitem__), merges


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(_SPLIT), behavior='isolated', invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _padded(count: int) -> int:
    return -(-count // _PADDING) * _PADDING


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + '\n'
