"""A reasoner behind an OpenAI-compatible endpoint: vLLM, NVIDIA NIM, or whoever else speaks that protocol.

    talker = RemoteTalker('http://localhost:8000/v1', 'nvidia/Cosmos3-Nano')
    print(talker.generate([user(Picture(rgb), 'What is on the table?')]).text)

PyTorch is not imported: a machine without a GPU can ask one that has one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, NoReturn, get_args

import httpx

from engine.errors import InvalidInput, Problem, TalkerError
from engine.reasoner_checks import Dialect, check_sampling, check_stop
from engine.reasoner_remote_body import PictureFormat, VideoFormat, conversation_fields, sampling_fields
from engine.reasoner_remote_choice import Contradictory, Unresolved, check_choices, probabilities, read_places
from engine.reasoner_remote_events import Malformed, Reception, events, server_says
from engine.reasoner_talk import GREEDY, Answer, Choice, Message, Sampling
from engine.turns import Cancelled

POLL_S = 0.05
"""How often a request that is under way asks whether it was cancelled."""
RETRY_AFTER_S = 0.2
TOP_LOGPROBS = 20
"""Most that servers list by default."""
_CHOICE_TOKENS = 16  # of an answer that is looked at to tell choices apart
_CHOOSE_AMONG = 'let it choose among letters or digits'
_ERROR_BYTES = 65536
_REMEDIES = {
    401: 'check the API key',
    403: 'check the API key',
    404: "check the url, which usually ends in /v1, and the model's name",
    413: "send fewer or smaller pictures, or pictures='jpeg'",
    429: 'ask less often',
    503: 'wait until the server is ready',
}


class _Refusal(TalkerError):
    """The server answered with a status that is not 200."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class RemoteTalker:
    """A :class:`engine.reasoner_talk.Talker` over HTTP.

    Thread-safe; not to be called within a running event loop, since it runs one of its own. A request is sent once more
    if the connection is refused or reset before the first byte of the answer, and never after that.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str = '',
        timeout_s: float = 120.0,
        connect_timeout_s: float = 5.0,
        dialect: Dialect = 'vllm',
        pictures: PictureFormat = 'png',
        videos: VideoFormat = 'frames',
        stream: bool = True,
        max_bytes: int = 16 * 2**20,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: Up to and including the version: `http://localhost:8000/v1`.
            model: Name of the model at the server.
            api_key: Sent as a bearer token; no error text shows it.
            timeout_s: Longest time from asking to the last word, s.
            connect_timeout_s: Longest time until the connection stands, s.
            dialect: 'vllm': with `top_k`, `repetition_penalty` and structured outputs, which vLLM and NIM know beyond
                the protocol; 'openai': without.
            pictures: 'png', exact, or 'jpeg' (quality 95), a tenth of the size.
            videos: 'frames': each frame a picture with its time before it, which every server takes; 'mp4': one
                H.264 file as `video_url`, which vLLM and NIM sample as the model was trained with.
            stream: Whether to ask for the answer word by word (server-sent events); False for servers without.
            max_bytes: Of an answer, protocol and all.

        Raises:
            InvalidInput: An argument is malformed; lists every fault.
        """
        _check(url, model, api_key, timeout_s, connect_timeout_s, max_bytes)
        _check_one_of(dialect=(dialect, Dialect), pictures=(pictures, PictureFormat), videos=(videos, VideoFormat))
        self.url = f'{url.rstrip("/")}/chat/completions'
        self.model = model
        self._api_key = api_key
        self._timeout_s, self._connect_timeout_s = timeout_s, connect_timeout_s
        self._dialect: Dialect = dialect
        self._pictures: PictureFormat = pictures
        self._videos: VideoFormat = videos
        self._stream, self._max_bytes = stream, max_bytes
        host = httpx.URL(url).host
        self._environment = not _is_this_machine(host)  # a proxy is never asked for this machine itself
        # Made once, since loading certificates takes longer than a connection; without TLS none are needed.
        secure = httpx.URL(url).scheme == 'https'
        self._tls = httpx.create_ssl_context(trust_env=self._environment) if secure else _no_certificates()

    def __repr__(self) -> str:
        return f'RemoteTalker({self.url!r}, {self.model!r})'

    def generate(
        self,
        messages: Sequence[Message],
        *,
        sampling: Sampling = GREEDY,
        thinking: bool = False,
        stop: Sequence[str] = (),
        cancelled: Callable[[], bool] = lambda: False,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer a conversation; see :class:`engine.reasoner_talk.Talker`.

        Numbers of tokens are 0 where the server does not tell them. What a server with a reasoning parser sends apart
        from the answer becomes `thinking`.

        Raises:
            InvalidInput: The conversation, the sampling or a stop text is malformed; lists every fault.
            Cancelled: `cancelled` returned True; the connection is closed, upon which servers stop generating.
            TalkerError: The endpoint is unreachable, refused, was too slow, or sent what is no answer.
        """
        check_sampling(sampling, self._dialect)
        check_stop(stop)
        body = self._conversation(messages, thinking=thinking) | sampling_fields(sampling, self._dialect)
        if stop:
            body['stop'] = list(stop)
        if self._stream:
            body |= {'stream': True, 'stream_options': {'include_usage': True}}
        began = time.monotonic()
        reception = Reception(on_text, lambda: time.monotonic() - began)

        async def receive(response: httpx.Response) -> None:
            if self._stream:
                async for event in events(self._pieces(response)):
                    reception.take_event(event)
            else:
                reception.take_whole(await self._whole(response))

        self._request(body, receive, cancelled)
        try:
            return reception.answer()
        except Malformed as error:
            self._fail(str(error), remedy="see the server's log")

    def choose(
        self, messages: Sequence[Message], choices: Sequence[str], *, cancelled: Callable[[], bool] = lambda: False
    ) -> Choice:
        """Choose one of several texts by its probability; see :class:`engine.reasoner_talk.Talker`.

        An endpoint lists the 20 likeliest tokens at each place of the answer it gives. The probability of a choice is
        that of the tokens which tell it apart from the others, so choices that differ in their first token (letters,
        digits, yes and no) are judged exactly. Where a free answer tells too little, vLLM's dialect asks once more for
        an answer confined to the choices. If that does not tell either, or the server does not list probabilities,
        there is no choice: nothing is made up from the words alone.

        Raises:
            InvalidInput: The conversation or the choices are malformed; one choice may not be the beginning of another.
            Cancelled: `cancelled` returned True.
            TalkerError: As for :meth:`generate`; or the server does not list what is needed.
        """
        check_choices(choices)
        body = self._conversation(messages) | sampling_fields(Sampling(max_tokens=_CHOICE_TOKENS), self._dialect)
        body |= {'logprobs': True, 'top_logprobs': TOP_LOGPROBS}
        try:
            found = self._probabilities(body, choices, cancelled)
        except Unresolved as error:
            if self._dialect == 'openai':
                self._fail(f'lists {error}', remedy=_CHOOSE_AMONG)
            found = self._confined(body, choices, cancelled)
        return Choice(max(found, key=found.__getitem__), found)

    def _confined(
        self, body: dict[str, Any], choices: Sequence[str], cancelled: Callable[[], bool]
    ) -> dict[str, float]:
        """Ask for an answer that is one of the choices; older servers know this under another name."""
        listed = list(choices)
        try:
            try:
                structured = {'structured_outputs': {'choice': listed}}
                return self._probabilities(body | structured, choices, cancelled)
            except _Refusal as error:
                if error.status not in (400, 422):
                    raise
                return self._probabilities(body | {'guided_choice': listed}, choices, cancelled)
        except Unresolved as error:
            self._fail(f'lists {error}', remedy=_CHOOSE_AMONG)

    def _probabilities(
        self,
        body: dict[str, Any],
        choices: Sequence[str],
        cancelled: Callable[[], bool],
    ) -> dict[str, float]:
        whole: list[Any] = []

        async def receive(response: httpx.Response) -> None:
            whole.append(await self._whole(response))

        self._request(body, receive, cancelled)
        try:
            reception = Reception()
            reception.take_whole(whole[0])
            places = read_places(whole[0]['choices'][0].get('logprobs'), reception.text)
            return probabilities(choices, places)
        except (Malformed, Contradictory) as error:
            remedy = 'probabilities need a server that answers top_logprobs, or the weights of this process'
            self._fail(f'sent {error}', remedy=remedy)

    def _conversation(self, messages: Sequence[Message], *, thinking: bool = False) -> dict[str, Any]:
        fields = conversation_fields(messages, self._pictures, self._videos, self._dialect, thinking=thinking)
        return {'model': self.model, **fields}

    def _request(
        self,
        body: dict[str, Any],
        receive: Callable[[httpx.Response], Awaitable[None]],
        cancelled: Callable[[], bool],
    ) -> None:
        """Send one request and let `receive` read what comes."""
        content = json.dumps(body).encode()
        with asyncio.Runner() as runner:
            runner.run(self._watched(self._exchange(content, receive), cancelled))

    async def _watched(self, exchange: Awaitable[None], cancelled: Callable[[], bool]) -> None:
        """Let it happen until it is done, cancelled, or too late."""
        deadline = time.monotonic() + self._timeout_s
        task = asyncio.ensure_future(exchange)
        try:
            while not task.done():
                if cancelled():
                    raise Cancelled(f'the question to {self.url} was given up by its caller')
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    remedy = 'ask for fewer tokens, or allow more time'
                    self._fail(f'was not done within {self._timeout_s:g} s', remedy=remedy)
                await asyncio.wait({task}, timeout=min(POLL_S, left_s))
            task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _exchange(self, content: bytes, receive: Callable[[httpx.Response], Awaitable[None]]) -> None:
        timeout = httpx.Timeout(None, connect=self._connect_timeout_s)
        async with httpx.AsyncClient(verify=self._tls, trust_env=self._environment, timeout=timeout) as client:
            try:
                response = await self._first_byte(client, content)
                try:
                    if response.status_code != httpx.codes.OK:
                        await self._refuse(response)
                    await receive(response)
                finally:
                    await response.aclose()
            except Malformed as error:
                self._fail(str(error), remedy="see the server's log")
            except httpx.ConnectTimeout:
                what = f'did not accept a connection within {self._connect_timeout_s:g} s'
                self._fail(what, remedy='check the url and the network')
            except httpx.ConnectError as error:
                what = f'cannot be reached ({self._safe(str(error))})'
                self._fail(what, remedy='check the url; is the server running?')
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                what = f'broke the connection ({self._safe(str(error)) or type(error).__name__})'
                self._fail(what, remedy="see the server's log")

    async def _first_byte(self, client: httpx.AsyncClient, content: bytes) -> httpx.Response:
        """The response once its head is there; a connection that fails before is tried once more."""
        headers = {'Content-Type': 'application/json', 'Accept-Encoding': 'identity'}
        if self._api_key:
            headers['Authorization'] = f'Bearer {self._api_key}'
        request = client.build_request('POST', self.url, content=content, headers=headers)
        try:
            return await client.send(request, stream=True)
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            await asyncio.sleep(RETRY_AFTER_S)
            return await client.send(request, stream=True)

    async def _pieces(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """Bytes of the answer as they come, up to the limit."""
        size = 0
        async for piece in response.aiter_raw():
            size += len(piece)
            if size > self._max_bytes:
                self._fail(f'sent more than {self._max_bytes} bytes', remedy='ask for fewer tokens, or allow more')
            yield piece

    async def _whole(self, response: httpx.Response) -> Any:
        content = b''.join([piece async for piece in self._pieces(response)])
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            start = self._safe(content[:200].decode(errors='replace'))
            self._fail(f'sent no JSON but {start!r}', remedy="see the server's log")

    async def _refuse(self, response: httpx.Response) -> NoReturn:
        """Tell a status that is not 200, with what the server says of it."""
        content = b''
        async for piece in response.aiter_raw():
            content += piece
            if len(content) > _ERROR_BYTES:
                break
        status = response.status_code
        where = 'name the address it leads to; redirections are not followed, since they could lead the key astray'
        remedy = where if response.is_redirect else _REMEDIES.get(status, "see the server's log")
        said = self._safe(server_says(content[:_ERROR_BYTES]))
        what = f'answered {status} {response.reason_phrase}' + (f': {said}' if said else '')
        raise _Refusal(str(Problem(self.url, what, remedy=remedy)), status)

    def _fail(self, what: str, *, remedy: str) -> NoReturn:
        raise TalkerError(str(Problem(self.url, what, remedy=remedy)))

    def _safe(self, text: str) -> str:
        """What somebody else said, fit for an error: printable, short, and without the key."""
        if self._api_key:
            text = text.replace(self._api_key, '***')
        plain = ''.join(character if character.isprintable() else ' ' for character in ' '.join(text.split()))
        return plain if len(plain) <= 300 else f'{plain[:297]}...'


def _check(url: str, model: str, api_key: str, timeout_s: float, connect_timeout_s: float, max_bytes: int) -> None:
    problems = list(_url_problems(url))
    if not model.strip():
        problems.append(Problem('model', 'is empty', '', 'the name of the model at the server'))
    if not (api_key.isascii() and (api_key.isprintable() or not api_key)) or ' ' in api_key:
        problems.append(Problem('api_key', 'is no key', '', 'printable ASCII without spaces'))  # never shown
    for name, seconds in (('timeout_s', timeout_s), ('connect_timeout_s', connect_timeout_s)):
        if not 0 < seconds < float('inf'):
            problems.append(Problem(name, 'is out of range', repr(seconds), 'above 0, finite'))
    if max_bytes < 1:
        problems.append(Problem('max_bytes', 'is out of range', str(max_bytes), '1 or more'))
    if problems:
        raise InvalidInput('remote reasoner', problems)


def _url_problems(url: str) -> Iterator[Problem]:
    allowed = 'http:// or https://, a host, and the path that ends in the version: http://localhost:8000/v1'
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError, ValueError):
        yield Problem('url', 'is malformed', '', allowed)  # not shown: nobody knows where in it a secret would be
        return
    if parsed.userinfo or parsed.query or parsed.fragment:  # not shown: there may be a secret in it
        yield Problem('url', 'holds more than an address', '', allowed, 'give the key as api_key')
    elif parsed.scheme not in ('http', 'https') or not parsed.host or not 0 < (parsed.port or 1) < 65536:
        yield Problem('url', 'is no address of a server', repr(url), allowed)
    elif parsed.path.rstrip('/').endswith('/chat/completions'):
        yield Problem('url', 'names the method, too', repr(url), allowed)


def _check_one_of(**chosen: tuple[str, Any]) -> None:
    problems = [
        Problem(name, 'is unknown', repr(value), ' or '.join(get_args(kind)))
        for name, (value, kind) in chosen.items()
        if value not in get_args(kind)
    ]
    if problems:
        raise InvalidInput('remote reasoner', problems)


def _no_certificates() -> ssl.SSLContext:
    """A context that trusts nobody."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'
