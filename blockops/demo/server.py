"""
A backend to try blockops with, where no model is running: `--backend demo`.

A real HTTP server on a loopback port of its own, so that its answers take the way that the answers
of a real backend take. It keeps the pace of a local model: a pause while it reads the prompt, then
token after token. What it says is in `demo_script`.
"""

from __future__ import annotations

import itertools
import json
import secrets
import time
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.protocols.policies import WrappingFactory
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from zope.interface import implementer

from blockops.demo.script import reply, text_of, tokens
from blockops.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from twisted.web.server import Request

MODEL = "demo"

_log = Logger()
_MODELS = {
    "object": "list",
    "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "blockops"}],
}


_QUESTION = {
    "model": MODEL,
    "stream": True,
    "messages": [{"role": "user", "content": "How is the weather in Paris?"}],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
            },
        }
    ],
}


def hint(interface: str, port: int) -> str:
    """Return a command for the shell that asks blockops on `interface` for a call, and shows it."""
    host = f"[{interface}]" if ":" in interface else interface
    url = f"http://{host}:{port}/v1/chat/completions"
    return f"curl -gN '{url}' -d '{json.dumps(_QUESTION)}'"


class DemoBackend(Service):
    """
    The demo backend: it listens from `startService` to `stopService`.

    Stop it after whoever asks it questions: answers under way are cut.

    :param reactor: the source of time and of the listening port
    :param prefill: seconds from a request to the first token
    :param pace: seconds from one token to the next
    """

    def __init__(self, reactor: Any, *, prefill: float = 1.5, pace: float = 0.03) -> None:
        self._reactor = reactor
        self._port: Any = None
        # It remembers the connections, which a port does not close with itself.
        site = _QuietSite(  # type: ignore[no-untyped-call]
            _Api(reactor, prefill, pace), reactor=reactor
        )
        self._connections = WrappingFactory(site)
        self._connections.noisy = False

    @property
    def url(self) -> str:
        """The base URL of the running server, such as `http://127.0.0.1:40613`."""
        if self._port is None:
            raise RuntimeError("The demo backend has no URL before it listens.")
        return f"http://127.0.0.1:{self._port.getHost().port}"

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._port = self._reactor.listenTCP(0, self._connections, interface="127.0.0.1")

    def stopService(self) -> Deferred[None]:
        """Fires once the port is closed."""
        super().stopService()  # type: ignore[no-untyped-call]
        for connection in list(self._connections.protocols):
            connection.transport.abortConnection()
        port, self._port = self._port, None
        return maybeDeferred(port.stopListening if port else lambda: None)


class _QuietSite(Site):
    noisy = False

    def log(self, request: Any) -> None:
        """Write no access log: that is the business of whoever stands in front."""


