"""
The demo backend's HTTP server.

It listens on a loopback port, so that its responses take the same path as a real backend's. It is
as fast as a local model: a pause for the prompt, then one token at a time.
"""

from __future__ import annotations

import itertools
import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from blockops.demo.script import ChatRequest, reply, split_tokens
from blockops.errors import ApiError

MODEL = "demo"

_log = Logger()
_decode = msgspec.json.Decoder(ChatRequest).decode

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

    :param prefill: seconds from a request to the first token
    :param pace: seconds between two tokens
    """

    def __init__(self, reactor: Any, *, prefill: float = 1.5, pace: float = 0.03) -> None:
        self._reactor = reactor
        self._port: Any = None
        api = _Api(reactor, prefill, pace)
        self._site = _QuietSite(api, reactor=reactor)  # type: ignore[no-untyped-call]

    @property
    def url(self) -> str:
        """The base URL of the running server, such as `http://127.0.0.1:40613`."""
        return f"http://127.0.0.1:{self._port.getHost().port}"

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._port = self._reactor.listenTCP(0, self._site, interface="127.0.0.1")

    def stopService(self) -> Deferred[None]:
        super().stopService()  # type: ignore[no-untyped-call]
        return maybeDeferred(self._port.stopListening)


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
        match (request.method, request.path):
            case (b"POST", b"/v1/chat/completions"):
                return self._chat(request)
            case (b"GET", b"/v1/models"):
                return _json_response(request, msgspec.json.encode(_MODELS))
        error = ApiError(404, "The demo backend has only /v1/chat/completions and /v1/models.")
        return _json_response(request, error.body(), error.status)

    def _chat(self, request: Request) -> bytes | int:
        try:
            chat_request = _decode(request.content.read())  # type: ignore[union-attr]
        except (ValueError, RecursionError) as reason:
            error = ApiError(400, f"The demo backend cannot read the request: {reason}")
            return _json_response(request, error.body(), error.status)
        completion = _Completion(chat_request, next(self._answer_numbers))
        respond = self._send_stream if chat_request.stream else self._send_json
        work = Deferred.fromCoroutine(respond(request, completion))
        request.notifyFinish().addErrback(lambda _disconnected: work.cancel())
        work.addErrback(lambda failure: failure.trap(CancelledError))
        work.addErrback(lambda failure: _log.failure("The demo backend failed", failure))
        return NOT_DONE_YET

    async def _send_json(self, request: Request, completion: _Completion) -> None:
        await deferLater(self._clock, self._prefill + self._pace * len(completion.tokens))
        request.write(_json_response(request, msgspec.json.encode(completion.as_object())))
        request.finish()

    async def _send_stream(self, request: Request, completion: _Completion) -> None:
        await deferLater(self._clock, self._prefill)
        request.setHeader(b"content-type", b"text/event-stream")
        for event in completion.events():
            await deferLater(self._clock, self._pace)
            request.write(event)
        request.finish()


class _Completion:
    """One answer, as a `chat.completion` or as a stream of `chat.completion.chunk`."""

    def __init__(self, request: ChatRequest, answer_number: int) -> None:
        tokens = split_tokens(reply(request, answer_number))
        limit = request.max_completion_tokens or request.max_tokens or len(tokens)
        self.tokens = tokens[:limit]
        self._finish_reason = "length" if limit < len(tokens) else "stop"
        self._usage = {
            "prompt_tokens": sum(len(split_tokens(each.text)) for each in request.messages),
            "completion_tokens": len(self.tokens),
        }
        self._usage["total_tokens"] = sum(self._usage.values())
        options = request.stream_options
        self._includes_usage = options is not None and options.include_usage
        self._envelope = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": request.model or MODEL,
        }

    def as_object(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(self.tokens)}
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        fields = {"object": "chat.completion", "choices": [choice], "usage": self._usage}
        return self._envelope | fields

    def events(self) -> Iterator[bytes]:
        yield self._event(_choice({"role": "assistant", "content": ""}))
        for token in self.tokens:
            yield self._event(_choice({"content": token}))
        yield self._event(_choice({}, self._finish_reason))
        if self._includes_usage:
            yield self._event(usage=self._usage)
        yield b"data: [DONE]\n\n"

    def _event(self, *choices: dict[str, Any], **fields: Any) -> bytes:
        chunk = self._envelope | {"object": "chat.completion.chunk", "choices": choices} | fields
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _choice(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def _json_response(request: Request, body: bytes, status: int = 200) -> bytes:
    request.setResponseCode(status)
    request.setHeader(b"content-type", b"application/json")
    request.setHeader(b"content-length", str(len(body)).encode())
    return body
