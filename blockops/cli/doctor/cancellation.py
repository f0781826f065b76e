"""
Whether a backend notices that its client has left in the middle of a whole answer.

All are told: the connection closes. Some look, others generate to the end for nobody, and whoever
asks next waits for it. Streams are noticed by all backends that are known.
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
from blockops.upstream.probe import Answer, Asking

#: What takes a model long. Some servers can make sure that it does not stop by itself.
LONG: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Count from one to one thousand, in words."}],
    "max_tokens": 16_000,
    "temperature": 0,
    "ignore_eos": True,
}
#: The same for servers that find fault with that.
MILD: dict[str, Any] = {"messages": LONG["messages"], "max_tokens": 2000}
CHAT = "POST /v1/chat/completions"
#: Seconds for which a long answer is waited for; what takes longer is surely long enough.
LONG_ENOUGH = 9.0
#: Seconds below which an answer is over too soon to see whether anybody looked.
TOO_SHORT = 5.0
#: Seconds after which an answer is surely under way.
BEGUN = 0.5
#: Seconds between two looks. llama.cpp looks for its clients when nothing has happened for a
#: second: who asked it more often how busy it is would see it go on.
LOOK = 2.0
#: Seconds for which the work of a process is measured.
MEASURED = 0.25
#: Fits a backend that does not notice.
WISH = ("--whole-as-stream",)

#: What is known of those that were watched with a model that writes for long enough.
KNOWN = {
    "llama.cpp": "llama.cpp is known to notice only while it works for nobody else",
    "mlx-lm": "mlx-lm is known to generate to the end",
}

#: Says how busy the backend is; None when that cannot be told now.
Load = Callable[[], Awaitable[float | None]]


class _Slot(msgspec.Struct):
    is_processing: bool = False


class _Status(msgspec.Struct):
    num_running: int = 0
    num_waiting: int = 0


#: A line of Prometheus' text format, its labels left out.
_RUNNING = re.compile(rb"^vllm:num_requests_running(?:\{.*\})? ([0-9.]+)", re.MULTILINE)


def _slots(answer: Answer) -> float | None:
    slots = answer.read(list[_Slot])
    return None if slots is None else sum(slot.is_processing for slot in slots)


def _status(answer: Answer) -> float | None:
    status = answer.read(_Status)
    return None if status is None else status.num_running + status.num_waiting


def _metrics(answer: Answer) -> float | None:
    running = re.findall(
        rb"^vllm:num_requests_running(?:\{.*\})? ([0-9.]+)", answer.body, re.MULTILINE
    )
    return sum(map(float, running)) if running else None


#: Where servers tell how many requests they work at, and how to read it.
COUNTERS: dict[str, tuple[str, Callable[[Answer], float | None]]] = {
    "llama.cpp": ("GET /slots", _slots),
    "vllm-mlx": ("GET /v1/status", _status),
    "vLLM": ("GET /metrics", _metrics),
}


def counted(asking: Asking, kind: str) -> Load:
    """Return how many requests a server of this `kind` works at: it tells."""
    call, read = COUNTERS[kind]

    async def load() -> float | None:
        answer = await asking.ask(call)
        return read(answer) if answer is not None and answer.good else None

    return load


def burnt(clock: IReactorTime, port: int | None) -> Load:
    """
    Return how many CPUs the process is busy on that listens on `port`.

    :param port: of this machine; None for a backend on another one
    """

    async def load() -> float | None:
        processes = [] if port is None else _listening(port)
        before = _seconds(processes)
        await deferLater(clock, MEASURED)
        return (_seconds(processes) - before) / MEASURED if processes else None

    return load


def _listening(port: int) -> list[psutil.Process]:
    """Return the processes that listen on `port`, and their children, as far as one may know."""
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


def _seconds(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


class _Unclear(Exception):
    """Why it cannot be told."""


class Leaving:
    """
    Leaves in the middle of an answer, and looks whether the backend goes on.

    :param load: how busy the backend is
    :param counts: that it is the number of requests which the backend works at
    :param kind: the server's name
    """

    def __init__(
        self,
        clock: IReactorTime,
        asking: Asking,
        model: str | None,
        load: Load,
        *,
        counts: bool,
        kind: str = "",
    ) -> None:
        self._clock = clock
        self._asking = asking
        self._model: dict[str, Any] = {} if model is None else {"model": model}
        self._request = LONG
        self._load = load
        self._counts = counts
        self._known = KNOWN.get(kind, "")

    async def finding(self) -> Finding:
        """Return whether the backend noticed."""
        try:
            alone = await self._idle_after()
            if alone is None:
                return _goes_on()
            beside = await self._idle_beside() if self._counts else alone
        except _Unclear as why:
            return _cannot_tell(str(why), self._known)
        return _noticed(alone) if beside is not None else _noticed_alone(alone)

    async def _idle_after(self) -> float | None:
        """
        Return how many seconds after a client has left the backend is idle.

        :return: None if it generates to the end
        :raises _Unclear: that cannot be told
        """
        before = await self._load()
        if before is None:
            raise _Unclear("nothing shows how busy it is")
        busy, took = await self._watched()
        if busy is None or busy <= before:
            raise _Unclear("it does not look busy while it answers")
        idle = before + (busy - before) / 3
        if took >= LONG_ENOUGH:  # the end of our patience was the client's leaving
            return await self._falls_to(idle, LONG_ENOUGH)
        await self._ask(took / 4)
        return await self._falls_to(idle, took * 3 / 4)

    async def _watched(self) -> tuple[float | None, float]:
        """Return how busy the backend is with a long answer, and how many seconds that takes."""
        began = self._clock.seconds()
        asked = self._ask(LONG_ENOUGH)
        await deferLater(self._clock, BEGUN)
        busy, answer = await self._load(), await asked
        took = self._clock.seconds() - began
        if answer is not None and not answer.good and self._request is LONG:
            self._request = MILD
            return await self._watched()
        if took < TOO_SHORT:
            raise _Unclear("its answers end too soon")
        return busy, took

    async def _idle_beside(self) -> float | None:
        """Return the same while another client reads a stream."""
        stream = {**self._request, **self._model, "stream": True}
        other = self._asking.ask(CHAT, stream, 4 * LONG_ENOUGH)
        try:
            await deferLater(self._clock, BEGUN)
            return await self._idle_after()
        finally:
            other.addErrback(lambda failure: failure.trap(CancelledError) and None)
            other.cancel()

    def _ask(self, patience: float) -> Deferred[Answer | None]:
        """Ask for a long answer, and leave after `patience` seconds."""
        return self._asking.ask(CHAT, {**self._request, **self._model}, patience)

    async def _falls_to(self, idle: float, within: float) -> float | None:
        """Return after how many seconds the load is `idle`; None if it takes most of `within`."""
        left = self._clock.seconds()
        while (passed := self._clock.seconds() - left) < within * 2 / 3:
            await deferLater(self._clock, LOOK)
            load = await self._load()
            if load is not None and load <= idle:
                return passed + LOOK
        return None


def _noticed(seconds: float) -> Finding:
    return Finding(
        topic="leaving",
        verdict="noticed",
        text=f"It stops within {seconds:.1f} s when the client of a whole answer has left.",
    )


def _noticed_alone(seconds: float) -> Finding:
    return Finding(
        topic="leaving",
        verdict="noticed alone",
        text=f"It stops within {seconds:.1f} s when the client of a whole answer has left, but "
        "only while it works for nobody else; asked for a stream it would always notice.",
        options=WISH,
    )


def _goes_on() -> Finding:
    return Finding(
        topic="leaving",
        verdict="goes on",
        text="It generates a whole answer to its end although the client has left; asked for a "
        "stream it would notice.",
        options=WISH,
    )


def _cannot_tell(why: str, known: str) -> Finding:
    text = f"Whether it notices that a client has left cannot be told: {why}."
    if not known:
        return Finding(topic="leaving", verdict="cannot tell", text=text)
    return Finding(
        topic="leaving",
        verdict="cannot tell",
        text=f"{text} {known}; asked for a stream it would notice.",
        options=WISH,
    )
