"""From captions to prompts, on the tokenizers that tiny checkpoints carry."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.errors import CheckpointError, ObservationError
from engine.observation.tokenizer import PromptTokenizer
from engine.tiny_tokenizer import build_tokenizer

QWEN_END, EDGE_END = '<|im_end|>\n<|im_start|>assistant\n', '<|im_end|>\n<|im_start|>assistant\n<think></think>'
START = '<|vision_start|>'


def write(folder: Path, *, edge: bool, real_ids: bool = False) -> Path:
    folder.mkdir()
    for name, text in build_tokenizer(edge=edge, real_ids=real_ids).files().items():
        (folder / name).write_text(text, encoding='utf-8')
    return folder


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PromptTokenizer]:
    base = tmp_path_factory.mktemp('tokenizers')
    made = {
        family: PromptTokenizer.from_directory(write(base / family, edge=family == 'edge'), family)
        for family in ('nano', 'edge')
    }
    return made.__getitem__


@pytest.mark.parametrize(('family', 'end'), [('nano', QWEN_END), ('edge', EDGE_END)])
def test_a_prompt_is_one_user_turn_then_the_end_of_turn_and_the_start_of_generation(tokenizer, family, end):
    prompt = tokenizer(family)
    text = prompt.tokenizer.decode(prompt.encode('pick up the cup'))
    assert text == f'<|im_start|>user\npick up the cup{end}<|im_end|>{START}'


def test_a_system_prompt_comes_first_and_only_when_asked_for(tokenizer):
    prompt = tokenizer('nano')
    text = prompt.tokenizer.decode(prompt.encode('go', system_prompt='Be careful.'))
    assert text == f'<|im_start|>system\nBe careful.<|im_end|>\n<|im_start|>user\ngo{QWEN_END}<|im_end|>{START}'


def test_an_empty_caption_takes_ten_tokens_with_the_qwen_template(tokenizer):
    ids = tokenizer('nano').encode('')
    assert len(ids) == 10
    assert ids[-2:] == [tokenizer('nano').eos_id, tokenizer('nano').start_id]
    assert ids[3] == ids[-2]  # the turn already ended once: the second end of turn is the one that training appended


def test_no_token_for_the_beginning_of_text_is_put_in_front(tokenizer):
    assert tokenizer('edge').tokenizer.bos_token_id == 1
    assert tokenizer('edge').encode('')[0] == 10


def test_edge_has_its_published_ids_even_in_a_small_vocabulary(tokenizer):
    prompt = tokenizer('edge')
    assert (prompt.eos_id, prompt.start_id) == (11, 20)


@pytest.mark.parametrize('family', ['nano', 'edge'])
@pytest.mark.parametrize('text', ['naïve 机器人 🤖', 'a\n\tb  c', "it's 12345", '{"H": 544, "W": 736}', ' '])
def test_any_text_survives_the_round_trip(tokenizer, family, text):
    inner = tokenizer(family).tokenizer
    assert inner.decode(inner.encode(text, add_special_tokens=False)) == text


def test_rendering_and_encoding_apart_equals_the_libraries_own_combined_call(tokenizer):
    prompt = tokenizer('nano')
    combined = prompt.tokenizer.apply_chat_template(
        [{'role': 'user', 'content': 'open the drawer'}], tokenize=True, add_generation_prompt=True, return_dict=True
    )
    assert prompt.encode('open the drawer')[:-2] == combined['input_ids']


def test_a_prompt_of_exactly_the_limit_is_accepted_and_one_token_more_is_not(tokenizer):
    inner = tokenizer('nano')
    length = len(inner.encode('1' * 50))
    assert length == 60
    exact = PromptTokenizer(inner.tokenizer, 'nano', inner.eos_id, inner.start_id, limit=length)
    assert len(exact.encode('1' * 50)) == length
    with pytest.raises(ObservationError, match=r'61 tokens \(51 characters\), allowed: at most 60 tokens'):
        exact.encode('1' * 51)


def test_an_instruction_of_twenty_thousand_characters_is_refused_not_cut(tokenizer):
    with pytest.raises(
        ObservationError, match=r'instruction: is too long, got \d+ tokens \(20000 characters\)'
    ) as caught:
        tokenizer('nano').encode('x y z ' * 3333 + 'ab')
    assert 'at most 4096 tokens' in str(caught.value)


def test_many_threads_encode_the_same_as_one(tokenizer):
    prompt = tokenizer('nano')
    captions = [f'move block {n} ' * (n % 7 + 1) for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(prompt.encode, captions)) == [prompt.encode(caption) for caption in captions]


@pytest.mark.parametrize(('family', 'expected'), [('nano', (151645, 151652)), ('edge', (11, 20))])
def test_ids_that_the_tokenizer_does_not_name_are_those_published_for_the_family(tmp_path, family, expected):
    folder = strip_specials(write(tmp_path / 'bare', edge=False))
    prompt = PromptTokenizer.from_directory(folder, family)
    assert (prompt.eos_id, prompt.start_id) == expected


def test_the_root_configuration_is_asked_for_the_start_token_before_the_family(tmp_path):
    folder = strip_specials(write(tmp_path / 'bare', edge=False))
    assert PromptTokenizer.from_directory(folder, 'nano', {'vision_start_token_id': 42}).start_id == 42


def strip_specials(folder: Path) -> Path:
    """Take the added tokens, and with them all roles, out of a tokenizer."""
    tokenizer = json.loads((folder / 'tokenizer.json').read_text(encoding='utf-8'))
    (folder / 'tokenizer.json').write_text(json.dumps({**tokenizer, 'added_tokens': []}), encoding='utf-8')
    (folder / 'tokenizer_config.json').write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / 'special_tokens_map.json').write_text('{}')
    return folder


def test_a_damaged_tokenizer_is_named(tmp_path):
    folder = write(tmp_path / 'damaged', edge=False)
    (folder / 'tokenizer.json').write_text('{"model": 7}')
    with pytest.raises(CheckpointError, match=r'damaged: cannot be read as a tokenizer'):
        PromptTokenizer.from_directory(folder, 'nano')


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path):
    folder = write(tmp_path / 'mute', edge=False)
    (folder / 'chat_template.jinja').unlink()
    with pytest.raises(CheckpointError, match=r'has no chat template.*chat_template\.jinja'):
        PromptTokenizer.from_directory(folder, 'nano')


def test_with_real_ids_the_empty_prompt_is_the_public_one(tmp_path):
    folder = write(tmp_path / 'real', edge=False, real_ids=True)
    ids = PromptTokenizer.from_directory(folder, 'nano').encode('')
    assert ids == [151644, 872, 198, 151645, 198, 151644, 77091, 198, 151645, 151652]


@pytest.mark.parametrize(('edge', 'size'), [(False, 151936), (True, 131072)])
def test_with_real_ids_every_public_id_is_a_token(edge, size):
    built = build_tokenizer(edge=edge, real_ids=True)
    taken = sorted({*built.vocabulary.values(), *(special.index for special in built.specials)})
    assert built.vocab_size == size
    assert taken == list(range(131072 if edge else 151669))


@pytest.mark.parametrize('edge', [False, True])
def test_two_builds_of_the_vocabulary_are_identical(edge):
    assert build_tokenizer(edge=edge, real_ids=False).files() == build_tokenizer(edge=edge, real_ids=False).files()
