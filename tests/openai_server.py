"""A server that speaks the OpenAI protocol on a real socket of this machine; what it says is scripted.

    def script(request: Request) -> Says:
        return 'a red cube' if 'see' in request.text else Status(500, 'out of memory')

    with OpenAIServer(script) as server:
        talker = RemoteTalker(server.url, 'tiny')
        ...
    assert server.requests[0].body['temperature'] == 0

The script is called once per request, in the thread of that request, and returns what happens then: a text, or

- `Reply(...)`: a text with thinking, a finish of its own, a pause before every token, probabilities of tokens;
- `Status(...)`: an HTTP status, and a body (500, 400 with a reason, 302, ...);
- `Raw(...)`: 200 and these bytes, whatever they are: malformed JSON, broken events;
- `Hang(...)`: these words, then nothing until the client leaves or the server is closed;
- `Drop(...)`: these words, then the connection is cut; `Drop(None)`: before the first byte.

Several in a row: `script = in_turn('first', Drop(None), 'third')`. `stop`, `max_tokens`, `stream`, `stream_options` and
`logprobs` are honoured as vLLM does it. A token is a word with the space before it, or a single other character.
"""

from __future__ import annotations

import base64
import json
import math
import re
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

TOKEN = re.compile(r' ?[A-Za-z]+|.', re.S)
LEAST = -9999.0  # what vLLM says for minus infinity


@dataclass(frozen=True)
class Request:
    """What a client asked.

    Attributes:
        number: 0 for the first request that the server got.
        body: The JSON that was sent.
        headers: By name in small letters.
    """

    number: int
    body: Mapping[str, Any]
    headers: Mapping[str, str]

    @property
    def messages(self) -> list[tuple[str, str]]:
        """Role and words of every turn."""
        return [(turn['role'], _words(turn['content'])) for turn in self.body['messages']]

    @property
    def text(self) -> str:
        """Words of the last turn."""
        return self.messages[-1][1]

    @property
    def choices(self) -> list[str]:
        """What the answer is confined to; empty if it is free."""
        return list(self.body.get('guided_choice') or self.body.get('structured_outputs', {}).get('choice', []))

    def media(self, kind: str = 'image_url') -> list[bytes]:
        """Decoded data URLs of all turns, of this kind (`image_url` or `video_url`)."""
        parts = [
            part for turn in self.body['messages'] if isinstance(turn['content'], list) for part in turn['content']
        ]
        urls = [part[kind]['url'] for part in parts if part['type'] == kind]
        return [base64.b64decode(url.partition(';base64,')[2], validate=True) for url in urls]


@dataclass(frozen=True)
class Reply:
    """A text, and how it comes.

    Attributes:
        text: The answer, with `<think>...</think>` in it if the model thinks aloud.
        reasoning: Sent apart from the text, as a server with a reasoning parser does.
        finish: Overrides 'stop', or 'length' where `max_tokens` or `stop` say so.
        pause_s: Before every token.
        probabilities: For each token in turn, probabilities of what could have stood there; left out: 0.9 for
            the token itself.
        logprobs: Sent as they are instead (choices[0].logprobs), however contradictory.
    """

    text: str
    reasoning: str = ''
    finish: str = ''
    pause_s: float = 0.0
    probabilities: Sequence[Mapping[str, float]] = ()
    logprobs: Any = None


@dataclass(frozen=True)
class Status:
    """Not 200."""

    code: int
    message: str = ''
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Raw:
    """200 and these bytes."""

    body: bytes
    content_type: str = 'application/json'


@dataclass(frozen=True)
class Hang:
    """These words, then silence. With no words not even the status line comes."""

    text: str = ''


@dataclass(frozen=True)
class Drop:
    """These words, then the connection is reset; None: before the first byte."""

    text: str | None = None


Says = str | Reply | Status | Raw | Hang | Drop
Script = Callable[[Request], Says]


def in_turn(*says: Says) -> Script:
    """A script that says one after the other, and the last one for ever."""
    return lambda request: says[min(request.number, len(says) - 1)]


def choosing(**probabilities: float) -> Reply:
    """A reply of one token with these probabilities; its text is the most probable one."""
    return Reply(max(probabilities, key=probabilities.__getitem__), probabilities=[probabilities])


