"""
Feed blockops valid and invalid input of clients and backends, and check its guarantees.

    python -m tests.fuzz.million --count 1000000 --seed 1
    python -m tests.fuzz.million --only backend --case 1/backend/4711

Everything runs in one process: requests and backend responses go as bytes into a whole daemon in
memory, and into each entry point of the core. The guarantees:

- nothing raises an exception that it does not document, and nothing is logged as an error;
- a client's stream has the same bytes however the backend's stream is split;
- it is well-formed, or ends in an error event;
- no request, slot or queue entry remains afterwards.

Failed cases are shown with the command that repeats each of them.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from zope.interface import implementer

from blockops.api.backend_errors import to_error_event, to_error_response
from blockops.api.passthrough import PassThrough
from blockops.api.request import ChatRequest
from blockops.errors import ApiError
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.non_streaming import ResponseTranslator
from blockops.translation.stream import StreamTranslator
from tests.api.requests import response_as_stream, translate_response
from tests.api.strict import InvalidStream, read_strictly
from tests.faults.responses import parse_error, parse_response
from tests.fuzz.mutations import ANSWERS, BODIES, REQUESTS, RESPONSES, mutated, pieces
from tests.translation.merging import join_texts
from tests.world import World

OPTIONS = (
    TranslationOptions(),
    TranslationOptions(reasoning="split"),
    TranslationOptions(translate="always", max_hold=1024),
)
CHAT_REQUESTS = [ChatRequest(body) for body in BODIES]


#: Failures of one target, after which the next target starts.
MAX_FAILURES = 20


def require(condition: object, problem: str) -> None:
    if not condition:
        raise AssertionError(problem)


class Ids:
    """Call ids that are the same in every run."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self) -> str:
        self._count += 1
        return f"call_{self._count}"


# The core.


def parse(dice: random.Random) -> None:
    """Parse a request and build the backend's request."""
    try:
        request = ChatRequest(mutated(BODIES, dice))
        body = request.body({"stream": True})
    except ApiError as error:
        require(400 <= error.status < 500, f"{error.status}")
        parse_error(error.body())
        return
    # Invalid UTF-8 in a message passes through: the backend rejects it.
    json.loads(body.decode("utf-8", "replace"))
    require(all(isinstance(raw, bytes) for raw in request.messages()), "a message is not bytes")


def stream(dice: random.Random) -> None:
    """Translate a stream, whole and in pieces: the output must be the same."""
    data, request, options = (
        mutated(ANSWERS, dice),
        dice.choice(CHAT_REQUESTS),
        dice.choice(OPTIONS),
    )
    truncated, max_event = dice.random() < 0.3, dice.choice((200, 8 << 20))
    outputs = []
    for parts in ([data], pieces(data, dice)):
        translator = StreamTranslator(request, options, max_event=max_event, new_id=Ids())
        outputs.append(
            b"".join(map(translator.receive_data, parts)) + translator.end(is_truncated=truncated)
        )
        require(translator.has_ended, "no end")
        require(translator.receive_data(b"data: {}\n\n") == b"", "output after the end")
    expected, actual = (re.sub(rb"chatcmpl-[0-9a-f]{24}", b"", output) for output in outputs)
    is_same = join_texts(expected) == join_texts(actual)
    require(is_same, f"in pieces the output is {actual!r} instead of {expected!r}")
    check_stream(expected, data)


#: Fields that pass unchanged if the backend sends them, valid or not.
UNCHANGED_FIELDS = (b"tool_calls", b"function_call", b"error")
#: The problems of other input that passes unchanged: values of another type, unknown roles and
#: finish reasons, and the rest of a call that is invalid JSON.
UNCHANGED_PROBLEM = re.compile(
    r"\w+ is |a repeated role in {.*'role': [^']|no role in the first delta {.*'role': |"
    r"index |finish reason |truncated arguments"
)


