"""
What clients see of a backend's faults: a table, fault by fault.

Each is played in memory against a whole daemon, once for a stream and once for a whole answer; over
real sockets, in tests/live/test_faults.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tests.faults.lines import InMemory
from tests.faults.reading import Judged, judge
from tests.faults.scripts import (
    CALL,
    CHUNKED,
    END,
    EVENTS,
    FAULTS,
    STREAM,
    TEXT,
    WHOLE,
    WRITTEN,
    Script,
    answer,
    chunked,
    head,
    well,
)
from tests.faults.steps import Close, Reset, Send, Step, play
from tests.world import NOTHING_LEFT, Backend, Client, World

#: Seconds: so many that heartbeats do not begin the answers, so few that tests need few steps.
SETTINGS: dict[str, Any] = {
    "first_byte_timeout": 60.0,
    "idle_timeout": 30.0,
    "heartbeat": 10_000.0,
    "max_answer": 1 << 20,
}
#: Seconds that a fault is given to show.
LONG = 120

#: fault -> what the client sees where it asked for a stream, and where it did not; see
#: `reading.Judged.outcome`. None: it goes on for as long as the client bears it.
SEEN: dict[str, tuple[str | None, str | None]] = {
    "closed at once": ("502 backend_unreachable", "502 backend_unreachable"),
    "reset at once": ("502 backend_unreachable", "502 backend_unreachable"),
    "half-closed at once": ("502 backend_unreachable", "502 backend_unreachable"),
    "silent": ("504 backend_timeout", "504 backend_timeout"),
    "status line cut off": ("502 backend_unreachable", "502 backend_unreachable"),
    "silent in the headers": ("504 backend_timeout", "504 backend_timeout"),
    "closed in the headers": ("502 backend_unreachable", "502 backend_unreachable"),
    "another protocol": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "random bytes": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "status without a number": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "status beyond all numbers": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "status 777": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "a header of 1 MiB": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "headers without end": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "a header without a colon": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "100 first": ("whole", "whole"),
    "103 first": ("whole", "whole"),
    "101": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "204": ("event backend_empty_response", "502 backend_empty_response"),
    "302": ("event backend_empty_response", "502 backend_empty_response"),
    "HTTP/1.0": ("whole", "whole"),
    "byte by byte": ("whole", "whole"),
    "closed in the middle": ("event backend_truncated", "502 backend_truncated"),
    "reset in the middle": ("event backend_truncated", "502 backend_truncated"),
    "half-closed in the middle": ("event backend_truncated", "502 backend_truncated"),
    "silent in the middle": ("event backend_timeout", "504 backend_timeout"),
    "closed in the middle, without a length": ("event backend_truncated", "502 backend_invalid_response"),
    # Only the last chunk says that a whole answer is whole. A stream says so itself.
    "no last chunk": ("whole", "502 backend_truncated"),
    "an empty body": ("event backend_empty_response", "502 backend_empty_response"),
    "length too long, then closed": ("whole", "502 backend_truncated"),
    "length too long, then silent": ("whole", "504 backend_timeout"),
    "length too short": ("event backend_truncated", "502 backend_invalid_response"),
    "negative length": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "length that is no number": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "two lengths": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "length and chunks": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "chunk size that is no number": ("event backend_truncated", "502 backend_truncated"),
    "negative chunk size": ("event backend_truncated", "502 backend_truncated"),
    "endless chunk size": ("event backend_truncated", "502 backend_truncated"),
    "chunk of 16 EiB": ("event backend_truncated", "502 backend_truncated"),
    "chunk longer than it says": ("event backend_truncated", "502 backend_truncated"),
    "an event without end": ("event backend_event_too_large", "502 backend_response_too_large"),
    # Signs of life: a backend that reads a long prompt may send them for an hour.
    "comments without end": (None, None),
    "something behind the end, without end": ("whole", "whole"),
    "an event of 10 MiB": ("event backend_event_too_large", None),
    "no [DONE]": ("whole", None),
    "no finish reason": ("whole", None),
    "two [DONE]": ("whole", None),
    "events behind [DONE]": ("whole", None),
    # The code is the backend's.
    "an error event": ("event 7", None),
    "an event that is no JSON": ("event backend_invalid_response", None),
    "HTML": ("502 None", "502 backend_invalid_response"),
    "502 in HTML": ("502 None", "502 None"),
    "500 in JSON": ("500 7", "500 7"),
    "400 in another shape": ("400 None", "400 None"),
    "503 without a body": ("503 None", "503 None"),
    "a refusal cut off": ("500 None", "500 None"),
    "a refusal that stalls": ("504 backend_timeout", "504 backend_timeout"),
    "gzip": ("whole", "whole"),
    "gzip that is none": ("event backend_truncated", "502 backend_truncated"),
    "gzip cut off": ("event backend_truncated", "502 backend_truncated"),
}
#: Of these the text is looked at by tests of their own.
OTHER_TEXT = ("an event of 7 MiB", "invalid UTF-8")


class Seen(NamedTuple):
    """One fault, played to its end."""

    judged: Judged
    client: Client
    backend: Backend
    #: Lines of the daemon's log.
    lines: int


class Playing(SynchronousTestCase):
    """One world for all of a test's faults: what one leaves behind, the next one trips over."""

    def setUp(self) -> None:
        self.world = World(**SETTINGS)

    def see(self, script: Script, *, stream: bool, patience: int = LONG) -> Seen:
        """Let a client ask, and the backend play `script`."""
        client, backend = self.world.ask(stream=stream)
        with capturedLogs() as events:
            playing = play(InMemory(self.world, backend), script)
            playing.addErrback(lambda _: None)
            for _ in range(2 * patience):
                judged = judge(client.received(), closed=client.wire.ended)
                if judged.outcome not in {"nothing", "cut"} or client.wire.ended:
                    break
                self.world.pass_time(0.5)
            playing.cancel()
            self.world.reactor.advance(0)
        for event in events:
            self.assertLess(event["log_level"], LogLevel.error, event)
        return Seen(judged, client, backend, len(events))

    def assert_clean(self, seen: Seen) -> None:
        """Check that nothing of an exchange is left behind, and that it was written down."""
        self.assertEqual(self.world.idle(), NOTHING_LEFT)
        self.assertTrue(seen.backend.wire.closed)
        self.assertLessEqual(seen.lines, 1)
        record = self.world.traffic.responses()[-1]
        whole = seen.judged.outcome == "whole"
        self.assertEqual(record.outcome, "done" if whole else "failed")
        self.assertEqual(record.error, None if whole else seen.judged.message)
        seen.client.leave()

    def assert_true(self, judged: Judged) -> None:
        """Check that what a client was told is what the backend said."""
        if judged.outcome == "whole":
            self.assertEqual((judged.text, judged.calls), (TEXT, (CALL,)))
        else:
            # A call that was cut off before it was known to be one is text, and so is the
            # beginning of a tag.
            as_text, in_tag = TEXT + WRITTEN, TEXT + "</tool_call>"
            self.assertTrue(as_text.startswith(judged.text) or in_tag.startswith(judged.text))
            self.assertGreater(len(judged.message), 10)


