"""
A load generator with minimal CPU use: it records the time of each read and checks the data later.

    echo '{"port": 8080, "mode": "paced", ...}' | python -m benchmarks.load

Reads a `LoadPlan` as JSON from stdin and prints an `Outcome` as JSON. During the measurement it
only receives; the responses are parsed, checked and dated after it.
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
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from benchmarks.mock_backend import SendTimes
from benchmarks.streams import (
    NON_STREAMING,
    Script,
    StreamResult,
    find_body_error,
    find_stream_error,
    request_body,
    text_ends,
)
from benchmarks.usage import NO_USAGE, Usage, cpu_usage, memory_usage

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_STATUS_OK = b"HTTP/1.1 200 "
#: The end of a chunked body. No event of the mock backend ends with these bytes.
_LAST_CHUNK = b"0\r\n\r\n"
_REQUEST_HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Authorization: Bearer sk-bench\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)
_READ_SIZE = 1 << 18
#: Seconds after the last stream in which a proxy closes connections and writes its log.
_CLOSING_TIME = 0.2

#: The reported quantiles.
_MEDIAN, _P99 = 0.5, 0.99


@dataclass
class LoadPlan:
    """
    The requests of one measurement, and the processes whose CPU time is read.

    :param mode: `paced`: all streams at once, measured while all of them run and over their whole
        life; `loop`: one request after the other on each connection until the time is over;
        `idle`: streams without events, held for the time
    :param script: the fields of a `Script`
    :param start_interval: seconds between the starts of two paced streams
    :param seconds: length of the measurement; in a loop, no request is sent later
    :param timeout: seconds until the whole run fails
    :param request_size: approximate length of each request in bytes
    :param proxy_pids: the processes between the load generator and the backend
    :param send_times: path of the file of `SendTimes`
    :param is_translated: whether the target must translate the text of calls
    """

    port: int
    mode: str
    script: tuple[str, int, int, int, int, str, str, int, int]
    connections: int = 1
    start_interval: float = 0.0
    seconds: float = 1.0
    timeout: float = 60.0
    request_size: int = 0
    proxy_pids: list[int] = field(default_factory=list)
    backend_pids: list[int] = field(default_factory=list)
    send_times: str | None = None
    is_translated: bool = False


@dataclass
class Outcome:
    """
    The result of one measurement: times in seconds, memory in bytes.

    :ivar wall: length of the measurement
    :ivar responses: responses that ended during the measurement; in an idle run, the streams held
    :ivar frames: frames that the backend sent during the measurement
    :ivar frames_in_all: frames that it sent in the whole run
    :ivar reads: successful reads from sockets in the whole run
    :ivar proxy: CPU time of the proxy's processes during the measurement
    :ivar load: CPU time of the load generator
    :ivar life: CPU time of the proxy's processes over the whole life of paced streams, from the
        first connection to the end of the last one
    :ivar life_frames: frames that the backend sent in that time
    :ivar latency: median and 99th percentile of the time from a frame's send to its read
    :ivar life_latency: the same over the whole life of the streams
    :ivar first_token: the same of the time from a request to its first event with text
    :ivar checked: number of responses that were checked
    :ivar wrong: number of those that were wrong
    :ivar errors: descriptions of the first few errors
    """

    wall: float = 0.0
    responses: int = 0
    frames: int = 0
    frames_in_all: int = 0
    reads: int = 0
    proxy: Usage = NO_USAGE
    backend: Usage = NO_USAGE
    load: Usage = NO_USAGE
    life: Usage = NO_USAGE
    life_frames: int = 0
    memory_before: int = 0
    memory_after: int = 0
    latency: tuple[float, float] | None = None
    life_latency: tuple[float, float] | None = None
    first_token: tuple[float, float] | None = None
    checked: int = 0
    wrong: int = 0
    errors: list[str] = field(default_factory=list)


class LoadError(Exception):
    """A response that cannot be parsed, or a run that did not end in time."""


class TimedBytes(NamedTuple):
    """Bytes with the time at which the last of them was read."""

    time: float
    data: bytes


class Response:
    """
    A response that is being received.

    :ivar sent_at: when the request was sent
    :ivar reads: the bytes of each read from the socket
    :ivar is_complete: whether the last byte has been received
    """

    def __init__(self, script: Script, sent_at: float) -> None:
        self.script = script
        self.sent_at = sent_at
        self.reads: list[TimedBytes] = []
        self.is_complete = False
        self._head = b""
        # Bytes of the body still to come; 0 for a chunked body, None while the head is incomplete.
        self._missing: int | None = None
        self._tail = b""

    def feed(self, now: float, data: bytes) -> None:
        self.reads.append(TimedBytes(now, data))
        if self._missing is None:
            self._head += data
            self._read_head()
        elif self._missing:
            self._missing -= len(data)
            self.is_complete = self._missing <= 0
        elif len(data) >= len(_LAST_CHUNK):
            self.is_complete = data.endswith(_LAST_CHUNK)
            self._tail = data[-len(_LAST_CHUNK) :]
        else:
            self._tail += data
            self.is_complete = self._tail.endswith(_LAST_CHUNK)

    def _read_head(self) -> None:
        end = self._head.find(b"\r\n\r\n") + 4
        if end < 4:  # noqa: PLR2004 - not found
            return
        length = _CONTENT_LENGTH.search(self._head, 0, end)
        body_size = len(self._head) - end
        self._missing = int(length[1]) - body_size if length else 0
        self._tail = self._head[end:][-len(_LAST_CHUNK) :]
        if length:
            self.is_complete = self._missing <= 0
        else:
            self.is_complete = self._tail.endswith(_LAST_CHUNK)

    def body(self) -> Iterator[TimedBytes]:
        """
        Yield the body in the pieces in which it was read, without HTTP's framing.

        :raises LoadError: the status is not 200, or the framing is invalid
        """
        head, _, body = b"".join(read.data for read in self.reads).partition(b"\r\n\r\n")
        if not head.startswith(_STATUS_OK):
            raise LoadError((head[:40] + b" ... " + body[:200]).decode(errors="replace"))
        is_chunked = _CONTENT_LENGTH.search(head + b"\r\n") is None
        decoder = ChunkedDecoder() if is_chunked else None
        skipped = len(head) + 4
        for read_at, data in self.reads:
            piece, skipped = data[skipped:], max(0, skipped - len(data))
            if piece:
                yield TimedBytes(read_at, decoder.feed(piece) if decoder is not None else piece)


class ChunkedDecoder:
    """Removes the framing of a chunked body; the body may be split anywhere."""

    def __init__(self) -> None:
        self._pending = b""
        self._remaining = 0  # bytes of the chunk, including its line end

    def feed(self, data: bytes) -> bytes:
        """
        Return the decoded bytes of `data`.

        :raises LoadError: a chunk's size is not a hexadecimal number
        """
        data, decoded = self._pending + data, []
        at = 0
        while True:
            if self._remaining > 0:
                decoded.append(data[at : at + max(0, self._remaining - 2)])
                consumed = min(self._remaining, len(data) - at)
                self._remaining -= consumed
                at += consumed
            line_end = data.find(b"\r\n", at) if not self._remaining else -1
            if line_end < 0:
                break
            line = data[at:line_end]
            try:
                self._remaining = int(line.partition(b";")[0], 16) + 2
            except ValueError:
                raise LoadError(f"invalid chunk size: {line[:80]!r}") from None
            at = line_end + 2
        self._pending = data[at:]
        return b"".join(decoded)


def timed_events(response: Response) -> Iterator[TimedBytes]:
    """
    Yield the events of a stream, each with the time at which its last byte was read.

    :raises LoadError: the last event is incomplete, or `Response.body` raises it
    """
    pending = b""
    for read_at, data in response.body():
        *events, pending = (pending + data).split(b"\n\n")
        for event in events:
            yield TimedBytes(read_at, event.strip(b"\n"))
    if pending.strip():
        raise LoadError("the last event is incomplete")


class Connection:
    """
    A keep-alive connection with one request at a time.

    :ivar response: the newest response
    :ivar closed: whether the peer has closed the connection
    """

    def __init__(self, port: int, script: Script, request_size: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.closed = False
        self._script = script
        body = request_body(script, request_size)
        self._request = _REQUEST_HEAD % len(body) + body
        self.response = self.send_request()

    def send_request(self) -> Response:
        self.response = Response(self._script, time.monotonic())
        self.socket.sendall(self._request)
        return self.response


class LoadGenerator:
    """
    Executes a `LoadPlan` and keeps all responses.

    :param send_times: where the backend records its send times
    """

    def __init__(self, plan: LoadPlan, send_times: SendTimes) -> None:
        self._plan = plan
        self._send_times = send_times
        self._script = Script(*plan.script)
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._deadline = time.monotonic() + plan.timeout
        self.responses: list[Response] = []
        self.outcome = Outcome()
        # The part of a paced run in which all streams run.
        self._start = self._end = 0.0
        self._latencies: list[float] = []
        self._life_latencies: list[float] = []
        self._first_tokens: list[float] = []

    def run(self) -> Outcome:
        """
        Execute the plan, check the responses and return the outcome.

        :raises LoadError: the run did not end within the plan's timeout
        """
        modes: dict[str, Callable[[], None]] = {
            "paced": self._run_paced,
            "loop": self._run_loop,
            "idle": self._run_idle,
        }
        modes[self._plan.mode]()
        for connection in self._connections.values():
            connection.socket.close()
        self._epoll.close()
        self._check_responses()
        return self.outcome

    def _connect(self, slot: int) -> None:
        """Open a connection and send its first request."""
        script = self._script._replace(slot=slot)
        connection = Connection(self._plan.port, script, self._plan.request_size)
        self._connections[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket, select.EPOLLIN)
        self.responses.append(connection.response)

    def _receive(self, until: float) -> list[Connection]:
        """Poll once, until `until`; return the connections whose response has ended."""
        ended = []
        wait = min(until, self._deadline) - time.monotonic()
        for descriptor, _ in self._epoll.poll(max(0.0, wait)):
            connection = self._connections[descriptor]
            try:
                data = connection.socket.recv(_READ_SIZE)
            except OSError:
                data = b""
            response = connection.response
            if data:
                response.feed(time.monotonic(), data)
                if response.is_complete:
                    ended.append(connection)
            else:
                connection.closed = True
                self._epoll.unregister(connection.socket)
                ended += [] if response.is_complete else [connection]
        if time.monotonic() > self._deadline:
            raise LoadError(f"not complete within {self._plan.timeout:g} s")
        return ended

    def _receive_until(self, condition: Callable[[], bool], ended: list[Connection]) -> None:
        while not condition():
            ended += self._receive(self._deadline)

    def _read_clocks(self) -> tuple[float, Usage, Usage, Usage]:
        """Return the time, and the CPU times of the proxy, the backend and this process."""
        now, plan = time.monotonic(), self._plan
        proxy, backend = cpu_usage(plan.proxy_pids), cpu_usage(plan.backend_pids)
        return now, proxy, backend, cpu_usage([os.getpid()])

    def _store_usage(self, before: tuple[float, Usage, Usage, Usage]) -> tuple[float, float]:
        """Store the usage since `before`; return the start and the end of the measurement."""
        now = self._read_clocks()
        self.outcome.wall = now[0] - before[0]
        self.outcome.proxy = now[1] - before[1]
        self.outcome.backend = now[2] - before[2]
        self.outcome.load = now[3] - before[3]
        return before[0], now[0]

    def _run_paced(self) -> None:
        ended: list[Connection] = []
        born, life = time.monotonic(), cpu_usage(self._plan.proxy_pids)
        for slot in range(self._plan.connections):
            until = born + slot * self._plan.start_interval
            while time.monotonic() < until:
                ended += self._receive(until)
            self._connect(slot)
            ended += self._receive(0)
        self._receive_until(lambda: all(each.reads for each in self.responses), ended)
        before = self._read_clocks()
        until = before[0] + self._plan.seconds
        while not ended and time.monotonic() < until:
            ended += self._receive(until)
        self._start, self._end = self._store_usage(before)
        self.outcome.frames = self._frames_between(self._start, self._end)
        self._receive_until(lambda: len(ended) == len(self.responses), ended)
        for connection in self._connections.values():
            connection.socket.close()
        time.sleep(_CLOSING_TIME)
        self.outcome.life = cpu_usage(self._plan.proxy_pids) - life
        self.outcome.life_frames = self._frames_between(born, time.monotonic())

    def _frames_between(self, start: float, end: float) -> int:
        slots = range(self._plan.connections)
        return sum(self._send_times.count_between(slot, start, end) for slot in slots)

    def _run_loop(self) -> None:
        for slot in range(self._plan.connections):
            self._connect(slot)
        # The first response of each connection is a warm-up: it is not measured.
        running, warmed_up = self._plan.connections, 0
        while warmed_up < running:
            for connection in self._receive(self._deadline):
                warmed_up += 1
                self._send_next(connection)
        before, first = self._read_clocks(), len(self.responses)
        until = before[0] + self._plan.seconds
        while running:
            for connection in self._receive(self._deadline):
                if time.monotonic() < until:
                    self._send_next(connection)
                else:
                    running -= 1
        self._store_usage(before)
        self.outcome.responses = len(self.responses) - first + self._plan.connections
        self.outcome.frames = self.outcome.responses * self._script.frames

    def _send_next(self, connection: Connection) -> None:
        """Send the next request, on a new connection if the peer has closed this one."""
        if not connection.closed:
            self.responses.append(connection.send_request())
            return
        del self._connections[connection.socket.fileno()]
        connection.socket.close()
        self._connect(connection.response.script.slot)

    def _run_idle(self) -> None:
        plan = self._plan
        self.outcome.memory_before = memory_usage(plan.proxy_pids)
        for slot in range(plan.connections):
            self._connect(slot)
            self._receive(0)
        self._receive_until(lambda: all(map(_has_content, self.responses)), [])
        before = self._read_clocks()
        ended: list[Connection] = []
        until = before[0] + plan.seconds
        while time.monotonic() < until:
            ended += self._receive(until)
        self._store_usage(before)
        self.outcome.memory_after = memory_usage(plan.proxy_pids)
        self.outcome.responses = len(self.responses)
        self.outcome.checked = len(self.responses)
        self.outcome.wrong = len(ended)
        self.outcome.errors = ["an idle stream ended"] * bool(ended)

    def _check_responses(self) -> None:
        """Check all responses, and compute latencies and the time to the first token."""
        if self._plan.mode == "idle":
            return
        for response in self.responses:
            self.outcome.checked += 1
            self.outcome.frames_in_all += response.script.frames
            self.outcome.reads += len(response.reads)
            error = self._find_error(response)
            if error is not None:
                self.outcome.wrong += 1
                self.outcome.errors = [*self.outcome.errors, error][:3]
        self.outcome.latency = _percentiles(self._latencies)
        self.outcome.life_latency = _percentiles(self._life_latencies)
        self.outcome.first_token = _percentiles(self._first_tokens)

    def _find_error(self, response: Response) -> str | None:
        script = response.script
        if not response.is_complete:
            return "the connection was closed before the end"
        try:
            if script.kind == NON_STREAMING:
                return find_body_error(script, b"".join(data for _, data in response.body()))
            result = self._read_stream(response)
        except (LoadError, ValueError, LookupError, TypeError) as error:
            return f"{type(error).__name__}: {error}"
        return find_stream_error(script, result, is_translated=self._plan.is_translated)

    def _read_stream(self, response: Response) -> StreamResult:
        """Read the events of a stream, and add its times to those of the run."""
        result = StreamResult()
        script, frame = response.script, 0
        ends: list[int] = []
        if self._plan.mode == "paced":
            ends = text_ends(script.kind, script.delta_size, script.frames, script.shape)
        received = 0
        for read_at, event in timed_events(response):
            had_text = received > 0
            result.add_event(event)
            received = len(result.reasoning) + len(result.content)
            if received and not had_text:
                self._first_tokens.append(read_at - response.sent_at)
            # The last frame whose text is complete.
            last = bisect_right(ends, received) - 1
            for number in range(frame + 1, last + 1):
                if ends[number] > ends[number - 1]:
                    self._add_latency(self._send_times.get(script.slot, number), read_at)
            frame = max(frame, last)
        return result

    def _add_latency(self, sent_at: float, read_at: float) -> None:
        self._life_latencies.append(read_at - sent_at)
        if self._start <= sent_at < self._end:
            self._latencies.append(read_at - sent_at)


def _has_content(response: Response) -> bool:
    return any(b'"content":' in read.data for read in response.reads)


def _percentiles(values: list[float]) -> tuple[float, float] | None:
    if not values:
        return None
    values.sort()
    return values[int(len(values) * _MEDIAN)], values[int(len(values) * _P99)]


def main() -> None:
    plan = LoadPlan(**json.load(sys.stdin))
    gc.disable()
    try:
        outcome = LoadGenerator(plan, SendTimes(plan.send_times)).run()
    except LoadError as error:
        sys.exit(f"load: {error}")
    json.dump(asdict(outcome), sys.stdout)


if __name__ == "__main__":
    main()
