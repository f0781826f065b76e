"""
Examines whether a backend stops generating when the client of a non-streaming response disconnects.

Every backend could notice: the connection closes. Some check it; others generate to the end, and
the next request waits until they are done. All known backends notice it during a stream.

The test sends a request for a long answer, disconnects, and polls the backend's load until it falls
to the idle level. The load is the number of running requests if the backend reports it, otherwise
the CPU use of its process. If the number is reported, the test is repeated while another client
reads a stream, because llama.cpp notices only while it is otherwise idle.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import psutil
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from blockops.cli.doctor.findings import Finding
from blockops.upstream.probe import BackendProbe, ProbeResponse

#: A request whose answer takes long: with `ignore_eos`, some servers let no answer end early.
LONG_REQUEST: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Count from one to one thousand, in words."}],
    "max_tokens": 16_000,
    "temperature": 0,
    "ignore_eos": True,
}
#: The same for servers that reject these fields.
SHORT_REQUEST: dict[str, Any] = {"messages": LONG_REQUEST["messages"], "max_tokens": 2000}
CHAT = "POST /v1/chat/completions"
#: Seconds after which the test disconnects from a long answer.
ANSWER_TIMEOUT = 9.0
#: Seconds. A shorter answer ends too soon to show whether the disconnect was noticed.
MIN_ANSWER_TIME = 5.0
#: Seconds from a request until its answer has surely begun.
START_DELAY = 0.5
#: Seconds between two polls. llama.cpp checks its clients after a second without any request: more
#: frequent polls would keep it from noticing.
POLL_INTERVAL = 2.0
#: Seconds over which CPU use is measured.
CPU_INTERVAL = 0.25
#: The options for a backend that notices only the disconnect from a stream.
STREAM_OPTIONS = ("--whole-as-stream",)

#: The server's name -> its result with a model that writes for long enough.
KNOWN_RESULTS = {
    "llama.cpp": "llama.cpp is known to notice only while it is otherwise idle",
    "mlx-lm": "mlx-lm is known to generate to the end",
}

#: A function that returns the backend's load, or None if it cannot be read now.
LoadMeter = Callable[[], Awaitable[float | None]]


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


def make_request_meter(probe: BackendProbe, kind: str) -> LoadMeter:
    """Return a function that requests the number of running requests from a server of `kind`."""
    call, read = RUNNING_REQUESTS[kind]

    async def load() -> float | None:
        response = await probe.request(call)
        return read(response) if response is not None and response.is_success else None

    return load


def make_cpu_meter(clock: IReactorTime, port: int | None) -> LoadMeter:
    """
    Return a function that measures how many CPUs the process listening on `port` uses.

    :param port: a port of this machine; None for a backend elsewhere, whose load is unknown
    """

    async def load() -> float | None:
        processes = [] if port is None else _find_listeners(port)
        before = _cpu_seconds(processes)
        await deferLater(clock, CPU_INTERVAL)
        return (_cpu_seconds(processes) - before) / CPU_INTERVAL if processes else None

    return load


def _find_listeners(port: int) -> list[psutil.Process]:
    """Return the processes that listen on `port` and their children; empty without permission."""
    found: dict[int, psutil.Process] = {}
    try:
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address and address.port == port:
                process = psutil.Process(connection.pid)
                found.update(
                    {each.pid: each for each in [process, *process.children(recursive=True)]}
                )
    except psutil.Error:
        return []
    return list(found.values())


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


class _NoResult(Exception):
    """The test has no result; the message is the reason."""


class DisconnectTest:
    """
    Disconnects during a long answer, and checks whether the backend stops.

    :param measure_load: returns the backend's load
    :param is_reported: the backend reports its load, as a number of requests
    :param kind: the server's name
    """

    def __init__(
        self,
        clock: IReactorTime,
        probe: BackendProbe,
        model: str | None,
        measure_load: LoadMeter,
        *,
        is_reported: bool,
        kind: str = "",
    ) -> None:
        self._clock = clock
        self._probe = probe
        self._model: dict[str, Any] = {} if model is None else {"model": model}
        self._request = LONG_REQUEST
        self._measure_load = measure_load
        self._is_reported = is_reported
        self._known = KNOWN_RESULTS.get(kind, "")

    async def finding(self) -> Finding:
        """Run the test and return the result."""
        try:
            seconds = await self._time_to_stop()
            if seconds is None:
                return _not_noticed()
            is_always_noticed = (
                not self._is_reported or await self._time_to_stop_beside_stream() is not None
            )
        except _NoResult as reason:
            return _unknown(str(reason), self._known)
        return _noticed(seconds) if is_always_noticed else _noticed_when_idle(seconds)

    async def _time_to_stop(self) -> float | None:
        """
        Return the seconds from a disconnect until the backend stops, or None if it does not stop.

        :raises _NoResult: the load does not show whether it stops
        """
        idle_load = await self._measure_load()
        if idle_load is None:
            raise _NoResult("its load cannot be read")
        busy_load, duration = await self._measure_answer()
        if busy_load is None or busy_load <= idle_load:
            raise _NoResult("its load does not rise while it answers")
        threshold = idle_load + (busy_load - idle_load) / 3
        if duration >= ANSWER_TIMEOUT:  # its timeout has just disconnected
            return await self._wait_until_idle(threshold, ANSWER_TIMEOUT)
        await self._request_answer(duration / 4)
        return await self._wait_until_idle(threshold, duration * 3 / 4)

    async def _measure_answer(self) -> tuple[float | None, float]:
        """Request a long answer; return the load meanwhile and the answer's duration in seconds."""
        started = self._clock.seconds()
        answer = self._request_answer(ANSWER_TIMEOUT)
        await deferLater(self._clock, START_DELAY)
        busy_load, response = await self._measure_load(), await answer
        duration = self._clock.seconds() - started
        if response is not None and not response.is_success and self._request is LONG_REQUEST:
            self._request = SHORT_REQUEST
            return await self._measure_answer()
        if duration < MIN_ANSWER_TIME:
            raise _NoResult("its answers end too soon")
        return busy_load, duration

    async def _time_to_stop_beside_stream(self) -> float | None:
        """Return the same as `_time_to_stop`, measured while another client reads a stream."""
        stream = {**self._request, **self._model, "stream": True}
        other = self._probe.request(CHAT, stream, 4 * ANSWER_TIMEOUT)
        try:
            await deferLater(self._clock, START_DELAY)
            return await self._time_to_stop()
        finally:
            other.addErrback(lambda failure: failure.trap(CancelledError) and None)
            other.cancel()

    def _request_answer(self, timeout: float) -> Deferred[ProbeResponse | None]:
        """Request a long answer, and disconnect after `timeout` seconds."""
        return self._probe.request(CHAT, {**self._request, **self._model}, timeout)

    async def _wait_until_idle(self, threshold: float, duration: float) -> float | None:
        """
        Return the seconds until the load is at most `threshold`; None if it stays above.

        :param duration: seconds that the answer would still take; only two thirds of them are
            waited for, because the load falls at the end of the answer in any case
        """
        started = self._clock.seconds()
        while (elapsed := self._clock.seconds() - started) < duration * 2 / 3:
            await deferLater(self._clock, POLL_INTERVAL)
            load = await self._measure_load()
            if load is not None and load <= threshold:
                return elapsed + POLL_INTERVAL
        return None


def _noticed(seconds: float) -> Finding:
    return Finding(
        topic="disconnect",
        verdict="noticed",
        text=f"It stops within {seconds:.1f} s when the client of a non-streaming response "
        "disconnects.",
    )


def _noticed_when_idle(seconds: float) -> Finding:
    return Finding(
        topic="disconnect",
        verdict="noticed when idle",
        text=f"It stops within {seconds:.1f} s when the client of a non-streaming response "
        "disconnects, but only while it serves no other request. With a stream it always stops.",
        options=STREAM_OPTIONS,
    )


def _not_noticed() -> Finding:
    return Finding(
        topic="disconnect",
        verdict="not noticed",
        text="It generates a non-streaming response to the end, although the client has "
        "disconnected. With a stream it stops.",
        options=STREAM_OPTIONS,
    )


def _unknown(reason: str, known: str) -> Finding:
    text = f"The test of a client disconnect has no result: {reason}."
    if not known:
        return Finding(topic="disconnect", verdict="unknown", text=text)
    return Finding(
        topic="disconnect",
        verdict="unknown",
        text=f"{text} {known}; with a stream it stops.",
        options=STREAM_OPTIONS,
    )
