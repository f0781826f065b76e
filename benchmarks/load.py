"""
A client that costs next to nothing: it asks, notes when which bytes came, and checks them later.

    echo '{"port": 8080, "mode": "paced", ...}' | python -m benchmarks.load

Reads an `Order` as JSON, prints an `Outcome` as JSON. While it measures it only receives; frames
are read, checked and dated when all is over.
"""

from __future__ import annotations

import gc
import json
import os
import re
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from benchmarks.mock_backend import Times
from benchmarks.streams import WHOLE, Heard, Script, complaint, complaint_of_whole, request
from benchmarks.usage import NOTHING, Used, memory, used

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_OK = b"HTTP/1.1 200 "
#: The end of a chunked body. No event of ours ends like this.
_END = b"0\r\n\r\n"
_HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Authorization: Bearer sk-bench\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)
_RECEIVED = 1 << 18

#: Where percentiles are taken.
_MEDIAN, _HIGH = 0.5, 0.99


@dataclass
class Order:
    """
    What to ask for, and of what to read the clocks meanwhile.

    :param mode: `paced`: all streams side by side, measured while all of them run; `loop`: one
        answer behind the other on each connection until the time is over; `idle`: streams that
        say nothing, held for the time
    :param seconds: how long it is measured; in a loop, when the last request is sent
    :param patience: seconds until it is given up
    :param size: about how many bytes each request has
    :param proxy: the processes between us and the backend
    :param backend: its process
    :param times: the file of `Times`
    :param translated: whether calls must come as calls
    """

    port: int
    mode: str
    script: tuple[str, int, int, int, int, str]
    connections: int = 1
    seconds: float = 1.0
    patience: float = 60.0
    size: int = 0
    proxy: list[int] = field(default_factory=list)
    backend: list[int] = field(default_factory=list)
    times: str | None = None
    translated: bool = False


@dataclass
class Outcome:
    """
    What was measured: times in seconds, memory in bytes.

    :ivar wall: how long it was measured
    :ivar responses: answers that ended in that time; in an idle run, streams held
    :ivar frames: frames that the backend sent in that time
    :ivar sent: frames that it sent in the whole run
    :ivar reads: how often something was received, in the whole run
    :ivar late: median and 99th percentile of what passed between a frame's sending and its coming
    :ivar first: the same of what passed between a request and its first event
    :ivar wrong: how many streams were wrong, of `checked`
    :ivar complaints: what was wrong with them, a few
    """

    wall: float = 0.0
    responses: int = 0
    frames: int = 0
    sent: int = 0
    reads: int = 0
    proxy: Used = NOTHING
    backend: Used = NOTHING
    load: Used = NOTHING
    memory_before: int = 0
    memory_after: int = 0
    late: tuple[float, float] | None = None
    first: tuple[float, float] | None = None
    checked: int = 0
    wrong: int = 0
    complaints: list[str] = field(default_factory=list)


class Failed(Exception):
    """The load could not be put on."""


class Piece(NamedTuple):
    """What one read of the socket gave."""

    at: float
    data: bytes


class Answer:
    """
    One answer as it comes.

    :ivar ended: whether its last byte is here
    """

    def __init__(self, script: Script, asked: float) -> None:
        self.script = script
        self.asked = asked
        self.pieces: list[Piece] = []
        self.ended = False
        self._head = b""
        self._missing: int | None = None  # None: the head is not here
        self._tail = b""

    def feed(self, at: float, data: bytes) -> None:
        self.pieces.append(Piece(at, data))
        if self._missing is None:
            self._head += data
            self._read_head()
        elif self._missing:
            self._missing -= len(data)
            self.ended = self._missing <= 0
        elif len(data) >= len(_END):
            self.ended = data.endswith(_END)
            self._tail = data[-len(_END) :]
        else:
            self._tail += data
            self.ended = self._tail.endswith(_END)

    def _read_head(self) -> None:
        end = self._head.find(b"\r\n\r\n") + 4
        if end < 4:  # noqa: PLR2004 - not found
            return
        length = _LENGTH.search(self._head, 0, end)
        body = len(self._head) - end
        self._missing = int(length[1]) - body if length else 0
        self._tail = self._head[end:][-len(_END) :]
        self.ended = self._missing <= 0 if length else self._tail.endswith(_END)

    def body(self) -> Iterator[Piece]:
        """
        Yield the pieces of the body without HTTP's framing.

        :raises Failed: the status is not 200, or the framing is broken
        """
        head, body = b"", b"".join(piece.data for piece in self.pieces)
        head, _, body = body.partition(b"\r\n\r\n")
        if not head.startswith(_OK):
            raise Failed((head[:40] + b" ... " + body[:200]).decode(errors="replace"))
        chunked = _LENGTH.search(head + b"\r\n") is None
        inner = Unchunked() if chunked else None
        skip = len(head) + 4
        for at, data in self.pieces:
            rest, skip = data[skip:], max(0, skip - len(data))
            if rest:
                yield Piece(at, inner.feed(rest) if inner is not None else rest)