class OpenAIServer:
    """See the module. The port is free for others again after the `with` block.

    Attributes:
        url: What a client is given, e.g. http://127.0.0.1:4711/v1.
        requests: Every request so far, in order of arrival.
        abandoned: Number of requests whose client left before the answer was complete.
    """

    def __init__(self, script: Script | Says = 'ok', *, api_key: str = '') -> None:
        """Listen at once; with `api_key`, whoever does not present it is answered 401."""
        self._script: Script = script if callable(script) else in_turn(script)
        self._api_key = api_key
        self.requests: list[Request] = []
        self.abandoned = 0
        self.closing = threading.Event()
        self._changed = threading.Condition()
        self._http = _Http(('127.0.0.1', 0), _Handler)
        self._http.owner = self
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.02,), name='openai_server', daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self._http.server_address[1]}/v1'

    def wait_until(self, condition: Callable[[Self], bool], timeout_s: float = 10.0) -> bool:
        """Wait until `condition(server)` holds; asked whenever a request arrives or is abandoned."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self), timeout_s)

    def close(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refuses(self, headers: Mapping[str, str]) -> bool:
        return bool(self._api_key) and headers.get('authorization') != f'Bearer {self._api_key}'

    def take(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[Request, Says]:
        with self._changed:
            request = Request(len(self.requests), body, headers)
            self.requests.append(request)
            self._changed.notify_all()
        return request, self._script(request)

    def lose(self) -> None:
        with self._changed:
            self.abandoned += 1
            self._changed.notify_all()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    owner: OpenAIServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error; a script that fails is told to the client (see `_Handler.do_POST`)."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    server: _Http

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name in the base class)
        pass

    def do_GET(self) -> None:
        if self.path.endswith('/models'):
            self._send(200, json.dumps({'object': 'list', 'data': [{'id': 'tiny', 'object': 'model'}]}).encode())
        else:
            self._fail(404, f'{self.path} is not here')

    def do_POST(self) -> None:
        owner, headers = self.server.owner, {name.lower(): value for name, value in self.headers.items()}
        sent = self.rfile.read(int(headers.get('content-length', 0)))
        if owner.refuses(headers):
            return self._fail(401, 'Unauthorized')
        if self.path != '/v1/chat/completions':
            return self._fail(404, f'{self.path} is not here')
        try:
            request, says = owner.take(json.loads(sent), headers)
        except Exception as error:  # of the script: the test shall see it
            return self._fail(500, f'the script failed: {error!r}')
        try:
            self._perform(request, Reply(says) if isinstance(says, str) else says)
        except OSError:
            owner.lose()
            self.close_connection = True

    def _perform(self, request: Request, says: Says) -> None:
        if isinstance(says, Status):
            self._fail(says.code, says.message, says.body, says.headers)
        elif isinstance(says, Raw):
            self._send(200, says.body, says.content_type)
        elif isinstance(says, Hang):
            self._begin(request, says.text)
            self._wait_for_the_end()
        elif isinstance(says, Drop):
            self._begin(request, says.text or '')
            self._cut()
        else:
            self._answer(request, says)

    def _answer(self, request: Request, reply: Reply) -> None:
        tokens, finish = _shortened(request.body, reply)
        usage = {'prompt_tokens': len(request.text), 'completion_tokens': len(tokens)}
        if not request.body.get('stream'):
            self._pause(reply.pause_s * len(tokens))
            body = {'choices': [_whole(request.body, reply, tokens, finish)], 'usage': usage}
            self._send(200, json.dumps(body).encode())
        else:
            self._stream(request, reply, tokens, finish, usage)

    def _stream(self, request: Request, reply: Reply, tokens: list[str], finish: str, usage: dict[str, int]) -> None:
        self._open_stream()
        for event in _events(request.body, reply, tokens, finish):
            self._pause(reply.pause_s)
            self._event(json.dumps(event))
        if request.body.get('stream_options', {}).get('include_usage'):
            self._event(json.dumps({'choices': [], 'usage': usage}))
        done = b'data: [DONE]\n\n'
        # The end of the body in one piece with the last event: a client may leave as soon as it has read that.
        self.wfile.write(f'{len(done):x}\r\n'.encode() + done + b'\r\n0\r\n\r\n')

    def _begin(self, request: Request, text: str) -> None:
        """Send the beginning of a stream, or of a body that was promised to be longer."""
        if not text:
            return
        if request.body.get('stream'):
            self._open_stream()
            for token in TOKEN.findall(text):
                self._event(json.dumps({'choices': [{'index': 0, 'delta': {'content': token}, 'finish_reason': None}]}))
        else:
            self.send_response(200)
            self.send_header('Content-Length', '100000')
            self.end_headers()
            self.wfile.write(json.dumps({'choices': [{'message': {'content': text}}]}).encode()[:-2])

    def _pause(self, seconds: float) -> None:
        """Wait; shorter if the client leaves, which raises, or if the server is closed."""
        if seconds > 0 and self._left(seconds):
            raise ConnectionAbortedError

    def _wait_for_the_end(self) -> None:
        while not self.server.owner.closing.is_set():
            if self._left(0.02):
                raise ConnectionAbortedError
        self.close_connection = True

    def _left(self, within_s: float) -> bool:
        readable, _, _ = select.select([self.connection], [], [], within_s)
        return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b''

    def _cut(self) -> None:
        # Lingering for zero seconds makes the kernel send a reset instead of a proper end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.connection.close()
        self.close_connection = True

    def _open_stream(self) -> None:
        self.send_response(200)
        self.send_header('Content-Type', 'text/event-stream; charset=utf-8')
        self.send_header('Transfer-Encoding', 'chunked')
        self.end_headers()

    def _event(self, data: str) -> None:
        self._chunk(f'data: {data}\n\n'.encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f'{len(data):x}\r\n'.encode() + data + b'\r\n')

    def _fail(
        self, code: int, message: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        error = {'error': {'message': message, 'type': 'error', 'code': code}}
        self._send(code, json.dumps(error).encode() if body is None else body, headers=headers)

    def _send(
        self,
        code: int,
        body: bytes,
        content_type: str = 'application/json',
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(code)
        for name, value in {'Content-Type': content_type, 'Content-Length': str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _words(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return '\n'.join(part['text'] for part in content if part['type'] == 'text')


def _shortened(body: Mapping[str, Any], reply: Reply) -> tuple[list[str], str]:
    """Tokens of the answer up to `stop` and `max_tokens`, and why it ends."""
    stops = [reply.text.find(stop) for stop in body.get('stop') or [] if stop in reply.text]
    tokens = TOKEN.findall(reply.text[: min(stops)] if stops else reply.text)
    limit = body.get('max_tokens') or len(tokens)
    return tokens[:limit], reply.finish or ('length' if len(tokens) > limit else 'stop')


def _whole(body: Mapping[str, Any], reply: Reply, tokens: list[str], finish: str) -> dict[str, Any]:
    message = {'role': 'assistant', 'content': ''.join(tokens)}
    if reply.reasoning:
        message['reasoning_content'] = reply.reasoning
    choice = {'index': 0, 'message': message, 'finish_reason': finish}
    if body.get('logprobs'):
        choice['logprobs'] = reply.logprobs or {'content': list(_likelihoods(reply, tokens, body['top_logprobs']))}
    return choice


def _events(body: Mapping[str, Any], reply: Reply, tokens: list[str], finish: str) -> Iterator[dict[str, Any]]:
    deltas = [{'role': 'assistant', 'content': ''}]
    deltas += [{'reasoning_content': token} for token in TOKEN.findall(reply.reasoning)]
    deltas += [{'content': token} for token in tokens]
    for delta in deltas:
        yield {'choices': [{'index': 0, 'delta': delta, 'finish_reason': None}]}
    yield {'choices': [{'index': 0, 'delta': {}, 'finish_reason': finish}]}


def _likelihoods(reply: Reply, tokens: list[str], count: int) -> Iterator[dict[str, Any]]:
    for place, token in enumerate(tokens):
        known = dict(reply.probabilities[place]) if place < len(reply.probabilities) else {token: 0.9}
        listed = sorted(known.items(), key=lambda item: -item[1])[:count]
        top = [{'token': word, 'logprob': math.log(p) if p else LEAST, 'bytes': None} for word, p in listed]
        yield {'token': token, 'logprob': math.log(known.get(token) or 1e-9), 'bytes': None, 'top_logprobs': top}
