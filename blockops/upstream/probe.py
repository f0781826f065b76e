"""
What the backend can do besides answering: count tokens, and forget its prompt cache.

It is asked once, when it is first needed. What it cannot do is not asked for again; that it was out
of reach is no answer, and is asked again after a while. Nothing here ever fails a request.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from blockops.api.lenient_json import UNREADABLE
from blockops.errors import ApiError
from blockops.proxy.relay import TooLarge, collect
from blockops.upstream.client import Upstream

#: Seconds that one question may take: less than a purge may, so that its failure is known there.
PATIENCE = 4.0
#: Seconds after which a backend that was out of reach is asked again.
AGAIN = 60.0
#: Bytes of an answer that are read: the tokens of a long message, as a list of numbers.
MAX_ANSWER = 16 * 1024 * 1024
#: Statuses that say that there is no such route.
NO_ROUTE = frozenset({404, 405, 501})
#: Slots of llama.cpp that are emptied at most.
MAX_SLOTS = 64

#: What `owned_by` says in `/v1/models` -> the call that empties the prompt cache.
FORGETTING = {
    "vllm": "POST /reset_prefix_cache",
    "sglang": "POST /flush_cache",
    "vllm-mlx": "DELETE /v1/cache",
}
LLAMACPP = "llamacpp"
#: Tried where nothing is known of the backend.
USUAL = "DELETE /v1/cache"


class Answer(NamedTuple):
    """
    What the backend answered, whole.

    :ivar server: what it calls itself in the header of that name
    """

    status: int
    body: bytes
    server: str = ""

    @property
    def good(self) -> bool:
        return self.status < HTTPStatus.MULTIPLE_CHOICES

    @property
    def broken(self) -> bool:
        """Say whether this tells something of now, and nothing of what the backend can do."""
        return self.status >= HTTPStatus.INTERNAL_SERVER_ERROR and self.status not in NO_ROUTE

    def read(self, kind: type[Any]) -> Any:
        """Return the body as a `kind`; None if it is none."""
        try:
            return msgspec.json.decode(self.body, type=kind)
        except UNREADABLE:
            return None


class Asking:
    """Asks the backend something small, and does not wait for long."""

    def __init__(self, clock: IReactorTime, upstream: Upstream) -> None:
        self._clock = clock
        self._upstream = upstream

    def ask(
        self, call: str, body: Any = None, patience: float = PATIENCE
    ) -> Deferred[Answer | None]:
        """
        Return the answer; None if there is none within `patience` seconds.

        :param call: a method and a path
        """
        asked = Deferred.fromCoroutine(self._asked(call, body))

        def cancel(outcome: Deferred[Answer | None]) -> None:
            # Said before the connection is dropped, which fails in ways that tell nothing of why.
            outcome.errback(defer.CancelledError())
            asked.cancel()

        outcome: Deferred[Answer | None] = Deferred(cancel)
        asked.addTimeout(patience, self._clock)
        asked.addErrback(_no_answer)
        asked.addCallbacks(
            lambda answer: None if outcome.called else outcome.callback(answer),
            lambda failure: None if outcome.called else outcome.errback(failure),
        )
        return outcome

    async def _asked(self, call: str, body: Any) -> Answer:
        method, _, target = call.partition(" ")
        headers = Headers({"Content-Type": ["application/json"]}) if body is not None else None
        data = None if body is None else msgspec.json.encode(body)
        response: IResponse = await self._upstream.request(method, target, headers, data)
        said, _ = await collect(response, MAX_ANSWER, lambda _: None)
        server = response.headers.getRawHeaders(b"Server", [b""])[0]
        return Answer(response.code, said, server.decode("latin-1"))


def _no_answer(failure: Failure) -> None:
    """Take a failure for no answer; those of blockops itself go on."""
    failure.trap(ApiError, TooLarge, defer.TimeoutError)


class _Counted(msgspec.Struct):
    """llama.cpp's server has `tokens` alone, vLLM and SGLang have both."""

    count: int | None = None
    tokens: list[msgspec.Raw] | None = None


