"""
The demo backend's HTTP server.

It listens on a loopback port, so that its responses take the same path as a real backend's. It is
as fast as a local model: a pause for the prompt, then one token at a time. `demo.script` writes the
text.
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

from blockops.demo.script import reply, split_tokens, text_of
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

#: The request of `example_command`.
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


def example_command(interface: str, port: int) -> str:
    """Return a shell command that requests a tool call from blockops and prints the response."""
    host = f"[{interface}]" if ":" in interface else interface
    url = f"http://{host}:{port}/v1/chat/completions"
    return f"curl -gN '{url}' -d '{json.dumps(_QUESTION)}'"


class DemoBackend(Service):
    """
    The demo backend; it listens from `startService` to `stopService`.

    Stop it after its clients: running responses are aborted.

    :param reactor: the clock, and the source of the listening port
    :param prefill: seconds from a request to the first token
    :param pace: seconds between two tokens
    """

    def __init__(self, reactor: Any, *, prefill: float = 1.5, pace: float = 0.03) -> None:
        self._reactor = reactor
        self._port: Any = None
        site = _QuietSite(  # type: ignore[no-untyped-call]
            _Api(reactor, prefill, pace), reactor=reactor
        )
        # The wrapper lists the connections: closing the port alone would leave them open.
        self._connections = WrappingFactory(site)
        self._connections.noisy = False

    @property
    def url(self) -> str:
        """The base URL of the running server, such as `http://127.0.0.1:40613`."""
        if self._port is None:
            raise RuntimeError("The demo backend has no URL before startService().")
        return f"http://127.0.0.1:{self._port.getHost().port}"

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._port = self._reactor.listenTCP(0, self._connections, interface="127.0.0.1")

    def stopService(self) -> Deferred[None]:
        """Close the port and all connections. The Deferred fires when the port is closed."""
        super().stopService()  # type: ignore[no-untyped-call]
        for connection in list(self._connections.protocols):
            connection.transport.abortConnection()
        port, self._port = self._port, None
        return maybeDeferred(port.stopListening if port else lambda: None)


class _QuietSite(Site):
    noisy = False

    def log(self, request: Any) -> None:
        """Write no access log: blockops has one."""


class _Api(Resource):
    """The routes of the demo backend, with JSON errors for all others."""

    isLeaf = True

    def __init__(self, clock: Any, prefill: float, pace: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._clock = clock
        self._prefill = prefill
        self._pace = pace
        self._answer_numbers = itertools.count()

    def render(self, request: Request) -> bytes | int:
        try:
            return self._route(request)
        except ApiError as error:
            return _json_response(request, error.body(), error.status)

    def _route(self, request: Request) -> bytes | int:
        match (request.method, request.path):
            case (b"POST", b"/v1/chat/completions"):
                return self._chat(request)
            case (b"GET", b"/v1/models"):
                return _json_response(request, _encode(_MODELS))
        raise ApiError(404, "The demo backend has only /v1/chat/completions and /v1/models.")

    def _chat(self, request: Request) -> int:
        chat_request = _read_body(request)
        completion = _Completion(chat_request, next(self._answer_numbers))
        respond = self._send_stream if chat_request.get("stream") else self._send_json
        work = Deferred.fromCoroutine(respond(request, completion))
        request.notifyFinish().addErrback(lambda _disconnected: work.cancel())
        work.addErrback(lambda failure: failure.trap(CancelledError))
        work.addErrback(lambda failure: _log.failure("The demo backend failed", failure))
        return NOT_DONE_YET

    async def _send_json(self, request: Request, completion: _Completion) -> None:
        await deferLater(self._clock, self._prefill + self._pace * len(completion.tokens))
        request.write(_json_response(request, _encode(completion.as_object())))
        request.finish()

    async def _send_stream(self, request: Request, completion: _Completion) -> None:
        await deferLater(self._clock, self._prefill)
        request.setHeader(b"content-type", b"text/event-stream")
        gate = _Gate()
        request.registerProducer(gate, streaming=True)
        for event in completion.events():
            await deferLater(self._clock, self._pace)
            await gate.ready()
            request.write(event)
        request.unregisterProducer()
        request.finish()


@implementer(IPushProducer)
class _Gate:
    """Lets a stream wait before each event until the client has read enough (backpressure)."""

    def __init__(self) -> None:
        self._open: Deferred[None] = succeed(None)

    def ready(self) -> Deferred[None]:
        """Return a Deferred that fires as soon as the client can accept more."""
        return self._open

    def pauseProducing(self) -> None:
        if self._open.called:
            self._open = Deferred()

    def resumeProducing(self) -> None:
        if not self._open.called:
            self._open.callback(None)

    def stopProducing(self) -> None:
        """Do nothing: `notifyFinish` fires too, and cancels the response."""


class _Completion:
    """One answer, as a `chat.completion` or as a stream of `chat.completion.chunk`."""

    def __init__(self, request: Mapping[str, Any], answer_number: int) -> None:
        text = split_tokens(reply(request, answer_number))
        limit = _token_limit(request, len(text))
        self.tokens = text[:limit]
        self._finish_reason = "length" if limit < len(text) else "stop"
        self._prompt_tokens = sum(
            len(split_tokens(text_of(message))) for message in request["messages"]
        )
        options = request.get("stream_options")
        self._includes_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        self._envelope = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": request.get("model") or MODEL,
        }

    def as_object(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(self.tokens)}
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        return self._envelope | {
            "object": "chat.completion",
            "choices": [choice],
            "usage": self._usage(),
        }

    def events(self) -> Iterator[bytes]:
        """Yield the events of the stream, as bytes."""
        yield self._event([_choice({"role": "assistant", "content": ""})])
        for token in self.tokens:
            yield self._event([_choice({"content": token})])
        yield self._event([_choice({}, self._finish_reason)])
        if self._includes_usage:
            yield self._event([], usage=self._usage())
        yield b"data: [DONE]\n\n"

    def _event(self, choices: list[dict[str, Any]], **fields: Any) -> bytes:
        chunk = self._envelope | {"object": "chat.completion.chunk", "choices": choices} | fields
        return b"data: " + _encode(chunk) + b"\n\n"

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": len(self.tokens),
            "total_tokens": self._prompt_tokens + len(self.tokens),
        }


def _choice(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def _token_limit(request: Mapping[str, Any], length: int) -> int:
    """Return the number of tokens, at most `length`, that the request allows."""
    limit = request.get("max_completion_tokens", request.get("max_tokens"))
    return min(limit, length) if isinstance(limit, int) and limit > 0 else length


def _read_body(request: Request) -> dict[str, Any]:
    """
    Return the body of a chat request.

    :raises ApiError: 400, it is not a JSON object with a list of messages
    """
    try:
        body: Any = json.load(request.content)  # type: ignore[arg-type]  # complete by now
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The body is JSON, but not an object.")
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise ApiError(400, "`messages` must be a list of objects.", param="messages")
    return body


def _encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _json_response(request: Request, body: bytes, status: int = 200) -> bytes:
    request.setResponseCode(status)
    request.setHeader(b"content-type", b"application/json")
    request.setHeader(b"content-length", str(len(body)).encode())
    return body
