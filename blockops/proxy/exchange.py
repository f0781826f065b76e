"""One request and its answer: its deadlines, its end, and what is known of it for the log."""

# twisted.web.http has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IResponse

from blockops.api.report import Report
from blockops.errors import ApiError
from blockops.operations.traffic_log.records import RequestRecord, ResponseRecord
from blockops.proxy.response_modes import Form, Untouched
from blockops.server.request import IncomingRequest
from blockops.server.response import Downstream
from blockops.settings.table import Settings


class Heard:
    """
    What the backend said, as far as it is kept.

    :param keep: bytes that are kept for the log
    :ivar first: when the first byte of its body came, in seconds of the reactor's clock
    :ivar last: when the last one did
    """

    __slots__ = ("_clock", "_kept", "_room", "first", "last", "size")

    def __init__(self, clock: IReactorTime, keep: int) -> None:
        self._clock = clock
        self._room = keep
        self._kept = bytearray()
        self.size = 0
        self.first: float | None = None
        self.last = 0.0

    def __call__(self, data: bytes) -> None:
        self.last = self._clock.seconds()
        if self.first is None:
            self.first = self.last
        self.size += len(data)
        if self._room > 0:
            self._kept += data[: self._room]
            self._room -= len(data)

    def body(self) -> bytes:
        """Return the beginning of what it said."""
        return bytes(self._kept)


class Lesson(Protocol):
    """What is to be learnt from an answer."""

    def learn(self, report: Report | None) -> None:
        """Learn from an answer that has ended or failed; None if there was none."""


class Logged(Enum):
    """Whether a request stands in the traffic log."""

    NOT_YET = auto()
    YES = auto()
    #: It only asks how blockops is, or what a page may ask.
    NEVER = auto()