class Faults(Playing):
    """The table."""

    def check(self, name: str, expected: str | None, *, stream: bool) -> None:
        script = FAULTS[name].stream if stream else FAULTS[name].whole
        seen = self.see(script, stream=stream)
        what = f"{name}, {'stream' if stream else 'whole'}"
        if expected is None:
            self.assertIn(seen.judged.outcome, {"cut", "nothing"}, what)
            seen.client.leave()
            self.world.reactor.advance(0)
            self.assertTrue(seen.backend.wire.closed, what)
            self.assertEqual(self.world.idle(), NOTHING_LEFT, what)
            return
        self.assertEqual(seen.judged.outcome, expected, f"{what}: {seen.judged.message}")
        self.assert_true(seen.judged)
        self.assert_clean(seen)

    def test_the_table(self) -> None:
        for name, (stream, whole) in SEEN.items():
            self.check(name, stream, stream=True)
            if FAULTS[name].whole or name == "silent":
                self.check(name, whole, stream=False)

    def test_the_table_is_whole(self) -> None:
        self.assertEqual({*SEEN, *OTHER_TEXT}, set(FAULTS))

    def test_no_fault(self) -> None:
        for stream in (True, False):
            seen = self.see(well(stream), stream=stream)
            self.assertEqual(seen.judged.outcome, "whole")
            self.assert_true(seen.judged)
            self.assert_clean(seen)

    def test_what_was_said_before_the_end_is_not_lost(self) -> None:
        for name in ("closed in the middle", "reset in the middle", "an error event"):
            seen = self.see(FAULTS[name].stream, stream=True)
            self.assertTrue(seen.judged.text.startswith(TEXT + WRITTEN[:11]), repr(seen.judged))

    def test_after_a_heartbeat_an_error_is_an_event(self) -> None:
        self.world = World(**{**SETTINGS, "heartbeat": 5.0})
        late = (*(Send(byte) for byte in (b"H", b"T")),)
        for name, expected in (("silent", "event backend_timeout"),):
            seen = self.see((*late, *FAULTS[name].stream), stream=True)
            self.assertEqual(seen.judged.outcome, expected)
            self.assert_clean(seen)

    def test_large_events(self) -> None:
        seen = self.see(FAULTS["an event of 7 MiB"].stream, stream=True)
        self.assertEqual((seen.judged.outcome, seen.judged.text), ("whole", (7 << 20) * "x"))
        self.assert_clean(seen)

    def test_bytes_that_are_no_text(self) -> None:
        fault = FAULTS["invalid UTF-8"]
        for stream, script in ((True, fault.stream), (False, fault.whole)):
            seen = self.see(script, stream=stream)
            self.assertEqual(seen.judged.outcome, "whole")
            self.assertEqual(seen.judged.text, "Gr\ufffd\ufffde ✓")
            self.assert_clean(seen)


