"""
Examines whether a backend stops generating when the client of a non-streaming response disconnects.

Every backend could notice: the connection closes. Some check it; others generate to the end, and
the next request waits until they are done. All known backends notice it during a stream.

The test sends a request for a long answer, disconnects, and polls the backend's load until it falls
to the idle level. The load is the number of running requests if the backend reports it, and the
test is repeated while another client reads a stream, because llama.cpp notices only while it is
otherwise idle. For other backends the load is 1 while a short request has to wait: this shows the
end of an answer only if the backend processes one request at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from blockops.cli.doctor.chat import ChatProbe
from blockops.cli.doctor.findings import Finding
from blockops.upstream.probe import ProbeResponse

#: A request whose answer takes long: with `ignore_eos`, some servers let no answer end early.
LONG_REQUEST: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Count from one to one thousand, in words."}],
    "max_tokens": 16_000,
    "temperature": 0,
    "ignore_eos": True,
}
#: The same for servers that reject these fields.
MILD_REQUEST: dict[str, Any] = {"messages": LONG_REQUEST["messages"], "max_tokens": 2000}
#: A request that only a busy backend does not answer within `MAX_WAIT` seconds.
SHORT_REQUEST: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Say OK."}],
    "max_tokens": 1,
}
MAX_WAIT = 2.0
#: Seconds after which the test disconnects from a long answer.
ANSWER_TIMEOUT = 9.0
#: Seconds. A shorter answer ends too soon to show whether the disconnect was noticed.
MIN_ANSWER_TIME = 5.0
#: Seconds from a request until its answer has surely begun.
START_DELAY = 0.5
#: Seconds between two polls. llama.cpp checks its clients after a second without any request: more
#: frequent polls would keep it from noticing.
POLL_INTERVAL = 2.0
#: The options for a backend that notices only the disconnect from a stream.
STREAM_OPTIONS = ("--whole-as-stream",)

#: The server's name -> its result with a model that writes for long enough.
KNOWN_RESULTS = {
    "llama.cpp": "llama.cpp is known to notice only while it is otherwise idle",
    "mlx-lm": "mlx-lm is known to generate to the end",
}


class _Slot(msgspec.Struct):
    is_processing: bool = False


class _Status(msgspec.Struct):
    num_running: int = 0
    num_waiting: int = 0


#: A line of Prometheus' text format; the labels are optional.
_RUNNING = re.compile(rb"^vllm:num_requests_running(?:\{.*\})? ([0-9.]+)", re.MULTILINE)


def _read_slots(response: ProbeResponse) -> float | None:
    slots = response.decode(list[_Slot])
    return None if slots is None else sum(slot.is_processing for slot in slots)


def _read_status(response: ProbeResponse) -> float | None:
    status = response.decode(_Status)
    return None if status is None else status.num_running + status.num_waiting


def _read_metrics(response: ProbeResponse) -> float | None:
    running = _RUNNING.findall(response.body)
    return sum(map(float, running)) if running else None


#: For each server that reports its running requests: the call, and a function that reads their
#: number from the response.
RUNNING_REQUESTS: dict[str, tuple[str, Callable[[ProbeResponse], float | None]]] = {
    "llama.cpp": ("GET /slots", _read_slots),
    "vllm-mlx": ("GET /v1/status", _read_status),
    "vLLM": ("GET /metrics", _read_metrics),
}


class _NoResult(Exception):
    """The test has no result; the message is the reason."""


class DisconnectTest:
    """Disconnects during a long answer, and checks whether the backend stops."""

    def __init__(self, clock: IReactorTime, chat: ChatProbe, kind: str) -> None:
        self._clock = clock
        self._chat = chat
        self._kind = kind
        self._request = LONG_REQUEST

    async def finding(self) -> Finding:
        """Run the test and return the result."""
        try:
            seconds = await self._time_to_stop()
            is_always_noticed = (
                self._kind not in RUNNING_REQUESTS
                or seconds is None
                or await self._time_to_stop_beside_stream() is not None
            )
        except _NoResult as reason:
            return self._unknown(str(reason))
        if seconds is None:
            return Finding(
                topic="disconnect",
                verdict="not noticed",
                text="It generates a non-streaming response to the end, although the client has "
                "disconnected. With a stream it stops.",
                options=STREAM_OPTIONS,
            )
        stops = (
            f"It stops within {seconds:.1f} s when the client of a non-streaming response "
            "disconnects"
        )
        if is_always_noticed:
            return Finding(topic="disconnect", verdict="noticed", text=f"{stops}.")
        return Finding(
            topic="disconnect",
            verdict="noticed when idle",
            text=f"{stops}, but only while it serves no other request. With a stream it always "
            "stops.",
            options=STREAM_OPTIONS,
        )

    def _unknown(self, reason: str) -> Finding:
        known = KNOWN_RESULTS.get(self._kind)
        return Finding(
            topic="disconnect",
            verdict="unknown",
            text=f"The test of a client disconnect has no result: {reason}."
            + (f" {known}; with a stream it stops." if known else ""),
            options=STREAM_OPTIONS if known else (),
        )

    async def _load(self) -> float | None:
        if self._kind not in RUNNING_REQUESTS:
            return float(await self._chat.request(SHORT_REQUEST, MAX_WAIT) is None)
        call, read = RUNNING_REQUESTS[self._kind]
        response = await self._chat.probe.request(call)
        return read(response) if response is not None and response.is_success else None

    async def _time_to_stop(self) -> float | None:
        """Return the seconds from a disconnect until the backend stops; None if it does not."""
        idle_load = await self._load()
        if idle_load is None:
            raise _NoResult("its load cannot be read")
        busy_load, duration = await self._measure_answer()
        if busy_load is None or busy_load <= idle_load:
            raise _NoResult("its load does not rise while it answers")
        if duration >= ANSWER_TIMEOUT:  # its timeout has just disconnected
            return await self._wait_until_idle(idle_load, ANSWER_TIMEOUT)
        await self._chat.request(self._request, duration / 4)
        return await self._wait_until_idle(idle_load, duration * 3 / 4)

    async def _measure_answer(self) -> tuple[float | None, float]:
        """Request a long answer; return the load meanwhile and the answer's duration in seconds."""
        started = self._clock.seconds()
        answer = self._chat.request(self._request, ANSWER_TIMEOUT)
        await deferLater(self._clock, START_DELAY)
        busy_load, response = await self._load(), await answer
        duration = self._clock.seconds() - started
        if response is not None and not response.is_success and self._request is LONG_REQUEST:
            self._request = MILD_REQUEST
            return await self._measure_answer()
        if duration < MIN_ANSWER_TIME:
            raise _NoResult("its answers end too soon")
        return busy_load, duration

    async def _time_to_stop_beside_stream(self) -> float | None:
        other = self._chat.request({**self._request, "stream": True}, 4 * ANSWER_TIMEOUT)
        try:
            await deferLater(self._clock, START_DELAY)
            return await self._time_to_stop()
        finally:
            other.addErrback(lambda failure: failure.trap(CancelledError) and None)
            other.cancel()

    async def _wait_until_idle(self, idle_load: float, duration: float) -> float | None:
        # Two thirds of the answer's `duration`: at its end the load falls in any case.
        started = self._clock.seconds()
        while (elapsed := self._clock.seconds() - started) < duration * 2 / 3:
            await deferLater(self._clock, POLL_INTERVAL)
            load = await self._load()
            if load is not None and load <= idle_load:
                return elapsed + POLL_INTERVAL
        return None
