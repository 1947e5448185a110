"""A reasoner behind an endpoint: what is sent, what is made of the answer, and every way in which none comes."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidInput, TalkerError
from engine.reasoner_remote import RemoteTalker
from engine.reasoner_remote_body import sampled
from engine.reasoner_remote_choice import Contradictory, Place, Unresolved, probabilities, read_places
from engine.reasoner_talk import THINK, THINKING, Message, Picture, Sampling, Video, assistant, system, user
from engine.turns import Cancelled
from tests.openai_server import Drop, Hang, OpenAIServer, Raw, Reply, Request, Says, Status, choosing, in_turn

ASK = [user('What is on the table?')]
GRADIENT = np.stack([*np.meshgrid(np.arange(48), np.arange(32)), np.full((32, 48), 99)], axis=-1).astype(np.uint8)


def talk(server: OpenAIServer, **options) -> RemoteTalker:
    return RemoteTalker(server.url, 'tiny', **options)


def failure(says: Says, **options) -> str:
    with OpenAIServer(says) as server, pytest.raises(TalkerError) as caught:
        talk(server, **options).generate(ASK)
    assert str(caught.value).startswith(f'{server.url}/chat/completions: ')
    return str(caught.value)


# What comes back


@pytest.mark.parametrize('stream', [True, False])
def test_an_answer_has_its_words_its_lengths_and_its_times(stream: bool) -> None:
    pieces: list[str] = []
    with OpenAIServer('a red cube') as server:
        answer = talk(server, stream=stream).generate(ASK, on_text=pieces.append)
    assert (answer.text, answer.thinking, answer.finish) == ('a red cube', '', 'stop')
    assert (answer.prompt_tokens, answer.tokens) == (len('What is on the table?'), 3)
    assert 0 <= answer.seconds['first'] <= answer.seconds['total']
    assert pieces == (['a', ' red', ' cube'] if stream else ['a red cube'])


@pytest.mark.parametrize('stream', [True, False])
@pytest.mark.parametrize(
    'reply',
    [
        Reply('<think>\nIt is red.\n</think>\n\nyes'),
        Reply('It is red.\n</think>\n\nyes'),
        Reply('yes', reasoning='It is red.'),
    ],
)
def test_thinking_is_kept_apart_however_the_server_sends_it(reply: Reply, stream: bool) -> None:
    heard: list[str] = []
    with OpenAIServer(reply) as server:
        answer = talk(server, stream=stream).generate(ASK, thinking=True, on_text=heard.append)
    assert (answer.thinking, answer.text) == ('It is red.', 'yes')
    assert 'It is red.' in ''.join(heard)
    assert server.requests[0].text == f'What is on the table?\n{THINK}'


def test_thinking_that_never_ends_is_no_answer() -> None:
    with OpenAIServer('<think>It may be that') as server:
        answer = talk(server).generate(ASK, sampling=Sampling(max_tokens=5))
    assert (answer.text, answer.thinking, answer.finish) == ('', 'It may', 'length')


def test_words_are_told_while_later_ones_are_still_to_come() -> None:
    """The server waits for the client to have heard the first word before it says the second."""
    heard = threading.Event()

    def script(request: Request) -> Says:
        return Reply('first second', pause_s=0.0) if heard.is_set() else Hang('first')

    with OpenAIServer(script) as server, pytest.raises(Cancelled):
        talk(server).generate(ASK, on_text=lambda text: heard.set(), cancelled=heard.is_set)
    assert heard.is_set()


def test_letters_of_several_bytes_may_be_cut_anywhere_by_the_network() -> None:
    event = {'choices': [{'delta': {'content': 'grüße 🦾'}, 'finish_reason': 'stop'}]}
    lines = f': a comment\r\nevent: x\r\ndata: {json.dumps(event, ensure_ascii=False)}\r\n\r\ndata: [DONE]\r\n\r\n'
    with OpenAIServer(Raw(lines.encode(), 'text/event-stream')) as server:
        assert talk(server).generate(ASK).text == 'grüße 🦾'


# What is sent


def test_everything_that_decides_the_next_token_is_sent() -> None:
    talks = [system('Be brief.'), user('Hello'), assistant('Hi'), user('Where?')]
    with OpenAIServer('here. And') as server:
        answer = talk(server, api_key='secret').generate(talks, sampling=THINKING, stop=['.'])
        talk(server, dialect='openai', stream=False).generate(ASK)
    sent, plain = (dict(request.body) for request in server.requests)
    assert [message['role'] for message in sent.pop('messages')] == ['system', 'user', 'assistant', 'user']
    assert sent == {
        'model': 'tiny',
        'temperature': 0.6,
        'top_p': 0.95,
        'top_k': 20,
        'repetition_penalty': 1.0,
        'presence_penalty': 0.0,
        'max_tokens': 4096,
        'seed': 0,
        'stop': ['.'],
        'stream': True,
        'stream_options': {'include_usage': True},
    }
    assert answer.text == 'here'
    assert server.requests[0].headers['authorization'] == 'Bearer secret'
    assert not {'top_k', 'repetition_penalty', 'stream'} & set(plain)


@pytest.mark.parametrize('form', ['png', 'jpeg'])
def test_pictures_travel_before_the_words_and_keep_their_colours(form: str) -> None:
    with OpenAIServer() as server:
        talk(server, pictures=form).generate([user(Picture(GRADIENT), 'What is it?')])
    request = server.requests[0]
    kinds = [part['type'] for part in request.body['messages'][0]['content']]
    assert kinds == ['image_url', 'text']
    found = cv2.cvtColor(cv2.imdecode(np.frombuffer(request.media()[0], np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.abs(found.astype(int) - GRADIENT).max() <= (0 if form == 'png' else 8)


def clip(frames: int, fps: float, sample_fps: float | None) -> Video:
    grey = np.linspace(0, 240, frames).astype(np.uint8)
    return Video(np.broadcast_to(grey[:, None, None, None], (frames, 31, 48, 3)).copy(), fps, sample_fps)


def test_a_video_travels_as_frames_with_their_times() -> None:
    with OpenAIServer() as server:
        talk(server).generate([user(clip(31, 10.0, 2.0), 'What happens?')])
    request = server.requests[0]
    assert request.text.splitlines() == [f'<{second:.1f} seconds>' for second in (0, 0.6, 1.2, 1.8, 2.4, 3)] + [
        'What happens?'
    ]
    greys = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[0, 0, 0] for data in request.media()]
    assert greys == [0, 48, 96, 144, 192, 240]


def test_a_video_travels_as_a_file_that_holds_what_is_to_be_seen() -> None:
    with OpenAIServer() as server:
        talk(server, videos='mp4').generate([user(clip(40, 20.0, 4.0), 'What happens?')])
    request = server.requests[0]
    assert request.body['mm_processor_kwargs'] == {'fps': 4.0, 'do_sample_frames': True}
    with av.open(io.BytesIO(request.media('video_url')[0])) as container:
        assert container.streams.video[0].average_rate == 4
        frames = [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(32, 48, 3)] * 8
    assert [frame.mean() for frame in frames] == pytest.approx(np.linspace(0, 240, 8), abs=6)


@settings(deadline=None)
@given(st.integers(1, 2000), st.floats(1, 120), st.none() | st.floats(0.1, 30))
def test_frames_are_spread_from_the_first_to_the_last(count: int, fps: float, sample_fps: float | None) -> None:
    indices, rate = sampled(Video(np.broadcast_to(np.zeros(1, np.uint8), (count, 1, 1, 3)), fps, sample_fps))
    assert indices[0] == 0
    assert len(indices) == 1 or indices[-1] == count - 1
    assert (np.diff(indices) >= 1).all()
    assert rate == pytest.approx(len(indices) / count * fps)
    assert sample_fps is None or len(indices) <= 768


@pytest.mark.parametrize(
    ('messages', 'words'),
    [
        ([], 'messages: do not end with a turn of the user'),
        ([user('a'), assistant('b')], 'messages: do not end with a turn of the user, got assistant'),
        ([user('a'), system('b'), user('c')], 'messages[1]: is of the system, but not the first'),
        ([user(' ')], 'messages[0]: says nothing'),
        ([Message('assistant', (Picture(GRADIENT),)), user('a')], 'messages[0].parts[0]: is no text'),
        ([user(Picture(GRADIENT[0]), 'a')], 'messages[0].parts[0]: has no such pixels, got uint8 (48, 3)'),
        ([user(Video(GRADIENT[None], 0.0), 'a')], 'messages[0].parts[0].fps: is out of range'),
        ([user(Video(GRADIENT[None], 5.0, -1.0), 'a')], 'messages[0].parts[0].sample_fps: is out of range'),
    ],
)
def test_a_conversation_that_is_none_is_refused_before_anything_is_sent(messages: list[Message], words: str) -> None:
    with OpenAIServer() as server:
        for ask in (
            lambda: talk(server).generate(messages),
            lambda: talk(server).choose(messages, ['yes', 'no']),
        ):
            with pytest.raises(InvalidInput) as caught:
                ask()
            assert words in str(caught.value)
    assert server.requests == []


@pytest.mark.parametrize('stop', ['ab', ['a', '']])
def test_what_cannot_end_an_answer_is_refused_before_anything_is_sent(stop: str | list[str]) -> None:
    talker = RemoteTalker('http://127.0.0.1:1/v1', 'tiny')
    with pytest.raises(InvalidInput, match='stop'):
        talker.generate(ASK, stop=stop)


def test_faults_of_sampling_are_refused_all_at_once() -> None:
    odd = Sampling(temperature=-1.0, top_p=float('nan'), top_k=5, repetition_penalty=1.1, max_tokens=0)
    talker = RemoteTalker('http://127.0.0.1:1/v1', 'tiny', dialect='openai')
    with pytest.raises(InvalidInput) as caught:
        talker.generate(ASK, sampling=odd)
    wheres = [problem.where for problem in caught.value.problems]
    assert wheres == ['temperature', 'top_p', 'max_tokens', 'top_k', 'repetition_penalty']


# No answer


@pytest.mark.parametrize(
    ('says', 'words'),
    [
        (
            Status(500, 'CUDA out of memory'),
            "answered 500 Internal Server Error: CUDA out of memory -> see the server's",
        ),
        (Status(400, body=b'{"detail": "top_k is unknown"}'), 'answered 400 Bad Request: top_k is unknown'),
        (
            Status(404, body=b'<html>nothing\x1b[2J here</html>'),
            'answered 404 Not Found: <html>nothing [2J here</html>',
        ),
        (Status(302, headers={'Location': 'http://elsewhere/'}), 'answered 302 Found'),
        (Raw(b'{"choices": ['), 'broke off'),
        (Raw(b'data: {"choices": [}\n\n', 'text/event-stream'), 'sent an event that is no JSON'),
        (Raw(b'data: \xff\n\n', 'text/event-stream'), 'sent an event that is no UTF-8'),
        (Raw(b'data: {"error": {"message": "too long"}}\n\n', 'text/event-stream'), "sent no answer but 'too long'"),
        (Raw(b'data: {"choices": [{"delta": {"content": 5}}]}\n\n', 'text/event-stream'), 'sent int in place of words'),
        (Raw(b'data: {"choices": [{"text": "a"}]}\n\n', 'text/event-stream'), 'sent an answer without its delta'),
        (Raw(b'data: [DONE]\n\n', 'text/event-stream'), 'sent an empty answer'),
        (Reply('a', finish='content_filter'), "ended the answer for another reason than its end: 'content_filter'"),
        (Drop('one two'), 'broke the connection'),
        (Drop(None), 'broke the connection'),
    ],
)
def test_whatever_is_no_answer_is_told_with_where_what_and_remedy(says: Says, words: str) -> None:
    text = failure(says)
    assert words in text or (words == 'broke off' and 'empty answer' in text)
    assert ' -> ' in text


@pytest.mark.parametrize(
    ('says', 'words'),
    [
        (Raw(b'{"choices": ['), 'sent no JSON but'),
        (Raw(b'[' * 100_000), 'sent no JSON but'),
        (Raw(b'{"choices": []}'), 'sent an answer without its message'),
        (Raw(b'[]'), "sent no answer but '[]'"),
        (Drop('one two'), 'broke the connection'),
    ],
)
def test_the_same_holds_without_a_stream(says: Says, words: str) -> None:
    assert words in failure(says, stream=False)


def test_a_server_that_is_not_there_is_told() -> None:
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{unused.getsockname()[1]}/v1'
        with pytest.raises(TalkerError, match=r'cannot be reached .* -> check the url; is the server running\?'):
            RemoteTalker(url, 'tiny').generate(ASK)


def test_a_server_without_the_encryption_that_was_asked_for_gets_nothing() -> None:
    with OpenAIServer() as server, pytest.raises(TalkerError, match='cannot be reached'):
        RemoteTalker(server.url.replace('http:', 'https:'), 'tiny', api_key='sk-secret-1').generate(ASK)
    assert server.requests == []


def test_a_server_that_takes_too_long_is_given_up() -> None:
    assert 'was not done within 0.2 s -> ask for fewer tokens' in failure(Hang(), timeout_s=0.2)


def test_words_that_trickle_in_for_ever_are_given_up_in_time_too() -> None:
    with OpenAIServer(Reply('word ' * 500, pause_s=0.02)) as server, pytest.raises(TalkerError, match=r'within 0\.3 s'):
        talk(server, timeout_s=0.3).generate(ASK)


def test_an_answer_beyond_all_measure_is_given_up() -> None:
    for stream in (True, False):
        assert 'sent more than 5000 bytes' in failure('word ' * 2000, max_bytes=5000, stream=stream)


def test_a_connection_that_is_lost_before_the_first_byte_is_tried_once_more_and_not_after_it() -> None:
    with OpenAIServer(in_turn(Drop(None), 'here')) as server:
        assert talk(server).generate(ASK).text == 'here'
    with OpenAIServer(in_turn(Drop(None), Drop(None), 'here')) as server, pytest.raises(TalkerError):
        talk(server).generate(ASK)
    assert len(server.requests) == 2
    with OpenAIServer(in_turn(Drop('he'), 'here')) as server, pytest.raises(TalkerError):
        talk(server).generate(ASK)
    assert len(server.requests) == 1


@pytest.mark.parametrize('words', ['', 'one two'])
def test_giving_up_closes_the_connection_whether_or_not_words_have_come(words: str) -> None:
    with OpenAIServer(Hang(words)) as server:
        heard: list[str] = []

        def cancelled() -> bool:
            return bool(server.requests) and len(heard) == len(words.split())

        with pytest.raises(Cancelled):
            talk(server).generate(ASK, cancelled=cancelled, on_text=heard.append)
        assert server.wait_until(lambda server: server.abandoned == 1)


def test_what_was_given_up_beforehand_is_not_sent() -> None:
    with OpenAIServer() as server, pytest.raises(Cancelled):
        talk(server).generate(ASK, cancelled=lambda: True)
    assert server.requests == []


# Secrets


@pytest.mark.parametrize('says', [Status(401, 'Incorrect key sk-secret-1'), Raw(b'sk-secret-1'), Drop(None)])
def test_no_error_shows_the_key(says: Says) -> None:
    for stream in (True, False):
        assert 'sk-secret-1' not in failure(says, api_key='sk-secret-1', stream=stream)


def test_a_key_is_presented_and_never_shown() -> None:
    with OpenAIServer('in', api_key='sk-secret-1') as server:
        talker = talk(server, api_key='sk-secret-1')
        assert talker.generate(ASK).text == 'in'
        with pytest.raises(TalkerError, match=r'answered 401 Unauthorized.* -> check the API key'):
            talk(server).generate(ASK)
    assert 'secret' not in repr(talker)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'url': 'localhost:8000'}, "url: is no address of a server, got 'localhost:8000'"),
        ({'url': 'ftp://host/v1'}, 'url: is no address of a server'),
        ({'url': 'http://host:99999/v1'}, 'url: is no address of a server'),
        ({'url': 'http://me:hidden@host:port/v1'}, 'url: is malformed'),
        ({'url': 'http://me:hidden@host/v1'}, 'url: holds more than an address'),
        ({'url': 'http://host/v1?key=hidden'}, 'url: holds more than an address'),
        ({'url': 'http://host/v1/chat/completions'}, 'url: names the method, too'),
        ({'model': ' '}, 'model: is empty'),
        ({'api_key': 'hidden\n'}, 'api_key: is no key'),
        ({'timeout_s': 0.0}, 'timeout_s: is out of range'),
        ({'connect_timeout_s': float('inf')}, 'connect_timeout_s: is out of range'),
        ({'max_bytes': 0}, 'max_bytes: is out of range'),
        ({'pictures': 'gif'}, "pictures: is unknown, got 'gif', allowed: png or jpeg"),
        ({'videos': 'gif'}, "videos: is unknown, got 'gif', allowed: frames or mp4"),
        ({'dialect': 'nim'}, "dialect: is unknown, got 'nim', allowed: vllm or openai"),
    ],
)
def test_an_address_or_a_setting_that_cannot_be_is_refused_at_once(options: dict, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        RemoteTalker(**{'url': 'http://host/v1', 'model': 'tiny', **options})
    assert words in str(caught.value)
    assert 'hidden' not in str(caught.value)


# Choices


def test_a_choice_has_the_probabilities_that_the_server_lists() -> None:
    with OpenAIServer(choosing(yes=0.6, no=0.2, maybe=0.1)) as server:
        choice = talk(server).choose(ASK, ['no', 'yes'])
    assert choice.text == 'yes'
    assert choice.probabilities == pytest.approx({'no': 0.25, 'yes': 0.75})
    assert list(choice.probabilities) == ['no', 'yes']
    body = server.requests[0].body
    assert (body['logprobs'], body['top_logprobs'], body['temperature']) == (True, 20, 0)
    assert not {'structured_outputs', 'guided_choice', 'stream'} & set(body)


def confined_only(name: str) -> Callable[[Request], Says]:
    """A server whose model rambles unless it is confined to choices, by this field and no other."""

    def script(request: Request) -> Says:
        if name in request.body:
            return choosing(left=0.3, right=0.1)
        unknown = {'structured_outputs', 'guided_choice'} & set(request.body)
        return Status(400, f'unknown field {unknown}') if unknown else Reply('Well', probabilities=[{'Well': 0.99}])

    return script


@pytest.mark.parametrize('name', ['structured_outputs', 'guided_choice'])
def test_a_model_that_rambles_is_confined_to_the_choices(name: str) -> None:
    with OpenAIServer(confined_only(name)) as server:
        assert talk(server).choose(ASK, ['left', 'right']).probabilities == pytest.approx({'left': 0.75, 'right': 0.25})
    assert server.requests[-1].choices == ['left', 'right']


RAMBLING = Reply('Well', probabilities=[{'Well': 0.99}])
TWICE = {'token': 'yes', 'logprob': -1.0, 'top_logprobs': [{'token': 'yes', 'logprob': -3.0}]}


def listing(*entries: dict) -> Reply:
    """A server that says yes and lists this for it."""
    return Reply('yes', logprobs={'content': entries})


@pytest.mark.parametrize(
    ('says', 'options', 'words'),
    [
        (RAMBLING, {}, "lists no probability of 'yes', 'no'"),
        (RAMBLING, {'dialect': 'openai'}, "lists no probability of 'yes', 'no'"),
        (Raw(b'{"choices": [{"message": {"content": "yes"}, "logprobs": null}]}'), {}, 'sent no probabilities of tok'),
        (listing({'token': 'yes', 'logprob': -0.1}), {}, 'sent a token without its alternatives'),
        (listing({'token': 'yes', 'logprob': None}), {}, 'in place of a token and the logarithm of its probability'),
        (listing({'token': 'yes', 'logprob': 2.0}), {}, 'in place of a token and the logarithm of its probability'),
        (choosing(yes=0.9, no=0.8), {}, 'sent probabilities that add up to more than 1'),
        (listing({'token': 'no', 'logprob': -1.0, 'top_logprobs': []}), {}, "probabilities of other tokens ('no')"),
        (listing(TWICE), {}, "sent two probabilities of the token 'yes'"),
        (Status(400, 'logprobs are disabled'), {}, 'answered 400 Bad Request: logprobs are disabled'),
    ],
)
def test_without_probabilities_that_can_be_true_there_is_no_choice(says: Says, options: dict, words: str) -> None:
    with OpenAIServer(says) as server, pytest.raises(TalkerError) as caught:
        talk(server, **options).choose(ASK, ['yes', 'no'])
    assert words in str(caught.value)
    assert ' -> ' in str(caught.value)


@pytest.mark.parametrize(
    ('choices', 'words'),
    [
        (['yes'], 'choices: are too few, got 1'),
        (['yes', ''], 'choices[1]: is empty or has space around it'),
        (['yes', 'no '], 'choices[1]: is empty or has space around it'),
        (['1', '10'], "choices[0]: is the beginning of '10'"),
        (['no', 'no'], "choices[0]: is the beginning of 'no'"),
    ],
)
def test_choices_that_no_endpoint_could_tell_apart_are_refused(choices: list[str], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        RemoteTalker('http://127.0.0.1:1/v1', 'tiny').choose(ASK, choices)
    assert words in str(caught.value)


def places(*listed: dict[str, float]) -> list[Place]:
    """Places whose answer is the first token of each."""
    return [Place(next(iter(tokens)), {token: float(np.log(p)) for token, p in tokens.items()}) for tokens in listed]


def test_a_choice_of_several_tokens_is_followed_up_to_what_tells_it_apart() -> None:
    answer = places({'turn': 0.8, 'stop': 0.2}, {' left': 0.75, ' right': 0.25})
    found = probabilities(['turn left', 'turn right', 'stop'], answer)
    assert found == pytest.approx({'turn left': 0.6, 'turn right': 0.2, 'stop': 0.2})


def test_the_longest_token_counts_and_space_before_the_first_does_not() -> None:
    listed = {' yes': 0.3, 'yes': 0.2, 'n': 0.1, 'no': 0.2}
    top = [{'token': token, 'logprob': np.log(p)} for token, p in listed.items()]
    answer = read_places({'content': [{**top[0], 'top_logprobs': top}]}, ' yes')
    assert probabilities(['yes', 'no'], answer) == pytest.approx({'yes': 0.5 / 0.7, 'no': 0.2 / 0.7})


def test_an_unlisted_choice_counts_as_impossible_only_if_it_cannot_matter() -> None:
    assert probabilities(['yes', 'no'], places({'yes': 0.999, 'Yes': 0.0005})) == {'yes': 1.0, 'no': 0.0}
    with pytest.raises(Unresolved, match="no probability of 'no'"):
        probabilities(['yes', 'no'], places({'Well': 0.5, 'yes': 0.3, 'so': 0.1}))


def test_choices_that_leave_the_answer_with_the_same_token_are_not_told_apart() -> None:
    with pytest.raises(Unresolved, match="no token that tells 'turn left' from 'turn right'"):
        probabilities(['turn left', 'turn right', 'stop'], places({'stop': 0.6, 'turn': 0.4}))


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from('abcdefghij'), st.floats(0.01, 1), min_size=2), st.floats(0.1, 1))
def test_probabilities_of_choices_are_those_of_their_tokens_and_add_up_to_one(
    weights: dict[str, float], share: float
) -> None:
    total = sum(weights.values()) / share
    found = probabilities(list(weights), places({token: weight / total for token, weight in weights.items()}))
    assert sum(found.values()) == pytest.approx(1)
    assert found == pytest.approx({token: weight / total / share for token, weight in weights.items()})


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.just('yes'),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(['content', 'token', 'logprob', 'top_logprobs']), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(json_values)
def test_no_list_of_probabilities_raises_anything_but_what_it_is(logprobs: object) -> None:
    try:
        found = probabilities(['yes', 'no'], read_places(logprobs, 'yes'))
    except (Contradictory, Unresolved):
        return
    assert sum(found.values()) == pytest.approx(1)


chunks = st.lists(
    st.sampled_from([b'data: ', b'{"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}', b'\n\n', b'\n'])
    | st.sampled_from([b'[DONE]', b'{}', b'data:', b'{"choices": null}', b'\xff', b'\r\n', b'null', b'[1]', b'\x00']),
    max_size=8,
).map(b''.join)


@settings(max_examples=60, deadline=None)
@given(body=chunks)
def test_no_stream_of_bytes_raises_anything_but_that_it_is_no_answer(garbage_server, body: bytes) -> None:
    garbage_server.says = Raw(body, 'text/event-stream')
    try:
        answer = garbage_server.talker.generate(ASK)
    except TalkerError:
        return
    assert set(answer.text) <= {'a'}


@pytest.fixture(scope='module')
def garbage_server():
    class Garbage:
        says: Says = 'ok'

    garbage = Garbage()
    with OpenAIServer(lambda request: garbage.says) as server:
        garbage.talker = talk(server)
        yield garbage


# What it costs


def test_asking_an_endpoint_loads_no_torch() -> None:
    code = 'import sys, engine.reasoner_remote, engine.reasoner_questions\nprint("torch" in sys.modules)'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ('False', '')


def test_several_threads_may_ask_at_once() -> None:
    with OpenAIServer(lambda request: Reply(f'to {request.text}', pause_s=0.01)) as server:
        talker, heard = talk(server), {}
        threads = [
            threading.Thread(target=lambda n=n: heard.update({n: talker.generate([user(f'n{n}')]).text}))
            for n in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert heard == {n: f'to n{n}' for n in range(6)}
