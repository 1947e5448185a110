"""How answers are chosen, told, ended and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import engine
from engine.cosmos3 import Cosmos3
from engine.errors import CheckpointError, InvalidInput
from engine.reasoner import Reasoner
from engine.reasoner_sampling import TokenChooser, candidates
from engine.reasoner_talk import ANSWERING, THINK, THINKING, Answer, Picture, Sampling, Video, system, user
from engine.reasoner_text import Transcript, split_thinking
from engine.runtime import Runtime
from engine.turns import Cancelled
from tests.engine.reasoner_world import Reference, choices, picture, video

QUESTION = [user(picture(96, 128, 1), 'What is on the table?')]


@pytest.fixture(scope='module')
def reasoner(tiny_checkpoint: Path) -> Reasoner:
    return engine.load(tiny_checkpoint).reasoner()


@pytest.fixture(scope='module')
def edge(tiny_edge_checkpoint: Path) -> Reasoner:
    return engine.load(tiny_edge_checkpoint).reasoner()


def saying(reasoner: Reasoner, words: str) -> Any:
    """Has the reasoner say these words, token by token, and end."""
    script = [*reasoner.parts.reader.encode(words), reasoner.parts.ends[0]]

    def allowed(written: Sequence[int]) -> torch.Tensor:
        mask = torch.zeros(reasoner.parts.transformer.config.vocab_size, dtype=torch.bool)
        mask[script[len(written)]] = True
        return mask

    return allowed


# How tokens are chosen.


@pytest.mark.parametrize(
    'settings', [ANSWERING, THINKING, Sampling(0.9, top_p=0.3), Sampling(1.7, top_k=5), Sampling(2.0)]
)
def test_the_tokens_that_may_be_drawn_are_those_of_transformers(settings: Sampling) -> None:
    scores = 3 * torch.randn(500, generator=torch.Generator().manual_seed(2))
    warpers = transformers.LogitsProcessorList([transformers.TemperatureLogitsWarper(settings.temperature)])
    if settings.top_k:
        warpers.append(transformers.TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(transformers.TopPLogitsWarper(settings.top_p))
    expected = torch.softmax(warpers(torch.zeros(1, 1, dtype=torch.long), scores[None])[0], dim=0)
    probabilities, tokens = candidates(scores, settings)
    found = torch.zeros(500).index_add(0, tokens, probabilities)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_repetition_is_penalised_as_transformers_does_it_prompt_included(
    tiny_checkpoint: Path, reasoner: Reasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with choices(monkeypatch) as seen:
        reasoner.generate(QUESTION, sampling=Sampling(repetition_penalty=1.3, max_tokens=32))
    tokens, _ = Reference(tiny_checkpoint).answer(QUESTION, 32, repetition_penalty=1.3)
    assert seen.tokens == tokens


def test_presence_is_penalised_once_and_not_for_the_prompt() -> None:
    chooser = TokenChooser(Sampling(presence_penalty=1.5), [0, 1], 4, torch.device('cpu'))
    scores = torch.tensor([5.0, 4.0, 3.4, 0.0])
    assert [chooser.choose(scores) for _ in range(4)] == [0, 1, 0, 0]
    # After 0 and 1 were written they stand at 3.5 and 2.5, however often.


def test_a_seed_gives_the_same_answer_again_and_another_seed_another(reasoner: Reasoner) -> None:
    settings = Sampling(temperature=1.0, top_p=0.95, max_tokens=24, seed=7)
    first, again, other = (
        reasoner.generate(QUESTION, sampling=chosen).text for chosen in (settings, settings, replace(settings, seed=8))
    )
    assert first == again
    assert first != other


def test_draws_have_the_frequencies_of_the_probabilities() -> None:
    scores = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    chooser = TokenChooser(Sampling(temperature=1.0, seed=3), [], 4, torch.device('cpu'))
    found = np.bincount([chooser.choose(scores) for _ in range(4000)], minlength=4) / 4000
    assert np.abs(found - [0.5, 0.3, 0.15, 0.05]).max() < 0.03


@pytest.mark.parametrize('settings', [Sampling(1e-45), Sampling(1e-300, top_p=0.9, top_k=20)])
def test_the_coldest_draw_is_that_of_the_most_probable_token(settings: Sampling) -> None:
    scores = torch.tensor([1.0, 40.0, 39.9, -50.0])
    assert TokenChooser(settings, [], 4, torch.device('cpu')).choose(scores) == 1


def test_only_allowed_tokens_are_written(reasoner: Reasoner) -> None:
    assert reasoner.generate(QUESTION, allowed=saying(reasoner, 'a blue plate')).text == 'a blue plate'


# How the answer is told.


def test_an_answer_is_told_in_whole_characters_as_it_comes(reasoner: Reasoner) -> None:
    words, told = 'Grün, 猫 and 🤖!', list[str]()
    answer = reasoner.generate(QUESTION, on_text=told.append, allowed=saying(reasoner, words))
    assert len(reasoner.parts.reader.encode('🤖')) > 1, 'this character has to come in pieces'
    assert answer.text == ''.join(told) == words
    assert '🤖' in ''.join(told)
    assert not any('\ufffd' in piece for piece in told)
    assert len(told) > 5


def test_bytes_that_never_become_a_character_are_told_in_the_end(reasoner: Reasoner) -> None:
    reader, told = reasoner.parts.reader, list[str]()
    transcript = Transcript(reader.decode, on_text=told.append)
    tokens = reader.encode('ok 🤖')[:-1]
    for token in tokens:
        transcript.add(token)
    assert ''.join(told) == 'ok '
    transcript.end()
    assert ''.join(told) == transcript.text == reader.decode(tokens)
    assert transcript.text.startswith('ok \ufffd')


@pytest.mark.parametrize(
    ('stop', 'expected'),
    [
        (['table'], 'put it on the'),
        (['\n\n', 'on the t'], 'put it'),
        (['tablet'], 'put it on the table'),
        (['table', 'it on'], 'put'),
        (['p'], ''),
    ],
)
def test_a_stop_text_ends_the_answer_and_is_never_told(reasoner: Reasoner, stop: list[str], expected: str) -> None:
    told: list[str] = []
    answer = reasoner.generate(
        QUESTION, stop=stop, on_text=told.append, allowed=saying(reasoner, 'put it on the table')
    )
    assert answer.text == expected
    assert ''.join(told).rstrip() == expected
    assert answer.finish == 'stop'


def test_the_limit_of_tokens_ends_an_answer(reasoner: Reasoner) -> None:
    answer = reasoner.generate(
        QUESTION, sampling=Sampling(max_tokens=3), allowed=saying(reasoner, 'put it on the table')
    )
    assert (answer.text, answer.finish, answer.tokens) == ('put it on', 'length', 3)


def test_control_tokens_are_no_text_and_end_the_answer_where_the_checkpoint_says_so(reasoner: Reasoner) -> None:
    answer = reasoner.generate(QUESTION, allowed=saying(reasoner, 'put<|quad_start|> it<|endoftext|> on'))
    assert (answer.text, answer.finish) == ('put it', 'stop')


def test_it_says_how_long_each_stage_took(reasoner: Reasoner) -> None:
    answer = reasoner.generate(QUESTION, sampling=Sampling(max_tokens=4))
    assert set(answer.seconds) == {'wait', 'vision', 'prefill', 'decode', 'total'}
    parts = sum(seconds for stage, seconds in answer.seconds.items() if stage != 'total')
    assert 0 < parts <= answer.seconds['total']
    assert answer.prompt_tokens == len(reasoner.parts.reader.read(QUESTION).ids)


# Thinking.


def test_thinking_and_answer_are_told_apart(reasoner: Reasoner) -> None:
    words = '<think>\nthe object is behind the cup\n</think>\n\nbehind'
    answer = reasoner.generate(QUESTION, thinking=True, allowed=saying(reasoner, words))
    assert (answer.thinking, answer.text) == ('the object is behind the cup', 'behind')


def test_where_the_template_opens_the_thinking_the_answer_begins_in_it(edge: Reasoner) -> None:
    words = 'the object is behind the cup\n</think>\nbehind'
    answer = edge.generate(QUESTION, thinking=True, allowed=saying(edge, words))
    assert (answer.thinking, answer.text) == ('the object is behind the cup', 'behind')
    unfinished = edge.generate(QUESTION, thinking=True, allowed=saying(edge, 'the object is'))
    assert (unfinished.thinking, unfinished.text) == ('the object is', '')
    assert edge.generate(QUESTION, allowed=saying(edge, 'the object is')).text == 'the object is'


def test_thinking_is_asked_for_in_the_words_of_the_prompt_guide(reasoner: Reasoner) -> None:
    def said(thinking: bool) -> str:
        return reasoner.parts.reader.decode(reasoner.parts.reader.read(QUESTION, thinking=thinking).ids)

    assert THINK in said(True)
    assert THINK not in said(False)


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        (' yes ', ('', 'yes')),
        ('<think>a</think>b', ('a', 'b')),
        ('a</think>b</think>c', ('a', 'b</think>c')),
        ('<think>a', ('a', '')),
    ],
)
def test_thinking_is_what_comes_before_its_end(text: str, expected: tuple[str, str]) -> None:
    assert split_thinking(text) == expected


# Choices.


@pytest.mark.parametrize('family', ['nano', 'edge'])
def test_probabilities_of_choices_are_those_of_transformers(family: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue('tiny_checkpoint' if family == 'nano' else 'tiny_edge_checkpoint')
    reasoner, reference = engine.load(root).reasoner(), Reference(root)
    texts = ['yes', 'no', 'a red cube', 'the blue plate']
    prompt = reference.inputs(QUESTION)
    logs = []
    for text in texts:
        tokens = reasoner.parts.reader.encode(text)
        ids = torch.cat([prompt['input_ids'], torch.tensor([tokens])], dim=1)
        more = {'attention_mask': torch.ones_like(ids), 'mm_token_type_ids': torch.zeros_like(ids)}
        more['mm_token_type_ids'][:, : prompt['input_ids'].shape[1]] = prompt['mm_token_type_ids']
        with torch.inference_mode():
            scores = reference.model(**{**prompt, 'input_ids': ids, **more}).logits[0].double().log_softmax(-1)
        behind = scores[-len(tokens) - 1 :]
        end = behind[-1, list(reasoner.parts.ends)].logsumexp(0)
        logs.append(sum(behind[n, token] for n, token in enumerate(tokens)) + end)
    expected = torch.softmax(torch.stack(logs), 0).tolist()
    found = reasoner.choose(QUESTION, texts)
    assert list(found.probabilities.values()) == pytest.approx(expected, rel=1e-3)
    assert found.text == texts[expected.index(max(expected))]
    assert sum(found.probabilities.values()) == pytest.approx(1)
    # Read once: what one choice leaves behind must not reach the next.
    assert reasoner.choose(QUESTION, texts[::-1]).probabilities == pytest.approx(found.probabilities, rel=1e-9)


@pytest.mark.parametrize('choices_given', [[], ['yes', 'yes'], ['yes', ''], ['yes<|im_end|>']])
def test_choices_that_are_none_are_refused(reasoner: Reasoner, choices_given: list[str]) -> None:
    with pytest.raises(InvalidInput, match='choices'):
        reasoner.choose(QUESTION, choices_given)


# What is given up, and what is refused.


def test_an_answer_can_be_given_up_between_tokens(reasoner: Reasoner) -> None:
    told: list[str] = []
    with pytest.raises(Cancelled, match='tokens of the answer'):
        reasoner.generate(QUESTION, on_text=told.append, cancelled=lambda: len(told) >= 3)
    assert len(told) == 3
    assert reasoner.runtime.turns.holder is None


def test_an_answer_can_be_given_up_while_the_conversation_is_read(reasoner: Reasoner) -> None:
    asked = iter([False] * 2)
    with pytest.raises(Cancelled, match='while the conversation was read'):
        reasoner.generate(QUESTION, cancelled=lambda: next(asked, True))
    with pytest.raises(Cancelled, match='while'):
        reasoner.choose(QUESTION, ['yes', 'no'], cancelled=lambda: True)


def test_what_is_too_long_is_refused_with_the_numbers_and_never_cut_off(reasoner: Reasoner) -> None:
    tight = Reasoner(reasoner.runtime, replace(reasoner.parts, limit=90))
    read = len(tight.parts.reader.read(QUESTION).ids)
    with pytest.raises(InvalidInput, match=f'{read} tokens read and up to {91 - read} written.*at most 90'):
        tight.generate(QUESTION, sampling=Sampling(max_tokens=91 - read))
    assert tight.generate(QUESTION, sampling=Sampling(max_tokens=90 - read), allowed=saying(tight, 'yes')).text == 'yes'
    with pytest.raises(InvalidInput, match='at most 90'):
        tight.choose(QUESTION, ['yes', 'no ' * 100])


@pytest.mark.parametrize(
    ('messages', 'expected'),
    [
        ([], 'turn of the user'),
        ([user('a'), system()], 'turn of the user'),
        ([user('say <|im_end|>')], r'spells out a control token, got <\|im_end\|>'),
        ([user('a \udcff cube')], 'holds half a character'),
        ([user(Picture(np.zeros((4, 900, 3), np.uint8)), 'a')], 'too narrow, got 900 x 4'),
        ([user(video(1, 64, 64, 5.0), 'a')], 'too short, got 1 frames'),
        ([user(Picture(np.zeros((4, 4), np.uint8)), 'a')], 'uint8 .H, W, 3.'),
        ([user(Video(np.zeros((4, 32, 32, 3), np.uint8), 0.0), 'a')], 'out of range'),
    ],
)
def test_malformed_conversations_are_refused(reasoner: Reasoner, messages: Any, expected: str) -> None:
    with pytest.raises(InvalidInput, match=expected):
        reasoner.generate(messages)


@pytest.mark.parametrize(
    'options',
    [{'sampling': Sampling(temperature=-1.0)}, {'sampling': Sampling(top_p=0.0)}, {'stop': ['']}, {'stop': 'ab'}],
)
def test_malformed_settings_are_refused(reasoner: Reasoner, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        reasoner.generate(QUESTION, **options)


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / 'copy'))


def without_head(root: Path) -> None:
    for shard in (root / 'transformer').glob('*.safetensors'):
        tensors = load_file(shard)
        tensors.pop('lm_head.weight', None)
        save_file(tensors, shard, metadata={'format': 'pt'})
    for index in (
        root / 'transformer' / 'diffusion_pytorch_model.safetensors.index.json',
        root / 'model.safetensors.index.json',
    ):
        document = json.loads(index.read_text())
        document['weight_map'].pop('lm_head.weight')
        index.write_text(json.dumps(document))


def test_a_checkpoint_that_lacks_parts_says_all_that_is_missing(copy: Path) -> None:
    without_head(copy)
    (copy / 'chat_template.jinja').unlink()
    with pytest.raises(InvalidInput) as refused:
        engine.load(copy).reasoner()
    assert [problem.where for problem in refused.value.problems] == ['lm_head.weight', 'chat_template.jinja']


def test_a_model_loaded_without_the_reasoner_or_from_compiled_parts_says_so(
    tiny_checkpoint: Path, reasoner: Reasoner
) -> None:
    checkpoint = engine.checkpoint.open_checkpoint(tiny_checkpoint)
    transformer = checkpoint.load_transformer('cpu', torch.float32, surfaces=('policy',))
    runtime = reasoner.runtime
    for backend, expected in (
        (type(runtime.backend)(transformer), 'surfaces: were loaded without the reasoner'),
        (type('Compiled', (), {'name': 'onnxruntime', 'device': torch.device('cpu')})(), 'compiled parts: do not hold'),
    ):
        with pytest.raises(InvalidInput, match=expected):
            Cosmos3(checkpoint, Runtime(backend, runtime.vae, runtime.tokenizer)).reasoner()


def test_without_a_vision_encoder_words_are_answered_and_pictures_refused(copy: Path, reasoner: Reasoner) -> None:
    shutil.rmtree(copy / 'vision_encoder')
    blind = engine.load(copy).reasoner()
    words = [user('What should the robot do next?')]
    settings = Sampling(max_tokens=8)
    assert blind.generate(words, sampling=settings).text == reasoner.generate(words, sampling=settings).text
    with pytest.raises(InvalidInput, match='no vision encoder'):
        blind.generate(QUESTION)


def test_a_damaged_vision_encoder_is_described_tensor_by_tensor(copy: Path) -> None:
    file = copy / 'vision_encoder' / 'model.safetensors'
    tensors = load_file(file)
    del tensors['merger.norm.weight']
    tensors['pos_embed.weight'] = tensors['pos_embed.weight'][:9].clone()
    save_file(tensors, file, metadata={'format': 'pt'})
    (copy / 'model.safetensors.index.json').unlink()  # it is optional, and would notice the first of them by itself
    with pytest.raises(CheckpointError) as refused:
        engine.load(copy).reasoner()
    found = {problem.where.partition(': ')[2]: problem.what for problem in refused.value.problems}
    assert found == {'merger.norm.weight': 'is missing', 'pos_embed.weight': 'has the wrong shape'}


def test_all_who_ask_get_the_same_reasoner(tiny_checkpoint: Path) -> None:
    model = engine.load(tiny_checkpoint)
    assert model.reasoner() is model.reasoner()


def test_an_answer_that_nobody_listens_to_is_the_one_that_is_told(reasoner: Reasoner) -> None:
    told: list[str] = []
    answers: list[Answer] = [
        reasoner.generate(QUESTION, sampling=Sampling(max_tokens=40), on_text=listener)
        for listener in (None, told.append)
    ]
    assert answers[0].text == answers[1].text == ''.join(told).strip()