class Cuts(Playing):
    """
    A backend that breaks off, at any byte of its answer.

    :cvar every: at which bytes; 1: at each, as in tests/live/test_thorough.py
    """

    every = 7

    def cut_everywhere(
        self, sent: bytes, then: Step, seen: Callable[[int], str], *, stream: bool
    ) -> None:
        """Assert that clients see `seen` of an answer of which only so many bytes come."""
        for size in {*range(0, len(sent), self.every), len(sent) - 1}:
            self.world.traffic.records.clear()
            shown = self.see((Send(sent[:size]), then), stream=stream)
            self.assertEqual(shown.judged.outcome, seen(size), sent[:size])
            self.assert_true(shown.judged)
            self.assert_clean(shown)

    def of_a_stream(self, begins: bytes, sent: bytes) -> Callable[[int], str]:
        """Return what a client sees of the first so many bytes of `sent`, a stream."""
        # When the model has finished, nobody needs what follows.
        finished = sent.index(EVENTS[-2]) + len(EVENTS[-2])

        def seen(size: int) -> str:
            if size < len(begins):
                return "502 backend_unreachable"
            return "event backend_truncated" if size < finished else "whole"

        return seen

    def test_a_stream_in_chunks(self) -> None:
        sent = head(CHUNKED) + chunked(*EVENTS) + END
        self.cut_everywhere(sent, Close(), self.of_a_stream(head(CHUNKED), sent), stream=True)

    def test_a_stream_that_ends_with_its_connection(self) -> None:
        sent = head() + STREAM
        self.cut_everywhere(sent, Reset(), self.of_a_stream(head(), sent), stream=True)

    def test_a_whole_answer(self) -> None:
        sent = answer(WHOLE, streams=False)

        def seen(size: int) -> str:
            begun = size >= len(sent) - len(WHOLE)
            return "502 backend_truncated" if begun else "502 backend_unreachable"

        self.cut_everywhere(sent, Close(), seen, stream=False)
