"""The reasoner says what transformers' model says, from the same directory, whatever it is shown."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import engine
from engine.network.rope import reading_positions, text_positions
from engine.network.understanding import GROWTH, Memory, Writer, read, score
from engine.reasoner import Reasoner
from engine.reasoner_guesses import GUESSES
from engine.reasoner_talk import Message, Picture, Sampling, Video, assistant, system, user
from tests.engine.reasoner_world import Choices, Reference, choices, picture, video

TOKENS = 64
CONVERSATIONS: dict[str, list[Message]] = {
    'words': [user('Describe what the robot should do next')],
    'a picture': [user(picture(200, 300, 1), 'What is on the table?')],
    'pictures': [user(picture(260, 190, 2), picture(120, 500, 3), 'Which of them shows a bowl?')],
    'a video': [user(video(33, 96, 160, 10.0), 'What happens?')],
    'all of it, in turns': [
        system(),
        user(picture(64, 64, 4), video(24, 128, 96, 12.0, 9), 'What is this?'),
        assistant('A robot arm.'),
        user(video(17, 70, 70, 8.0, 40), picture(300, 200, 5), 'And now?'),
    ],
}


@pytest.fixture(scope='session', params=['nano', 'edge'])
def root(request: pytest.FixtureRequest) -> Path:
    """A checkpoint of each family."""
    return request.getfixturevalue('tiny_checkpoint' if request.param == 'nano' else 'tiny_edge_checkpoint')


@pytest.fixture(scope='session')
def reference(root: Path) -> Reference:
    return Reference(root)


@pytest.fixture(scope='session')
def reasoner(root: Path) -> Reasoner:
    return engine.load(root).reasoner()


def answer(
    reasoner: Reasoner, messages: list[Message], monkeypatch: pytest.MonkeyPatch, tokens: int = TOKENS
) -> tuple[str, Choices]:
    with choices(monkeypatch) as seen:
        said = reasoner.generate(messages, sampling=Sampling(max_tokens=tokens))
    assert said.tokens == len(seen.tokens)
    return said.text, seen


def same_as_transformers(
    reasoner: Reasoner, reference: Reference, messages: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, seen = answer(reasoner, messages, monkeypatch)
    tokens, scores = reference.answer(messages, TOKENS)
    assert seen.tokens == tokens
    torch.testing.assert_close(torch.stack(seen.scores), scores, rtol=0, atol=1e-4)
    # That is worth something only if the scores say something, and not the same at every place.
    assert scores.std() > 0.5
    assert (scores[1:] - scores[:-1]).abs().amax(1).min() > 0.01


@pytest.mark.parametrize('shown', CONVERSATIONS)
def test_scores_and_tokens_are_those_of_transformers_over_a_long_answer(
    reasoner: Reasoner, reference: Reference, monkeypatch: pytest.MonkeyPatch, shown: str
) -> None:
    same_as_transformers(reasoner, reference, CONVERSATIONS[shown], monkeypatch)


@pytest.mark.parametrize('file', ['robot_153.jpg', 'robot_planning.png', 'robotics_next_action.mp4'])
def test_real_pictures_and_videos_are_read_as_transformers_reads_them(
    reasoner: Reasoner, reference: Reference, monkeypatch: pytest.MonkeyPatch, shared_data: Path, file: str
) -> None:
    path = shared_data / 'reasoner' / file
    if not path.exists():
        pytest.skip(f'no {file} beside this checkout')
    same_as_transformers(reasoner, reference, [user(real(path), 'What should the robot do next?')], monkeypatch)


def real(path: Path) -> Picture | Video:
    if path.suffix == '.mp4':
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format='rgb24')[::2, ::2] for frame in islice(container.decode(video=0), 90)]
            return Video(np.stack(frames), float(container.streams.video[0].average_rate))
    from PIL import Image

    with Image.open(path) as image:
        image.thumbnail((640, 640))
        return Picture(np.asarray(image.convert('RGB')))


@pytest.mark.parametrize('shown', ['a picture', 'a video'])
def test_what_is_shown_changes_the_answer(reasoner: Reasoner, monkeypatch: pytest.MonkeyPatch, shown: str) -> None:
    part, question = CONVERSATIONS[shown][0].parts
    assert not isinstance(part, str)
    pixels = part.rgb if isinstance(part, Picture) else part.frames
    dark = Picture(pixels // 4) if isinstance(part, Picture) else Video(pixels // 4, part.fps)
    text, seen = answer(reasoner, [user(part, question)], monkeypatch, 8)
    other, seen_dark = answer(reasoner, [user(dark, question)], monkeypatch, 8)
    assert text != other
    assert (seen.scores[0] - seen_dark.scores[0]).abs().max() > 0.01


@pytest.mark.parametrize('shown', CONVERSATIONS)
def test_tokens_and_positions_are_those_of_transformers(reasoner: Reasoner, reference: Reference, shown: str) -> None:
    reading = reasoner.parts.reader.read(CONVERSATIONS[shown])
    inputs = reference.inputs(CONVERSATIONS[shown])
    ids = inputs['input_ids']
    assert reading.ids == ids[0].tolist()
    grids = [inputs.get('image_grid_thw'), inputs.get('video_grid_thw')]
    expected, ahead = reference.model.model.get_rope_index(ids, inputs['mm_token_type_ids'], *grids)
    assert torch.equal(reading.positions, expected[:, 0].float())
    assert int(reading.positions.max()) + 1 - len(reading.ids) == int(ahead)


def test_words_after_a_picture_go_on_after_its_longer_edge() -> None:
    found = reading_positions([0, 0, 1, 1, 1, 1, 1, 1, 0], iter([(3, 2)]))
    assert found.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 3, 3, 4, 4, 5],
        [0, 1, 2, 3, 2, 3, 2, 3, 5],
    ]


def test_token_by_token_and_piece_by_piece_is_read_what_is_read_at_once(reasoner: Reasoner) -> None:
    transformer = reasoner.parts.transformer
    ids = torch.randint(40, 600, (2 * GROWTH + 20,), generator=torch.Generator().manual_seed(1))
    positions = text_positions(len(ids))
    with torch.inference_mode():
        at_once = score(transformer, read(transformer, transformer.embed(ids), positions, Memory(transformer)))
        memory, begin = Memory(transformer), GROWTH - 8
        cuts = [(0, 7), (7, 100), (100, begin)]
        pieces = [read(transformer, transformer.embed(ids[a:b]), positions[:, a:b], memory) for a, b in cuts]
        writer = Writer(transformer, memory, begin)
        written = [writer([token])[0] for token in ids[begin:].tolist()]
    assert memory.room == 3 * GROWTH
    found = torch.cat([*(score(transformer, piece) for piece in pieces), torch.stack(written)])
    torch.testing.assert_close(found, at_once, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)  # the compiler is slow where the machine is busy
def test_compiled_layers_write_what_others_write_also_when_the_memory_grows(model: engine.Cosmos3) -> None:
    reasoner = model.reasoner()
    transformer, begin = reasoner.parts.transformer, GROWTH - 10
    ids = torch.randint(40, 600, (GROWTH + 10,), generator=torch.Generator().manual_seed(1))
    found = []
    for parts in (reasoner.parts, reasoner.compiled().parts):
        with torch.inference_mode():
            memory = Memory(transformer, begin)
            read(transformer, transformer.embed(ids[:begin]), text_positions(begin), memory)
            writer = Writer(transformer, memory, begin, read_layer=parts.read_layer)
            tokens = ids[begin:].tolist()
            some, together = tokens[: -1 - GUESSES], tokens[-1 - GUESSES :]
            found.append(torch.cat([*(writer([token]) for token in some), writer(together)]))
    assert memory.room == 2 * GROWTH
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_reasoner_that_has_warmed_up_compiles_no_more(model: engine.Cosmos3) -> None:
    from torch._dynamo.utils import counters

    compiled = model.reasoner().compiled()
    compiled.warm_up()
    graphs = counters['stats']['unique_graphs']
    assert graphs > 0
    said = [
        compiled.generate([user(words)], sampling=Sampling(max_tokens=2 * GROWTH))
        for words in ('What is next?', 'red cube ' * 100)
    ]
    assert said[1].passes < said[1].tokens, 'guesses have been read along'
    assert said[1].tokens > GROWTH, 'the memory has grown'
    assert counters['stats']['unique_graphs'] == graphs


def test_in_half_precision_the_scores_are_near_those_of_transformers(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = CONVERSATIONS['a picture']
    half = engine.load(root, dtype='bfloat16').reasoner()
    _, seen = answer(half, messages, monkeypatch, 1)
    _, exact = Reference(root).answer(messages, 1)
    _, theirs = Reference(root, torch.bfloat16).answer(messages, 1)
    ours = (seen.scores[0].float() - exact[0]).abs().mean()
    assert ours < 1.5 * (theirs[0].float() - exact[0]).abs().mean()


def test_with_the_tower_in_host_memory_the_answer_is_the_same(
    root: Path, reasoner: Reasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    offloaded = engine.load(root, offload=True).reasoner()
    text, seen = answer(offloaded, CONVERSATIONS['pictures'], monkeypatch, 16)
    expected, seen_here = answer(reasoner, CONVERSATIONS['pictures'], monkeypatch, 16)
    assert text == expected
    assert all(torch.equal(a, b) for a, b in zip(seen.scores, seen_here.scores, strict=True))