class Unchunked:
    """Takes the framing of a chunked body away, wherever it was cut."""

    def __init__(self) -> None:
        self._held = b""
        self._left = 0  # of the chunk, its line end included

    def feed(self, data: bytes) -> bytes:
        """
        Return what of the body is in `data`.

        :raises Failed: this is no chunked body
        """
        data, found = self._held + data, []
        at = 0
        while True:
            if self._left > 0:
                found.append(data[at : at + max(0, self._left - 2)])
                taken = min(self._left, len(data) - at)
                self._left -= taken
                at += taken
            line = data.find(b"\r\n", at) if not self._left else -1
            if line < 0:
                break
            self._left = self._size(data[at:line]) + 2
            at = line + 2
        self._held = data[at:]
        return b"".join(found)

    @staticmethod
    def _size(line: bytes) -> int:
        try:
            return int(line.partition(b";")[0], 16)
        except ValueError:
            raise Failed(f"no chunk: {line[:80]!r}") from None


def events(answer: Answer) -> Iterator[Piece]:
    """Yield the events of a stream with the time when their last byte came."""
    held = b""
    for at, data in answer.body():
        *whole, held = (held + data).split(b"\n\n")
        for event in whole:
            yield Piece(at, event.strip(b"\n"))
    if held.strip():
        raise Failed("an event without its end")


