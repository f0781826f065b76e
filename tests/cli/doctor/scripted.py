"""Backends for the doctor's tests: probes that respond from a script, and one with a clock."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from blockops.upstream.probe import TIMEOUT, BackendProbe, ProbeResponse

CHAT = "POST /v1/chat/completions"

Reply = ProbeResponse | None | Callable[[Any], ProbeResponse | None]


def json_response(body: Any, status: int = 200, server: str = "") -> ProbeResponse:
    return ProbeResponse(status, json.dumps(body).encode(), server)


def completion(
    text: str | None = "OK.", finish_reason: str = "stop", calls: Any = None, **usage: Any
) -> dict[str, Any]:
    """Return a `chat.completion`."""
    message = {"role": "assistant", "content": text}
    if calls is not None:
        message["tool_calls"] = calls
    result = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
    }
    return result | ({"usage": usage} if usage else {})


class ScriptedProbe(BackendProbe):
    """
    Responds at once, from a table.

    :param replies: call -> its response, or a function of the body; 404 for other calls
    :ivar requests: the calls and their bodies, in order
    """

    def __init__(self, replies: dict[str, Reply]) -> None:
        self.replies = replies
        self.requests: list[tuple[str, Any]] = []

    def request(
        self, call: str, body: Any = None, timeout: float = TIMEOUT
    ) -> Deferred[ProbeResponse | None]:
        self.requests.append((call, body))
        reply = self.replies.get(call, ProbeResponse(404, b"{}"))
        return succeed(reply(body) if callable(reply) else reply)


class SlowBackend(BackendProbe):
    """
    Takes time for each long answer, and generates on for a while after a disconnect.

    It reports its running requests as vllm-mlx does, and answers short requests at once if none is
    running, otherwise never.

    :param length: seconds that an answer takes
    :param notices_after: seconds from a disconnect until it stops; None to generate to the end
    :param notices_when_idle: it stops early only if no other request is running
    :param rejects: returns True for a body that gets an error response
    :param status: its response with the running requests, if that is always the same
    :param is_parallel: it answers short requests at once even if others are running
    :ivar bodies: the bodies of all long requests
    """

    def __init__(
        self,
        clock: Clock,
        length: float = 60.0,
        notices_after: float | None = 0.5,
        *,
        notices_when_idle: bool = False,
        rejects: Callable[[Any], bool] = lambda _: False,
        status: ProbeResponse | None = None,
        is_parallel: bool = False,
    ) -> None:
        self.clock = clock
        self.length = length
        self.notices_after = notices_after
        self.notices_when_idle = notices_when_idle
        self.rejects = rejects
        self.status = status
        self.is_parallel = is_parallel
        self.running = 0
        self.bodies: list[Any] = []

    def request(
        self, call: str, body: Any = None, timeout: float = TIMEOUT
    ) -> Deferred[ProbeResponse | None]:
        if call != CHAT:
            return succeed(self.status or json_response({"num_running": self.running}))
        if body["max_tokens"] == 1:
            return self._answer_short(timeout)
        self.bodies.append(body)
        if self.rejects(body):
            return succeed(json_response({"error": {"message": "no"}}, 400))
        self.running += 1
        started = self.clock.seconds()
        response: Deferred[ProbeResponse | None] = Deferred(
            lambda _: self._disconnected(started, body)
        )
        if self.length <= timeout:
            self.clock.callLater(self.length, self._finish, response)
        else:
            self.clock.callLater(timeout, self._timed_out, response, started, body)
        return response

    def _answer_short(self, timeout: float) -> Deferred[ProbeResponse | None]:
        if self.is_parallel or not self.running:
            return succeed(json_response(completion()))
        response: Deferred[ProbeResponse | None] = Deferred()
        self.clock.callLater(timeout, response.callback, None)
        return response

    def _finish(self, response: Deferred[ProbeResponse | None]) -> None:
        self.running -= 1
        response.callback(json_response(completion()))

    def _timed_out(
        self, response: Deferred[ProbeResponse | None], started: float, body: Any
    ) -> None:
        if not response.called:
            self._disconnected(started, body)
            response.callback(None)

    def _disconnected(self, started: float, body: Any) -> None:
        delay = started + self.length - self.clock.seconds()
        is_busy = self.notices_when_idle and self.running > 1
        if body.get("stream"):
            delay = 0
        elif self.notices_after is not None and not is_busy:
            delay = min(delay, self.notices_after)
        self.clock.callLater(delay, self._stop)

    def _stop(self) -> None:
        self.running -= 1
