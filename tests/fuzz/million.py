"""
Feed blockops what clients and backends may send, valid and not, and see that it keeps its word.

    python -m tests.fuzz.million --count 1000000 --seed 1
    python -m tests.fuzz.million --only backend --case 1/backend/4711

Everything in process: requests and answers of backends as bytes into a whole daemon in memory, and
each door of the core. Nothing may raise what it does not announce; nothing may be logged as an
error; a client's stream has the same bytes however the backend's were cut, and is well-formed or
ends in an error event; nothing is left behind. Cases that fail are shown, with what repeats each
alone.
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

from blockops import errors
from blockops.api.chat.request import ChatRequest
from blockops.errors import ApiError
from blockops.toolcalls.options import Rules
from blockops.translation import stream as transcode
from blockops.translation.aggregate import StreamJoiner
from blockops.translation.stream import PassThrough, StreamTranscoder
from tests.api.strict import StreamRefused, read_strictly
from tests.faults.reading import error_in, read
from tests.fuzz.mutations import ANSWERS, BODIES, REQUESTS, RESPONSES, mutated, pieces
from tests.translation.merging import merged
from tests.world import World

RULES = (Rules(), Rules(reasoning="split"), Rules(translate="always", max_hold=1024))
ASKED = [ChatRequest.parse(body) for body in BODIES]


#: So many failures of one target are shown, then the next one is begun.
SHOWN = 20


def demand(condition: object, complaint: str) -> None:
    if not condition:
        raise AssertionError(complaint)


class Ids:
    """Ids of calls that are the same each time."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self) -> str:
        self._count += 1
        return f"call_{self._count}"


# The core.


def parse(dice: random.Random) -> None:
    """Read a request, and write what the backend is sent."""
    try:
        asked = ChatRequest.parse(mutated(BODIES, dice))
        body = asked.body({"stream": True})
    except ApiError as error:
        demand(400 <= error.status < 500, f"{error.status}")
        error_in(error.body())
        return
    # What is no UTF-8 within a message is for the backend to refuse.
    json.loads(body.decode("utf-8", "replace"))
    demand(all(isinstance(raw, bytes) for raw in asked.messages()), "a message is no bytes")


def stream(dice: random.Random) -> None:
    """Turn a stream; the same whole and in pieces."""
    data, asked, rules = mutated(ANSWERS, dice), dice.choice(ASKED), dice.choice(RULES)
    cut, most = dice.random() < 0.3, dice.choice((200, 8 << 20))
    said = []
    for parts in ([data], pieces(data, dice)):
        one = StreamTranscoder(asked, rules, max_event=most, new_id=Ids())
        said.append(b"".join(map(one.receive_data, parts)) + one.end(cut=cut))
        demand(one.ended and one.receive_data(b"data: {}\n\n") == b"", "it goes on behind its end")
    said = [re.sub(rb"chatcmpl-[0-9a-f]{24}", b"", each) for each in said]
    same = merged(said[0]) == merged(said[1])
    demand(same, f"cut otherwise it is {said[1]!r} instead of {said[0]!r}")
    check_stream(said[0], data)


#: What a backend structured itself passes as it is, and so may be as odd as it likes.
ITS_OWN = (b"tool_calls", b"function_call", b"error")
#: So do values of another type, roles and finish reasons that nobody knows, and the rest of a call
#: that is broken JSON.
AS_IT_CAME = re.compile(
    r"\w+ is |a role once more in {.*'role': [^']|no role in the first delta {.*'role': |"
    r"index |finish reason |arguments cut off"
)


def check_stream(said: bytes, data: bytes) -> None:
    """Check what a client is sent for `data`."""
    try:
        read_strictly(said, bare=True)
    except (StreamRefused, KeyError, TypeError, AttributeError) as refused:
        # What is no StreamRefused is the reader's own, of a value of another type.
        own = any(word in data for word in ITS_OWN) or not isinstance(refused, StreamRefused)
        if not own and not AS_IT_CAME.match(str(refused)):
            raise
        events = said.split(b"\n\n")
        demand(events[-1] == b"" and all(one.startswith(b"data: ") for one in events[:-1]), "torn")
        demand(events[-2] == b"data: [DONE]" or b'"error"' in events[-2], "no end")
        demand(b"data: [DONE]" not in events[:-2], "something is behind the end")


#: A blank line at the end, whatever ends lines.
_BLANK = re.compile(rb"(\r\n|\r|\n)(\r\n|\r|\n)\Z")


def pass_through(dice: random.Random) -> None:
    """Let another kind of stream through."""
    data = mutated(ANSWERS, dice)
    one = PassThrough()
    said = b""
    for piece in pieces(data, dice):
        said += one.receive_data(piece)
        beat = one.heartbeat()
        demand(not beat or not said or _BLANK.search(b"\n\n" + said[-4:]), f"torn: {said[-9:]!r}")
    demand(said == data, "it does not pass as it is")
    end = one.end(cut=dice.random() < 0.5)
    demand(one.ended, "no end")
    demand(not end or b'"error"' in end, f"it ends in {end!r}")


def join(dice: random.Random) -> None:
    """Make a whole answer of a stream."""
    data, cut = mutated(ANSWERS, dice), dice.random() < 0.3
    asked, rules = dice.choice(ASKED), dice.choice(RULES)
    outcomes = []
    for parts in ([data], pieces(data, dice)):
        one = StreamJoiner(asked, rules, max_answer=1 << 20, new_id=Ids())
        for piece in parts:
            one.receive_data(piece)
        try:
            outcomes.append(one.whole(cut=cut))
            check_whole(outcomes[-1])
        except ApiError as error:
            error_in(error.body())
            outcomes.append(error.body())
    # An answer that came without an id has one of ours.
    outcomes = [re.sub(rb"chatcmpl-[0-9a-f]{24}", b"", each) for each in outcomes]
    demand(outcomes[0] == outcomes[1], f"cut otherwise: {outcomes}")