class Connection:
    """
    One kept-alive connection that asks for one answer at a time.

    :ivar answer: the newest
    """

    def __init__(self, port: int, script: Script, size: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.broken = False
        self._script = script
        body = request(script, size)
        self._request = _HEAD % len(body) + body
        self.answer = self.ask()

    def ask(self) -> Answer:
        self.answer = Answer(self._script, time.monotonic())
        self.socket.sendall(self._request)
        return self.answer


class Load:
    """
    Puts the load on, and keeps all answers.

    :param order: what to do
    :param times: what the backend writes its times into
    """

    def __init__(self, order: Order, times: Times) -> None:
        self._order = order
        self._times = times
        self._script = Script(*order.script)
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._given_up = time.monotonic() + order.patience
        self.answers: list[Answer] = []
        self.outcome = Outcome()
        # When all streams of a paced load ran.
        self._begin = self._end = 0.0

    def run(self) -> Outcome:
        """
        Do what was ordered.

        :raises Failed: it does not come to an end in time
        """
        modes: dict[str, Callable[[], None]] = {
            "paced": self._paced,
            "loop": self._loop,
            "idle": self._idle,
        }
        modes[self._order.mode]()
        for each in self._connections.values():
            each.socket.close()
        self._epoll.close()
        self._check()
        return self.outcome

    def _connect(self, slot: int) -> None:
        script = self._script._replace(slot=slot)
        each = Connection(self._order.port, script, self._order.size)
        self._connections[each.socket.fileno()] = each
        self._epoll.register(each.socket, select.EPOLLIN)
        self.answers.append(each.answer)

    def _turn(self, until: float) -> list[Connection]:
        """Receive once, and return the connections whose answer has ended."""
        ended = []
        wait = min(until, self._given_up) - time.monotonic()
        for number, _ in self._epoll.poll(max(0.0, wait)):
            each = self._connections[number]
            try:
                data = each.socket.recv(_RECEIVED)
            except OSError:
                data = b""
            answer = each.answer
            if data:
                answer.feed(time.monotonic(), data)
                if answer.ended:
                    ended.append(each)
            else:
                each.broken = True
                self._epoll.unregister(each.socket)
                ended += [] if answer.ended else [each]
        if time.monotonic() > self._given_up:
            raise Failed(f"not done within {self._order.patience:g} s")
        return ended

    def _until(self, enough: Callable[[], bool], ended: list[Connection]) -> None:
        while not enough():
            ended += self._turn(self._given_up)

    def _mark(self) -> tuple[float, Used, Used, Used]:
        order = self._order
        return time.monotonic(), used(order.proxy), used(order.backend), used([os.getpid()])

    def _measured(self, before: tuple[float, Used, Used, Used]) -> tuple[float, float]:
        """Write down what was used since `before`; return when that was, and now."""
        now = self._mark()
        self.outcome.wall = now[0] - before[0]
        self.outcome.proxy = now[1] - before[1]
        self.outcome.backend = now[2] - before[2]
        self.outcome.load = now[3] - before[3]
        return before[0], now[0]

    def _paced(self) -> None:
        ended: list[Connection] = []
        for slot in range(self._order.connections):
            self._connect(slot)
            ended += self._turn(0)
        self._until(lambda: all(each.pieces for each in self.answers), ended)
        before = self._mark()
        until = before[0] + self._order.seconds
        while not ended and time.monotonic() < until:
            ended += self._turn(until)
        self._begin, self._end = begin, end = self._measured(before)
        slots = range(self._order.connections)
        self.outcome.frames = sum(self._times.between(slot, begin, end) for slot in slots)
        self._until(lambda: len(ended) == len(self.answers), ended)

    def _loop(self) -> None:
        for slot in range(self._order.connections):
            self._connect(slot)
        # The first answers are practice: what is made at the first use is not measured.
        running, practised = self._order.connections, 0
        while practised < running:
            for each in self._turn(self._given_up):
                practised += 1
                self._again(each)
        before, first = self._mark(), len(self.answers)
        until = before[0] + self._order.seconds
        while running:
            for each in self._turn(self._given_up):
                if time.monotonic() < until:
                    self._again(each)
                else:
                    running -= 1
        self._measured(before)
        self.outcome.responses = len(self.answers) - first + self._order.connections
        self.outcome.frames = self.outcome.responses * self._script.frames

    def _again(self, each: Connection) -> None:
        """Ask again on a connection, or on a new one where the peer does not keep it."""
        if not each.broken:
            self.answers.append(each.ask())
            return
        del self._connections[each.socket.fileno()]
        each.socket.close()
        self._connect(each.answer.script.slot)

    def _idle(self) -> None:
        order = self._order
        self.outcome.memory_before = memory(order.proxy)
        for slot in range(order.connections):
            self._connect(slot)
            self._turn(0)
        self._until(lambda: all(_spoken(each) for each in self.answers), [])
        before = self._mark()
        ended: list[Connection] = []
        until = before[0] + order.seconds
        while time.monotonic() < until:
            ended += self._turn(until)
        self._measured(before)
        self.outcome.memory_after = memory(order.proxy)
        self.outcome.responses = len(self.answers)
        self.outcome.checked = len(self.answers)
        self.outcome.wrong = len(ended)
        self.outcome.complaints = ["an idle stream ended"] * bool(ended)

    def _check(self) -> None:
        """Look at all answers: are they right, and when did what come."""
        if self._order.mode == "idle":
            return
        late: list[float] = []
        first: list[float] = []
        for answer in self.answers:
            self.outcome.checked += 1
            self.outcome.sent += answer.script.frames
            self.outcome.reads += len(answer.pieces)
            wrong = self._complaint(answer, late, first)
            if wrong is not None:
                self.outcome.wrong += 1
                self.outcome.complaints = [*self.outcome.complaints, wrong][:3]
        self.outcome.late, self.outcome.first = _percentiles(late), _percentiles(first)

    def _complaint(self, answer: Answer, late: list[float], first: list[float]) -> str | None:
        script = answer.script
        if not answer.ended:
            return "the connection was closed before the end"
        try:
            if script.kind == WHOLE:
                return complaint_of_whole(script, b"".join(data for _, data in answer.body()))
            heard = Heard()
            self._hear(answer, heard, late, first)
        except (Failed, ValueError, LookupError, TypeError) as failure:
            return f"{type(failure).__name__}: {failure}"
        return complaint(script, heard, translated=self._order.translated)

    def _hear(self, answer: Answer, heard: Heard, late: list[float], first: list[float]) -> None:
        """Read the events of a stream, and note when they came."""
        script, frame = answer.script, 0
        dated = self._order.mode == "paced"
        for at, event in events(answer):
            silent = not heard.content
            heard.event(event)
            if silent and heard.content:
                first.append(at - answer.asked)
            whole = len(heard.content) // script.cut if dated else 0
            sent = (self._times.get(script.slot, n) for n in range(frame + 1, whole + 1))
            late += (at - each for each in sent if self._begin <= each < self._end)
            frame = max(frame, whole)


def _spoken(answer: Answer) -> bool:
    return any(b'"content":' in piece.data for piece in answer.pieces)


def _percentiles(values: list[float]) -> tuple[float, float] | None:
    if not values:
        return None
    values.sort()
    return values[int(len(values) * _MEDIAN)], values[int(len(values) * _HIGH)]


def main() -> None:
    order = Order(**json.load(sys.stdin))
    gc.disable()
    try:
        outcome = Load(order, Times(order.times)).run()
    except Failed as failure:
        sys.exit(f"load: {failure}")
    json.dump(asdict(outcome), sys.stdout)


if __name__ == "__main__":
    main()