def check_stream(output: bytes, data: bytes) -> None:
    """Check the client's stream for the backend's `data`."""
    try:
        read_strictly(output, bare=True)
    except (InvalidStream, KeyError, TypeError, AttributeError) as error:
        # Any other exception comes from `read_strictly` itself, for a value of another type.
        is_unchanged = (
            any(field in data for field in UNCHANGED_FIELDS)
            or not isinstance(error, InvalidStream)
            or UNCHANGED_PROBLEM.match(str(error))
        )
        if not is_unchanged:
            raise
        events = output.split(b"\n\n")
        require(
            events[-1] == b"" and all(each.startswith(b"data: ") for each in events[:-1]), "broken"
        )
        require(events[-2] == b"data: [DONE]" or b'"error"' in events[-2], "no end")
        require(b"data: [DONE]" not in events[:-2], "events after the end")


#: A blank line at the end, for every line end of server-sent events.
_BLANK_LINE = re.compile(rb"(\r\n|\r|\n)(\r\n|\r|\n)\Z")


def pass_through(dice: random.Random) -> None:
    """Pass a stream of an unknown format through."""
    data = mutated(ANSWERS, dice)
    passthrough = PassThrough()
    output = b""
    for piece in pieces(data, dice):
        output += passthrough.receive_data(piece)
        heartbeat = passthrough.heartbeat()
        is_between_events = not output or _BLANK_LINE.search(b"\n\n" + output[-4:])
        require(not heartbeat or is_between_events, f"heartbeat within an event: {output[-9:]!r}")
    require(output == data, "it does not pass unchanged")
    end = passthrough.end(is_truncated=dice.random() < 0.5)
    require(passthrough.has_ended, "no end")
    require(not end or b'"error"' in end, f"it ends in {end!r}")


def join(dice: random.Random) -> None:
    """Aggregate a stream into a non-streaming response."""
    data, truncated = mutated(ANSWERS, dice), dice.random() < 0.3
    request, options = dice.choice(CHAT_REQUESTS), dice.choice(OPTIONS)
    outcomes = []
    for parts in ([data], pieces(data, dice)):
        aggregator = ResponseTranslator(request, options, max_answer=1 << 20, new_id=Ids())
        for piece in parts:
            aggregator.receive_data(piece)
        try:
            outcomes.append(aggregator.end(is_truncated=truncated))
            check_response(outcomes[-1])
        except ApiError as error:
            parse_error(error.body())
            outcomes.append(error.body())
    # A response without an id gets a random one.
    outcomes = [re.sub(rb"chatcmpl-[0-9a-f]{24}", b"", outcome) for outcome in outcomes]
    require(outcomes[0] == outcomes[1], f"in pieces it differs: {outcomes}")


def check_response(data: bytes) -> None:
    """Check a non-streaming response."""
    choices = json.loads(data)["choices"]
    require(isinstance(choices, list), "no choices")


def whole(dice: random.Random) -> None:
    """Translate a non-streaming response, as a response and as a stream."""
    data, request, options = (
        mutated(ANSWERS, dice),
        dice.choice(CHAT_REQUESTS),
        dice.choice(OPTIONS),
    )
    for translate in (translate_response, response_as_stream):
        try:
            output, _ = translate(data, request, options, new_id=Ids())
        except ApiError as error:
            require(error.status >= 400, f"{error.status}")
            parse_error(error.body())
            continue
        if translate is translate_response:
            check_response(output)
        else:
            check_stream(output, data)


def error(dice: random.Random) -> None:
    """Convert a backend's error response."""
    data = mutated(ANSWERS + RESPONSES, dice)
    content_type = dice.choice(("", "application/json", "text/html; charset=x"))
    status, body = to_error_response(dice.choice((400, 404, 500, 503)), data, content_type)
    require(status >= 400, "not an error")
    require(isinstance(json.loads(body)["error"], dict), f"not OpenAI's shape: {body!r}")
    to_error_event(data)


# A whole daemon.