class Tokenizer:
    """The backend's own, where it lets others use it: `POST /tokenize`."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, asking: Asking) -> None:
        self._clock = clock
        self._asking = asking
        self._present: bool | None = None
        self._not_before = 0.0

    async def count(self, text: str, model: str | None) -> int | None:
        """Return how many tokens `text` has for `model`; None if the backend does not tell."""
        if self._present is False or self._clock.seconds() < self._not_before:
            return None
        # llama.cpp's server reads `content`, vLLM and SGLang read `prompt`.
        question = {"content": text, "prompt": text, "add_special_tokens": False}
        if model is not None:
            question["model"] = model
        try:
            answer = await self._asking.ask("POST /tokenize", question)
        except UnicodeEncodeError:
            return None  # half a surrogate pair
        return self._understood(answer, model)

    def _understood(self, answer: Answer | None, model: str | None) -> int | None:
        if answer is None or answer.broken:
            self._not_before = self._clock.seconds() + AGAIN
            return None
        if model and not answer.good and model.encode("utf-8", "replace") in answer.body:
            return None  # it does not know the model: that is no word about the route
        counted = answer.read(_Counted) if answer.good else None
        tokens = None
        if counted is not None:
            tokens = counted.count if counted.tokens is None else len(counted.tokens)
        if self._present is None:
            self._present = tokens is not None
            how = "by its /tokenize" if self._present else "by estimate: it has no /tokenize"
            self._log.info("The backend's tokens are counted {how}", how=how)
        return tokens


class _Model(msgspec.Struct):
    owned_by: str = ""


class _Models(msgspec.Struct):
    data: list[_Model] = []


class _Props(msgspec.Struct):
    total_slots: int = 1


class _Outcome(msgspec.Struct):
    success: bool = True


class Forgetting:
    """
    Makes the backend forget its prompt cache.

    :param how: a method and a path; "auto" for the way that the backend's kind has, "off"
    :ivar done: how often it forgot
    :ivar failed: how often it did not
    """

    _log = Logger()

    def __init__(self, asking: Asking, how: str) -> None:
        self._asking = asking
        self._how = how
        self._calls: list[str] | None = {"auto": None, "off": []}.get(how, [how])
        self.done = 0
        self.failed = 0

    def possible(self) -> bool:
        """Say whether there is a way, as far as is known."""
        return self._calls != []

    async def forget(self) -> None:
        """Let the backend forget. Failures are counted and written to the daemon's log."""
        calls = await self.calls()
        for call in calls:
            if not await self._forgotten(call):
                self.failed += 1
                return
        self.done += bool(calls)

    async def calls(self) -> list[str]:
        """Return what to call for it, each a method and a path; none if the backend is silent."""
        if self._calls is None:
            self._calls = await self._find_out()
        return self._calls or []

    async def _find_out(self) -> list[str] | None:
        """Return the calls of the backend's kind; None if it does not answer now."""
        answer = await self._asking.ask("GET /v1/models")
        if answer is None or answer.broken:
            self.failed += 1
            self._log.warn("The backend did not answer: its prompt cache stays")
            return None
        models = answer.read(_Models)
        owners = {model.owned_by for model in models.data} if models is not None else set()
        if LLAMACPP in owners:
            return await self._slots()
        known = [FORGETTING[owner] for owner in owners if owner in FORGETTING]
        return known[:1] or [USUAL]

    async def _slots(self) -> list[str]:
        answer = await self._asking.ask("GET /props")
        props = answer.read(_Props) if answer is not None else None
        slots = min(props.total_slots, MAX_SLOTS) if props is not None else 1
        return [f"POST /slots/{slot}?action=erase" for slot in range(slots)]

    async def _forgotten(self, call: str) -> bool:
        answer = await self._asking.ask(call)
        if answer is None:
            self._log.warn("{call} was not answered: the prompt cache stays", call=call)
            return False
        if answer.status in NO_ROUTE:
            self._calls = []
            self._log.info(
                "The backend has no {call} ({status}): its prompt cache stays when a session "
                "begins anew. --cache-reset names another call, or turns this off.",
                call=call,
                status=answer.status,
            )
            return False
        if not forgot(answer):
            self._log.warn("{call} failed ({status})", call=call, status=answer.status)
            return False
        return True


def forgot(answer: Answer) -> bool:
    """Say whether `answer` to such a call means that the cache is empty now."""
    outcome = answer.read(_Outcome)
    return answer.good and (outcome is None or outcome.success)