class Exchange:
    """
    One request of a client on its way to an answer.

    :ivar id: by which the two records of the traffic log belong together; the client is told it
    :ivar client: where the answer goes
    :ivar target: path and query that the backend is asked for; None for those of the request
    :ivar form: how the answer shows life and failure; whoever works at it sets it
    :ivar heard: takes what the backend says
    :ivar lesson: what is to be learnt from the answer
    :ivar asked: when the backend was asked, in seconds of the reactor's clock; None while queued
    :ivar response: what the backend answered, until its body streams on
    :ivar error: how it failed, if it did
    :ivar heartbeats: how often the client was shown that the answer is on its way
    :ivar logged: whether its request is in the traffic log
    """

    _log = Logger()

    def __init__(self, request: IncomingRequest, clock: IReactorTime, settings: Settings) -> None:
        self.id = secrets.token_hex(8)
        self.request = request
        self.client = Downstream(request, clock)
        self.target: str | None = None
        self.form: Form = Untouched()
        self.heard = Heard(clock, settings.log_body)
        self.report: Report | None = None
        self.lesson: Lesson | None = None
        self.logged = Logged.NOT_YET
        self.began = clock.seconds()
        self.asked: float | None = None
        self.error: ApiError | None = None
        self.response: IResponse | None = None
        self.heartbeats = 0
        self._clock = clock
        self._settings = settings
        self._verdict: ApiError | None = None
        self._uploaded = 0
        self._moved = 0.0
        self._work: Deferred[None] = Deferred()
        # What is put off; None once nothing may be.
        self._later: list[Callable[[], object]] | None = []

    def run(self, work: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        """
        Do `work`, and see to it that the client gets an answer, whatever comes.

        Fires when all is done; never fails. A client that leaves ends the work where it stands.
        """
        self.request.when_lost = self._left
        if self.request.upload is not None:
            self.request.upload.on_failure = self.end
            self.request.upload.remember(self._settings.log_body)
        self._work = Deferred.fromCoroutine(self._deliver(work))
        self._catch_up()
        return self._work

    async def _deliver(self, work: Coroutine[Deferred[Any], Any, None]) -> None:
        try:
            try:
                await work
            finally:
                if self.lesson is not None:
                    self.lesson.learn(self.report)
            self._check_answered()
            if not self.client.settled:
                await self.client.delivered()
        except Exception:  # noqa: BLE001 - the client is told of any
            await self._told(Failure())

    def _check_answered(self) -> None:
        if not self.client.over:
            raise RuntimeError(f"{self.request!r} was left without an answer")

    async def _told(self, failure: Failure) -> None:
        try:
            await self._failed(failure)
        except Exception:  # noqa: BLE001 - there is no way left to tell the client anything
            self._given_up(Failure())

    def streams_on(self) -> None:
        """Keep nothing of what was asked, nor of the answer's head: the rest may take hours."""
        self.request.let_go()
        self.response = None

    def put_off(self, work: Callable[[], object]) -> None:
        """
        Do `work` when this request waits for somebody for the first time, or has ended.

        That is mostly the backend, which then has the request and reads it: so nothing that only
        the log or the answer needs holds back the first token.
        """
        if self._later is None:
            work()
        else:
            self._later.append(work)

    def _catch_up(self) -> None:
        """Do what was put off."""
        later, self._later = self._later, None
        try:
            for work in later or ():
                work()
        except Exception:  # noqa: BLE001 - as of all that is done for the request
            self.end(self._mistake(Failure()))

    def ask_again(self) -> None:
        """Forget what the backend said: it is going to be asked another way."""
        self.asked = None
        self.heard = Heard(self._clock, self._settings.log_body)

    def end(self, error: ApiError) -> None:
        """Stop the work, wherever it is, and tell the client `error`."""
        if self._verdict is None:
            self._verdict = error
            self._work.cancel()

    @property
    def address(self) -> str | None:
        """Return where the client is; None behind a Unix socket."""
        return getattr(self.request.getClientAddress(), "host", None)

    def came(self, body: bytes = b"", **known: Any) -> RequestRecord:
        """
        Return what the traffic log says of the request.

        :param known: what was understood of it, by the record's names
        """
        self.logged = Logged.YES
        request = self.request
        upload = request.upload
        if upload is not None:
            body = upload.beginning()
        return RequestRecord(
            id=self.id,
            client=self.address,
            key=request.caller or None,
            method=request.method.decode("latin-1"),
            path=request.uri.decode("latin-1"),
            headers={
                name.decode("latin-1").lower(): values[0].decode("latin-1")
                for name, values in request.requestHeaders.getAllRawHeaders()
            },
            size=len(body) if upload is None else upload.size,
            body=body,
            **known,
        )

    def tell(self, notice: str) -> bool:
        """Put a notice into a header of the answer; False if the answer has begun."""
        if self.client.begun:
            return False
        self.request.setHeader("X-Blockops-Notice", notice.encode("ascii", "replace"))
        return True

    def outcome(self) -> ResponseRecord:
        """Return what the traffic log says of the answer, which has ended."""
        report = self.report or Report()
        error = report.error if self.error is None else self.error.message
        return ResponseRecord(
            id=self.id,
            status=self.client.status or None,
            outcome="failed" if error else "client left" if self.client.gone else "done",
            queued_ms=self._since_began(self.asked),
            first_byte_ms=self._since_began(self.heard.first),
            last_byte_ms=self._since_began(self._clock.seconds()),
            bytes_in=self.heard.size,
            bytes_out=self.client.bytes_sent,
            usage=report.usage,
            calls=report.names,
            formats=report.formats,
            finish_reasons=list(report.finish_reasons.values()),
            tally=report.tally,
            error=error,
            body=self.heard.body(),
        )

    def _since_began(self, moment: float | None) -> float | None:
        """Return the milliseconds from the request's beginning to `moment`."""
        return None if moment is None else round(1000 * (moment - self.began), 3)

    def beat(self, now: float) -> None:
        """Show the client that its answer is on its way; end what takes too long."""
        if self.asked is not None and now - self.asked >= self._settings.max_duration:
            self._lasts_too_long()
        if self.client.stalled_since is not None:
            # Nothing is read from the backend meanwhile: that it is silent says nothing of it.
            self.heard.last = now
            idle = self.client.unmoved(now)
            if idle >= self._settings.client_timeout and not self.client.gone:
                self.error = _unread(self._settings.client_timeout)
                self.client.cut()
            return
        if self.client.over:
            return
        late = self._late(now)
        if late is not None:
            self.end(late)
            return
        if self.asked is not None:
            self.form.waiting(self.client, now - self.asked)
        if now - self.client.last_write >= self._settings.heartbeat:
            self.form.heartbeat(self.client)
            self.heartbeats += self.client.last_write == now

    def _lasts_too_long(self) -> None:
        """End an answer at which the backend has been for long enough."""
        if not self.client.over:
            self.end(_endless(self._settings.max_duration))

    def _late(self, now: float) -> ApiError | None:
        if self.asked is None:
            return None
        upload = self.request.upload
        if upload is not None and not upload.complete and self.heard.first is None:
            # The client has deadlines of its own for what it sends. This is for who takes it.
            if upload.size != self._uploaded:
                self._uploaded, self._moved = upload.size, now
            since = max(self.asked, self._moved)
            return self._silent(now - since, "idle", self._settings.idle_timeout)
        if self.heard.first is None:
            return self._silent(now - self.asked, "first-byte", self._settings.first_byte_timeout)
        return self._silent(now - self.heard.last, "idle", self._settings.idle_timeout)

    def _silent(self, seconds: float, which: str, patience: float) -> ApiError | None:
        if seconds < patience:
            return None
        return ApiError(
            504,
            f"The backend sent nothing for {patience:g} seconds. Is it overloaded? "
            f"--{which}-timeout says how long blockops waits.",
            type="server_error",
            code="backend_timeout",
        )

    def _left(self) -> None:
        self.client.lost()
        self._work.cancel()

    def _failed(self, failure: Failure) -> Deferred[None]:
        """
        Tell the client of a failure.

        What a cancelled request to the backend fails with depends on how far it was: why it was
        cancelled is known here alone.
        """
        if self.client.over:
            if not self.client.gone and failure.check(CancelledError, ApiError) is None:
                self._mistake(failure)  # all is said to the client: the log alone can be told
            self.client.cut()
            return self.client.delivered()
        if self._verdict is not None:
            self.error = self._verdict
        elif isinstance(failure.value, ApiError):
            self.error = failure.value
        else:
            self.error = self._mistake(failure)
        self.form.fail(self.client, self.error)
        return self.client.delivered()

    def _mistake(self, failure: Failure) -> ApiError:
        """Write down a failure that is ours, and return what the client is told of it."""
        self._log.failure("A request to {path} failed", failure, path=self.request.path)
        return ApiError(
            500,
            "blockops failed at this request; its log says why. Please report it.",
            type="server_error",
            code="internal_error",
        )

    def _given_up(self, failure: Failure) -> None:
        """Break the connection."""
        if failure.check(CancelledError) is None:
            self._log.failure("A failure could not be told", failure)
        self.client.cut()


def _endless(seconds: float) -> ApiError:
    return ApiError(
        504,
        f"The backend has been at this answer for {seconds:g} seconds. --max-duration says how long"
        " blockops lets it.",
        type="server_error",
        code="backend_timeout",
    )


def _unread(seconds: float) -> ApiError:
    return ApiError(408, f"The client read nothing for {seconds:g} seconds.")