@implementer(ILogObserver)
class Daemon:
    """A daemon in memory that serves the cases one after the other, and is replaced at times."""

    #: Cases per daemon. The reactor in memory keeps every connection that was ever made.
    MAX_CASES = 200

    def __init__(self) -> None:
        self._cases_left = 0
        self._logged_errors: list[LogEvent] = []
        globalLogPublisher.addObserver(self)

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_level", LogLevel.info) >= LogLevel.error:
            self._logged_errors.append(event)

    @contextmanager
    def world(self) -> Iterator[World]:
        """Yield a world with a daemon; check afterwards that no error and no request is left."""
        if not self._cases_left:
            self._cases_left = self.MAX_CASES
            self._world = World(heartbeat=10_000.0, first_byte_timeout=60.0, idle_timeout=30.0)
        self._cases_left -= 1
        yield self._world
        self._world.reactor.advance(0)
        require(not self._logged_errors, f"logged: {self._logged_errors[:1]}")
        daemon = self._world.daemon
        admission = daemon.components.admission
        open_requests = (len(daemon.in_flight), admission.active, admission.waiting)
        require(open_requests == (0, 0, 0), f"open requests: {open_requests}")


DAEMON = Daemon()


def http(dice: random.Random) -> None:
    """Send arbitrary input as a client."""
    with DAEMON.world() as world:
        client = world.client()
        for piece in pieces(mutated(REQUESTS, dice), dice):
            if client.wire.is_write_closed:
                break
            client.send(piece)
        received = client.received().removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        if received and received.count(b"HTTP/1.") == 1:
            reply = parse_response(
                received.replace(b"HTTP/1.0", b"HTTP/1.1", 1), closed=client.wire.is_write_closed
            )
            require(reply.status, f"incomplete head: {received!r}")
            if reply.status >= 400 and reply.complete and reply.body:
                parse_error(reply.body)
        client.disconnect()


def backend(dice: random.Random) -> None:
    """Send arbitrary responses as a backend."""
    with DAEMON.world() as world:
        client, peer = world.start_chat(stream=dice.random() < 0.7)
        data = mutated(RESPONSES, dice)
        for piece in pieces(data, dice):
            if peer.wire.closed:
                break
            peer.send(piece)
        if not peer.wire.closed:
            peer.wire.connection_lost(dice.choice((ConnectionDone, ConnectionLost))())
        world.reactor.advance(0)
        reply = parse_response(client.received(), closed=client.wire.is_write_closed)
        require(reply.status, "no response")
        if reply.complete and reply.status >= 400:
            require(
                isinstance(json.loads(reply.body)["error"], dict), f"not OpenAI's: {reply.body!r}"
            )
        elif reply.complete and reply.is_streaming:
            check_stream(reply.body, data)
        elif reply.complete:
            check_response(reply.body)
        client.disconnect()


#: The targets, and the percentage of the cases that each gets.
TARGETS: dict[str, tuple[Callable[[random.Random], None], int]] = {
    "parse": (parse, 25),
    "stream": (stream, 20),
    "pass": (pass_through, 10),
    "join": (join, 10),
    "whole": (whole, 15),
    "error": (error, 5),
    "http": (http, 10),
    "backend": (backend, 5),
}


def run(target: str, case: str) -> bool:
    """Run one case; if it fails, print the failure and return False."""
    try:
        TARGETS[target][0](random.Random(case))
    except Exception:  # noqa: BLE001 - any exception is a finding
        traceback.print_exc()
        print(f"repeat with: python -m tests.fuzz.million --only {target} --case {case}")
        return False
    return True


def main() -> int:
    """Run the cases that the command line selects."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="cases in all")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--only", choices=TARGETS, help="a single target")
    parser.add_argument("--case", help="a single case of --only, as a failure prints it")
    arguments = parser.parse_args()
    if arguments.case:
        return not run(arguments.only, arguments.case)
    print(f"seed {arguments.seed}")
    shares = (
        {arguments.only: 100}
        if arguments.only
        else {name: share for name, (_, share) in TARGETS.items()}
    )
    failures = 0
    for target, share in shares.items():
        start = time.monotonic()
        count = arguments.count * share // 100
        cases = (f"{arguments.seed}/{target}/{at}" for at in range(count))
        failures += len(
            list(islice((case for case in cases if not run(target, case)), MAX_FAILURES))
        )
        print(f"{target}: {count} cases, {time.monotonic() - start:.0f} s", flush=True)
    print(f"{failures} failed" if failures else "No failures.")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