class _Api(Resource):
    """The routes of the demo backend, and JSON errors for all others."""

    isLeaf = True

    def __init__(self, clock: Any, prefill: float, pace: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._clock = clock
        self._prefill = prefill
        self._pace = pace
        self._turns = itertools.count()

    def render(self, request: Request) -> bytes | int:
        try:
            return self._route(request)
        except ApiError as error:
            return _send_json(request, error.body(), error.status)

    def _route(self, request: Request) -> bytes | int:
        match (request.method, request.path):
            case (b"POST", b"/v1/chat/completions"):
                return self._chat(request)
            case (b"GET", b"/v1/models"):
                return _send_json(request, _encode(_MODELS))
        raise ApiError(404, "The demo backend has /v1/chat/completions and /v1/models only.")

    def _chat(self, request: Request) -> int:
        asked = _read(request)
        answer = _Answer(asked, next(self._turns))
        answering = self._stream if asked.get("stream") else self._whole
        work = Deferred.fromCoroutine(answering(request, answer))
        request.notifyFinish().addErrback(lambda _gone: work.cancel())
        work.addErrback(lambda failure: failure.trap(CancelledError))
        work.addErrback(lambda failure: _log.failure("The demo backend failed", failure))
        return NOT_DONE_YET

    async def _whole(self, request: Request, answer: _Answer) -> None:
        await deferLater(self._clock, self._prefill + self._pace * len(answer.pieces))
        request.write(_send_json(request, _encode(answer.whole())))
        request.finish()

    async def _stream(self, request: Request, answer: _Answer) -> None:
        await deferLater(self._clock, self._prefill)
        request.setHeader(b"content-type", b"text/event-stream")
        valve = _Valve()
        request.registerProducer(valve, streaming=True)
        for event in answer.events():
            await deferLater(self._clock, self._pace)
            await valve.opened()
            request.write(event)
        request.unregisterProducer()
        request.finish()


@implementer(IPushProducer)
class _Valve:
    """Closed while the client reads too slowly; the answer waits at it before each token."""

    def __init__(self) -> None:
        self._open: Deferred[None] = succeed(None)

    def opened(self) -> Deferred[None]:
        """Return what fires at once, or as soon as the client takes more."""
        return self._open

    def pauseProducing(self) -> None:
        if self._open.called:
            self._open = Deferred()

    def resumeProducing(self) -> None:
        if not self._open.called:
            self._open.callback(None)

    def stopProducing(self) -> None:
        """Do nothing: the request tells of its end as well, and cancels the answer."""


class _Answer:
    """One answer, in the shapes of `chat.completion` and `chat.completion.chunk`."""

    def __init__(self, asked: Mapping[str, Any], turn: int) -> None:
        text = tokens(reply(asked, turn))
        limit = _limit(asked, len(text))
        self.pieces = text[:limit]
        self._finish_reason = "length" if limit < len(text) else "stop"
        self._prompt_tokens = sum(len(tokens(text_of(message))) for message in asked["messages"])
        self._reports_usage = _wants_usage(asked)
        self._envelope = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": asked.get("model") or MODEL,
        }

    def whole(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(self.pieces)}
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        return self._envelope | {
            "object": "chat.completion",
            "choices": [choice],
            "usage": self._usage(),
        }

    def events(self) -> Iterator[bytes]:
        """Yield the events of the stream, each as the bytes to send."""
        yield self._event([_choice({"role": "assistant", "content": ""})])
        for piece in self.pieces:
            yield self._event([_choice({"content": piece})])
        yield self._event([_choice({}, self._finish_reason)])
        if self._reports_usage:
            yield self._event([], usage=self._usage())
        yield b"data: [DONE]\n\n"

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        chunk = self._envelope | {"object": "chat.completion.chunk", "choices": choices} | more
        return b"data: " + _encode(chunk) + b"\n\n"

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": len(self.pieces),
            "total_tokens": self._prompt_tokens + len(self.pieces),
        }


def _choice(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def _limit(asked: Mapping[str, Any], length: int) -> int:
    """Return how many of `length` tokens the request allows."""
    limit = asked.get("max_completion_tokens", asked.get("max_tokens"))
    return min(limit, length) if isinstance(limit, int) and limit > 0 else length


def _wants_usage(asked: Mapping[str, Any]) -> bool:
    options = asked.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def _read(request: Request) -> dict[str, Any]:
    """
    Return the request's body.

    :raises ApiError: it is no JSON object with a list of messages
    """
    try:
        asked: Any = json.load(request.content)  # type: ignore[arg-type]  # complete by now
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not JSON: {error}") from None
    if not isinstance(asked, dict):
        raise ApiError(400, "The body is JSON, but no object.")
    messages = asked.get("messages")
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise ApiError(400, "`messages` must be a list of objects.", param="messages")
    return asked


def _encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _send_json(request: Request, body: bytes, status: int = 200) -> bytes:
    request.setResponseCode(status)
    request.setHeader(b"content-type", b"application/json")
    request.setHeader(b"content-length", str(len(body)).encode())
    return body