def check_whole(data: bytes) -> None:
    """Check a whole answer."""
    choices = json.loads(data)["choices"]
    demand(isinstance(choices, list), "no choices")


def whole(dice: random.Random) -> None:
    """Turn a whole answer, and make a stream of it."""
    data, asked, rules = mutated(ANSWERS, dice), dice.choice(ASKED), dice.choice(RULES)
    for turn in (transcode.whole, transcode.whole_as_stream):
        try:
            said, _ = turn(data, asked, rules, new_id=Ids())
        except ApiError as error:
            demand(error.status >= 400, f"{error.status}")
            error_in(error.body())
            continue
        if turn is transcode.whole:
            check_whole(said)
        else:
            check_stream(said, data)


def error(dice: random.Random) -> None:
    """Word a backend's refusal."""
    data = mutated(ANSWERS + RESPONSES, dice)
    kind = dice.choice(("", "application/json", "text/html; charset=x"))
    status, body = errors.from_backend(dice.choice((400, 404, 500, 503)), data, kind)
    demand(status >= 400, "no error any more")
    demand(isinstance(json.loads(body)["error"], dict), f"not OpenAI's shape: {body!r}")
    errors.from_event(data)


# A whole daemon.


@implementer(ILogObserver)
class Daemon:
    """A daemon in memory, which serves one case after the other; made anew now and then."""

    #: Cases that one serves. The reactor in memory keeps all that was ever connected.
    LIFE = 200

    def __init__(self) -> None:
        self._left = 0
        self._trouble: list[LogEvent] = []
        globalLogPublisher.addObserver(self)

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_level", LogLevel.info) >= LogLevel.error:
            self._trouble.append(event)

    @contextmanager
    def world(self) -> Iterator[World]:
        """Give out a daemon, and check afterwards that nothing is left of what was done there."""
        if not self._left:
            self._left = self.LIFE
            self._world = World(heartbeat=10_000.0, first_byte_timeout=60.0, idle_timeout=30.0)
        self._left -= 1
        yield self._world
        self._world.reactor.advance(0)
        demand(not self._trouble, f"logged: {self._trouble[:1]}")
        daemon = self._world.daemon
        admission = daemon._admission
        left = (len(daemon.gateway), admission.running, admission.waiting)
        demand(left == (0, 0, 0), f"left behind: {left}")


DAEMON = Daemon()


def http(dice: random.Random) -> None:
    """Be a client that sends anything."""
    with DAEMON.world() as world:
        client = world.client()
        for piece in pieces(mutated(REQUESTS, dice), dice):
            if client.wire.ended:
                break
            client.send(piece)
        received = client.received().removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        if received and received.count(b"HTTP/1.") == 1:
            reply = read(received.replace(b"HTTP/1.0", b"HTTP/1.1", 1), closed=client.wire.ended)
            demand(reply.status, f"half a head: {received!r}")
            if reply.status >= 400 and reply.complete and reply.body:
                error_in(reply.body)
        client.leave()


def backend(dice: random.Random) -> None:
    """Be a backend that answers anything."""
    with DAEMON.world() as world:
        client, peer = world.ask(stream=dice.random() < 0.7)
        data = mutated(RESPONSES, dice)
        for piece in pieces(data, dice):
            if peer.wire.closed:
                break
            peer.send(piece)
        if not peer.wire.closed:
            peer.wire.lose(dice.choice((ConnectionDone, ConnectionLost))())
        world.reactor.advance(0)
        reply = read(client.received(), closed=client.wire.ended)
        demand(reply.status, "no answer")
        if reply.complete and reply.status >= 400:
            demand(
                isinstance(json.loads(reply.body)["error"], dict), f"not OpenAI's: {reply.body!r}"
            )
        elif reply.complete and reply.streams:
            check_stream(reply.body, data)
        elif reply.complete:
            check_whole(reply.body)
        client.leave()


#: What is fuzzed, and how many of a hundred cases it gets.
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
    """Run one case; show what is wrong with it and return False if anything is."""
    try:
        TARGETS[target][0](random.Random(case))
    except Exception:  # noqa: BLE001 - that is what is looked for
        traceback.print_exc()
        print(f"repeat it: python -m tests.fuzz.million --only {target} --case {case}")
        return False
    return True


def main() -> int:
    """Run the cases that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="cases in all")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--only", choices=TARGETS, help="a single target")
    parser.add_argument("--case", help="a single case of --only, as a failure tells it")
    asked = parser.parse_args()
    if asked.case:
        return not run(asked.only, asked.case)
    print(f"seed {asked.seed}")
    shares = {asked.only: 100} if asked.only else {name: of for name, (_, of) in TARGETS.items()}
    wrong = 0
    for target, share in shares.items():
        start = time.monotonic()
        count = asked.count * share // 100
        cases = (f"{asked.seed}/{target}/{at}" for at in range(count))
        wrong += len(list(islice((case for case in cases if not run(target, case)), SHOWN)))
        print(f"{target}: {count} cases, {time.monotonic() - start:.0f} s", flush=True)
    print(f"{wrong} went wrong" if wrong else "All is well.")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
