"""Backends that answer the doctor's questions from a script."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from blockops.upstream.probe import PATIENCE, Answer, Asking

CHAT = "POST /v1/chat/completions"

Reply = Answer | None | Callable[[Any], Answer | None]


def said(body: Any, status: int = 200, server: str = "") -> Answer:
    """Return an answer with `body` as its JSON."""
    return Answer(status, json.dumps(body).encode(), server)


def completion(
    text: str | None = "OK.", finish: str = "stop", calls: Any = None, **usage: Any
) -> dict[str, Any]:
    """Return a `chat.completion`."""
    message = {"role": "assistant", "content": text}
    if calls is not None:
        message["tool_calls"] = calls
    whole = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }
    return whole | ({"usage": usage} if usage else {})


class Scripted(Asking):
    """
    Answers at once, by the call.

    :param replies: call -> its answer, or what makes it of the body; 404 for others
    :ivar asked: the calls and their bodies, in order
    """

    def __init__(self, replies: dict[str, Reply]) -> None:
        self.replies = replies
        self.asked: list[tuple[str, Any]] = []

    def ask(
        self, call: str, body: Any = None, patience: float = PATIENCE
    ) -> Deferred[Answer | None]:
        self.asked.append((call, body))
        reply = self.replies.get(call, Answer(404, b"{}"))
        return succeed(reply(body) if callable(reply) else reply)


class Slow(Asking):
    """
    Takes its time for each answer, and goes on for a while when its client has left.

    :param length: seconds that an answer takes
    :param notices: seconds after which it stops for a client that has left; None for never
    :param alone: it does so only while nobody else is served
    :ivar asked: the bodies
    """

    def __init__(
        self,
        clock: Clock,
        length: float = 60.0,
        notices: float | None = 0.5,
        *,
        alone: bool = False,
        refuses: Callable[[Any], bool] = lambda _: False,
    ) -> None:
        self.clock = clock
        self.length = length
        self.notices = notices
        self.alone = alone
        self.refuses = refuses
        self.running = 0
        self.asked: list[Any] = []

    async def load(self) -> float | None:
        return float(self.running)

    def ask(
        self, call: str, body: Any = None, patience: float = PATIENCE
    ) -> Deferred[Answer | None]:
        assert call == CHAT
        self.asked.append(body)
        if self.refuses(body):
            return succeed(said({"error": {"message": "no"}}, 400))
        self.running += 1
        began = self.clock.seconds()
        answered: Deferred[Answer | None] = Deferred(lambda _: self._left(began, body))
        if self.length <= patience:
            self.clock.callLater(self.length, self._done, answered)
        else:
            self.clock.callLater(patience, self._too_long, answered, began, body)
        return answered

    def _done(self, answered: Deferred[Answer | None]) -> None:
        self.running -= 1
        answered.callback(said(completion()))

    def _too_long(self, answered: Deferred[Answer | None], began: float, body: Any) -> None:
        if not answered.called:
            self._left(began, body)
            answered.callback(None)

    def _left(self, began: float, body: Any) -> None:
        rest = began + self.length - self.clock.seconds()
        notices = self.notices is not None and not (self.alone and self.running > 1)
        looks = self.notices if notices and self.notices is not None else rest
        if body.get("stream"):
            looks = 0
        self.clock.callLater(min(rest, looks), self._stop)

    def _stop(self) -> None:
        self.running -= 1
