"""
The table of responses that clients receive for each fault of a backend.

Each fault is played in memory against a complete daemon, for a stream and for a non-streaming
response. tests/live/test_faults.py plays them over real sockets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tests.faults.connections import MemoryConnection
from tests.faults.responses import Verdict, judge
from tests.faults.scripts import (
    CALL,
    CALL_TEXT,
    CHUNKED,
    EVENTS,
    FAULTS,
    JSON_BODY,
    LAST_CHUNK,
    STREAM,
    TEXT,
    Script,
    encode_chunks,
    encode_response,
    encode_response_head,
    good_response,
)
from tests.faults.steps import Close, Reset, Send, Step, play
from tests.world import IDLE, Backend, Client, World

#: Timeouts in seconds: shorter than the heartbeat, which would begin the response, and short enough
#: that the tests need few steps.
SETTINGS: dict[str, Any] = {
    "first_byte_timeout": 60.0,
    "idle_timeout": 30.0,
    "heartbeat": 10_000.0,
    "max_answer": 1 << 20,
}
#: Seconds for which a fault is played at most.
FAULT_SECONDS = 120

#: The client's outcomes by fault, for a stream and for a non-streaming response; see
#: `responses.Verdict.outcome`. None: the response goes on until the client disconnects, or the
#: fault has no such script.
EXPECTED_OUTCOMES: dict[str, tuple[str | None, str | None]] = {
    "closed at once": ("502 backend_unreachable", "502 backend_unreachable"),
    "reset at once": ("502 backend_unreachable", "502 backend_unreachable"),
    "half-closed at once": ("502 backend_unreachable", "502 backend_unreachable"),
    "silent": ("504 backend_timeout", "504 backend_timeout"),
    "status line truncated": ("502 backend_unreachable", "502 backend_unreachable"),
    "silent in the headers": ("504 backend_timeout", "504 backend_timeout"),
    "closed in the headers": ("502 backend_unreachable", "502 backend_unreachable"),
    "another protocol": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "random bytes": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "status without a number": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "status of five digits": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "status 777": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "a header of 1 MiB": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "endless headers": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "a header without a colon": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "100 first": ("complete", "complete"),
    "103 first": ("complete", "complete"),
    "101": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "204": ("event backend_empty_response", "502 backend_empty_response"),
    "302": ("event backend_empty_response", "502 backend_empty_response"),
    "HTTP/1.0": ("complete", "complete"),
    "byte by byte": ("complete", "complete"),
    "closed in the middle": ("event backend_truncated", "502 backend_truncated"),
    "reset in the middle": ("event backend_truncated", "502 backend_truncated"),
    "half-closed in the middle": ("event backend_truncated", "502 backend_truncated"),
    "silent in the middle": ("event backend_timeout", "504 backend_timeout"),
    "closed in the middle, without a length": (
        "event backend_truncated",
        "502 backend_invalid_response",
    ),
    # Only the last chunk marks the end of a non-streaming response. A stream has `[DONE]`.
    "no last chunk": ("complete", "502 backend_truncated"),
    "an empty body": ("event backend_empty_response", "502 backend_empty_response"),
    "length too long, then closed": ("complete", "502 backend_truncated"),
    "length too long, then silent": ("complete", "504 backend_timeout"),
    "length too short": ("event backend_truncated", "502 backend_invalid_response"),
    "negative length": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "length not a number": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "two lengths": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "length and chunks": ("502 backend_invalid_response", "502 backend_invalid_response"),
    "chunk size not a number": ("event backend_truncated", "502 backend_truncated"),
    "negative chunk size": ("event backend_truncated", "502 backend_truncated"),
    "endless chunk size": ("event backend_truncated", "502 backend_truncated"),
    "chunk of 16 EiB": ("event backend_truncated", "502 backend_truncated"),
    "chunk longer than its size": ("event backend_truncated", "502 backend_truncated"),
    "endless event": ("event backend_event_too_large", "502 backend_response_too_large"),
    # Signs of life: a backend may send them for an hour while it prefills a long prompt.
    "endless comments": (None, None),
    "endless data after the end": ("complete", "complete"),
    "an event of 10 MiB": ("event backend_event_too_large", None),
    "no [DONE]": ("complete", None),
    "no finish reason": ("complete", None),
    "two [DONE]": ("complete", None),
    "events after [DONE]": ("complete", None),
    # The code comes from the backend.
    "an error event": ("event 7", None),
    "an event of invalid JSON": ("event backend_invalid_response", None),
    "HTML": ("502 None", "502 backend_invalid_response"),
    "502 in HTML": ("502 None", "502 None"),
    "500 in JSON": ("500 7", "500 7"),
    "400 in another format": ("400 None", "400 None"),
    "503 without a body": ("503 None", "503 None"),
    "a truncated error response": ("500 None", "500 None"),
    "a stalled error response": ("504 backend_timeout", "504 backend_timeout"),
    "gzip": ("502 backend_response_compressed", "502 backend_response_compressed"),
    "gzip header without gzip": (
        "502 backend_response_compressed",
        "502 backend_response_compressed",
    ),
    "gzip truncated": ("502 backend_response_compressed", "502 backend_response_compressed"),
}
#: Faults whose text differs, so that they have separate tests.
TESTED_SEPARATELY = ("an event of 7 MiB", "invalid UTF-8")


class PlayedFault(NamedTuple):
    """The result of playing one fault."""

    verdict: Verdict
    client: Client
    backend: Backend
    #: Number of lines in the daemon's log.
    log_count: int


class FaultTestCase(SynchronousTestCase):
    """Plays all faults of a test in one world, so that a leak of one affects the next."""

    def setUp(self) -> None:
        self.world = World(**SETTINGS)

    def play_fault(
        self, script: Script, *, stream: bool, seconds: int = FAULT_SECONDS
    ) -> PlayedFault:
        """Send a chat request and play `script` as the backend, for `seconds` at most."""
        client, backend = self.world.start_chat(stream=stream)
        with capturedLogs() as events:
            playing = play(MemoryConnection(self.world, backend), script)
            playing.addErrback(lambda _: None)
            for _ in range(2 * seconds):
                verdict = judge(client.received(), closed=client.wire.is_write_closed)
                if (
                    verdict.outcome not in {"no response", "truncated"}
                    or client.wire.is_write_closed
                ):
                    break
                self.world.pass_time(0.5)
            playing.cancel()
            self.world.reactor.advance(0)
        for event in events:
            self.assertLess(event["log_level"], LogLevel.error, event)
        return PlayedFault(verdict, client, backend, len(events))

    def assert_clean(self, played: PlayedFault) -> None:
        """Assert that the exchange released all resources and is recorded in the traffic log."""
        self.assertEqual(self.world.load(), IDLE)
        self.assertTrue(played.backend.wire.closed)
        self.assertLessEqual(played.log_count, 1)
        record = self.world.traffic.responses()[-1]
        is_complete = played.verdict.outcome == "complete"
        self.assertEqual(record.outcome, "done" if is_complete else "failed")
        self.assertEqual(record.error, None if is_complete else played.verdict.message)
        played.client.disconnect()

    def assert_truthful(self, verdict: Verdict) -> None:
        """Assert that the client's view agrees with the backend's response."""
        if verdict.outcome == "complete":
            self.assertEqual((verdict.text, verdict.calls), (TEXT, (CALL,)))
        else:
            # A call that is truncated before it is recognised is shown as text, and so is the
            # beginning of a tag.
            as_text, in_tag = TEXT + CALL_TEXT, TEXT + "</tool_call>"
            self.assertTrue(as_text.startswith(verdict.text) or in_tag.startswith(verdict.text))
            self.assertGreater(len(verdict.message), 10)


class FaultTableTests(FaultTestCase):
    """Plays all faults of the table."""

    def check(self, name: str, expected: str | None, *, stream: bool) -> None:
        script = FAULTS[name].stream if stream else FAULTS[name].non_streaming
        played = self.play_fault(script, stream=stream)
        label = f"{name}, {'stream' if stream else 'non-streaming'}"
        if expected is None:
            self.assertIn(played.verdict.outcome, {"truncated", "no response"}, label)
            played.client.disconnect()
            self.world.reactor.advance(0)
            self.assertTrue(played.backend.wire.closed, label)
            self.assertEqual(self.world.load(), IDLE, label)
            return
        self.assertEqual(played.verdict.outcome, expected, f"{label}: {played.verdict.message}")
        self.assert_truthful(played.verdict)
        self.assert_clean(played)

    def test_the_table(self) -> None:
        for name, (stream, non_streaming) in EXPECTED_OUTCOMES.items():
            self.check(name, stream, stream=True)
            if FAULTS[name].non_streaming or name == "silent":
                self.check(name, non_streaming, stream=False)

    def test_the_table_is_complete(self) -> None:
        self.assertEqual({*EXPECTED_OUTCOMES, *TESTED_SEPARATELY}, set(FAULTS))

    def test_no_fault(self) -> None:
        for stream in (True, False):
            played = self.play_fault(good_response(stream), stream=stream)
            self.assertEqual(played.verdict.outcome, "complete")
            self.assert_truthful(played.verdict)
            self.assert_clean(played)

    def test_text_before_the_fault_is_delivered(self) -> None:
        for name in ("closed in the middle", "reset in the middle", "an error event"):
            played = self.play_fault(FAULTS[name].stream, stream=True)
            self.assertTrue(
                played.verdict.text.startswith(TEXT + CALL_TEXT[:11]), repr(played.verdict)
            )

    def test_after_a_heartbeat_an_error_is_an_event(self) -> None:
        self.world = World(**{**SETTINGS, "heartbeat": 5.0})
        first_steps = (*(Send(byte) for byte in (b"H", b"T")),)
        for name, expected in (("silent", "event backend_timeout"),):
            played = self.play_fault((*first_steps, *FAULTS[name].stream), stream=True)
            self.assertEqual(played.verdict.outcome, expected)
            self.assert_clean(played)

    def test_large_events(self) -> None:
        played = self.play_fault(FAULTS["an event of 7 MiB"].stream, stream=True)
        self.assertEqual(
            (played.verdict.outcome, played.verdict.text), ("complete", (7 << 20) * "x")
        )
        self.assert_clean(played)

    def test_invalid_utf_8(self) -> None:
        fault = FAULTS["invalid UTF-8"]
        for stream, script in ((True, fault.stream), (False, fault.non_streaming)):
            played = self.play_fault(script, stream=stream)
            self.assertEqual(played.verdict.outcome, "complete")
            self.assertEqual(played.verdict.text, "Gr\ufffd\ufffde ✓")
            self.assert_clean(played)


class TruncationTests(FaultTestCase):
    """
    A backend whose response is truncated at various bytes.

    :cvar stride: bytes between two truncations; 1, each byte, in tests/live/test_thorough.py
    """

    stride = 7

    def assert_truncations(
        self, sent: bytes, last_step: Step, expected: Callable[[int], str], *, stream: bool
    ) -> None:
        """
        Truncate `sent` at each `stride` bytes, then play `last_step`.

        :param expected: returns the client's outcome for a number of bytes sent
        """
        for size in {*range(0, len(sent), self.stride), len(sent) - 1}:
            self.world.traffic.records.clear()
            played = self.play_fault((Send(sent[:size]), last_step), stream=stream)
            self.assertEqual(played.verdict.outcome, expected(size), sent[:size])
            self.assert_truthful(played.verdict)
            self.assert_clean(played)

    def expected_of_stream(self, head: bytes, sent: bytes) -> Callable[[int], str]:
        """Return the expected outcome of a truncated stream by the number of bytes sent."""
        # After the finish reason the response is complete, even without `[DONE]`.
        complete_at = sent.index(EVENTS[-2]) + len(EVENTS[-2])

        def expected(size: int) -> str:
            if size < len(head):
                return "502 backend_unreachable"
            return "event backend_truncated" if size < complete_at else "complete"

        return expected

    def test_a_stream_in_chunks(self) -> None:
        sent = encode_response_head(CHUNKED) + encode_chunks(*EVENTS) + LAST_CHUNK
        self.assert_truncations(
            sent, Close(), self.expected_of_stream(encode_response_head(CHUNKED), sent), stream=True
        )

    def test_a_stream_that_ends_with_its_connection(self) -> None:
        sent = encode_response_head() + STREAM
        self.assert_truncations(
            sent, Reset(), self.expected_of_stream(encode_response_head(), sent), stream=True
        )

    def test_a_non_streaming_response(self) -> None:
        sent = encode_response(JSON_BODY, stream=False)

        def expected(size: int) -> str:
            has_body = size >= len(sent) - len(JSON_BODY)
            return "502 backend_truncated" if has_body else "502 backend_unreachable"

        self.assert_truncations(sent, Close(), expected, stream=False)
