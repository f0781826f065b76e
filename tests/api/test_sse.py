"""Bytes become events by WHATWG's rules, independent of how they are split into packets."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.sse import MAX_LINES, Event, EventDecoder, EventTooLong, encode_event

NO_LIMIT = 1 << 20


def decode(*packets: bytes, max_event: int = NO_LIMIT) -> list[Event]:
    decoder = EventDecoder(max_event)
    return [event for packet in packets for event in decoder.receive_data(packet)]


def data(*packets: bytes) -> list[bytes]:
    return [event.data for event in decode(*packets)]


class EncodeEventTests(SynchronousTestCase):
    def test_one_line(self) -> None:
        self.assertEqual(encode_event(b'{"a": 1}'), b'data: {"a": 1}\n\n')

    def test_line_ends_are_removed(self) -> None:
        event = encode_event(b'{\r\n "a": [1.50,\n "\\n"]\n}')
        self.assertEqual(event, b'data: {"a":[1.50,"\\n"]}\n\n')
        self.assertEqual(encode_event(b'{\r"a":\r1}'), b'data: {"a":1}\n\n')


class StandardTests(SynchronousTestCase):
    """The rules of the HTML standard, with its examples."""

    def test_examples(self) -> None:
        """The event streams that the standard explains."""
        stocks = b"data: YHOO\ndata: +2\ndata: 10\n\n"
        self.assertEqual(data(stocks), [b"YHOO\n+2\n10"])
        four = b": test stream\n\ndata: first event\nid: 1\n\n"
        four += b"data:second event\nid\n\ndata:  third event\n\n"
        self.assertEqual(data(four), [b"first event", b"second event", b" third event"])
        self.assertEqual(data(b"data\n\ndata\ndata\n\ndata:"), [b"", b"\n"])
        self.assertEqual(data(b"data:test\n\ndata: test\n\n"), [b"test", b"test"])

    def test_types(self) -> None:
        stream = b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\ndata: 1\n\n"
        names = [(event.name, event.data) for event in decode(stream)]
        self.assertEqual(names, [(b"add", b"73857293"), (b"remove", b"2153"), (b"", b"1")])

    def test_each_line_end(self) -> None:
        for end in (b"\n", b"\r", b"\r\n"):
            stream = end.join([b"data: a", b"data: b", b"", b": c", b"data: d", b"", b""])
            self.assertEqual(data(stream), [b"a\nb", b"d"], end)

    def test_mixed_line_ends(self) -> None:
        self.assertEqual(
            data(b"data: a\r\ndata: b\n\rdata: c\r\r\ndata: d\n\n"), [b"a\nb", b"c", b"d"]
        )

    def test_carriage_return_among_line_feeds(self) -> None:
        """A CR ends a line even if the other lines end with LF."""
        self.assertEqual(data(b"data: a\rdata: b\n\n"), [b"a\nb"])

    def test_event_ends_without_waiting_for_a_line_feed(self) -> None:
        """An event that ends with CRs fires with the last CR; a LF after it is not a blank line."""
        decoder = EventDecoder(NO_LIMIT)
        self.assertEqual(len(list(decoder.receive_data(b"data: a\r\r"))), 1)
        self.assertEqual(list(decoder.receive_data(b"\n")), [])
        self.assertEqual([e.data for e in decoder.receive_data(b"data: b\n\n")], [b"b"])

    def test_byte_order_mark(self) -> None:
        mark = b"\xef\xbb\xbf"
        stream = mark + b"data: a\n\n" + mark + b"data: b\n\ndata: c\n\n"
        self.assertEqual(data(stream), [b"a", b"c"])
        self.assertEqual(data(*(stream[i : i + 1] for i in range(len(stream)))), [b"a", b"c"])
        self.assertEqual(data(b"\xef", b"data: lost\n\n", b"data: b\n\n"), [b"b"])

    def test_without_blank_line(self) -> None:
        """An event without its blank line is dropped."""
        self.assertEqual(data(b"data: a\n\ndata: b\n"), [b"a"])
        self.assertEqual(data(b"data: b"), [])

    def test_without_data(self) -> None:
        self.assertEqual(data(b"event: ping\n\nid: 1\n\n\n\n: c\n\n"), [])

    def test_fields_without_colon_and_unknown_ones(self) -> None:
        self.assertEqual(data(b"data\nfoo\nbar: 1\ndata: x\n\n"), [b"\nx"])
        self.assertEqual(data(b"dat: a\nxdata: b\n data: c\n\n"), [])

    def test_empty_packets(self) -> None:
        self.assertEqual(data(b"", b"data: a\r", b"", b"\n", b"", b"\r", b""), [b"a"])


class RawTests(SynchronousTestCase):
    """The bytes of an event that may be forwarded."""

    def test_one_line_is_unchanged(self) -> None:
        (event,) = decode(b'data: {"a": 1}\n\n')
        self.assertEqual(event.raw, b'data: {"a": 1}\n\n')
        (event,) = decode(b'data:{"a": 1}\n\n')
        self.assertEqual(event.raw, b'data:{"a": 1}\n\n')

    def test_comments_are_left_out(self) -> None:
        (event,) = decode(b": one\nevent: x\n: two\ndata: 1\nid: 7\n:\n\n")
        self.assertEqual(event.raw, b"event: x\ndata: 1\nid: 7\n\n")

    def test_line_ends_become_line_feeds(self) -> None:
        (event,) = decode(b"data: 1\r\ndata: 2\r\r\n")
        self.assertEqual(event.raw, b"data: 1\ndata: 2\n\n")

    def test_lenient_data(self) -> None:
        """A string with a raw line end is complete in `raw`."""
        (event,) = decode(b'event: error\nid: 1\nretry: 5\ndata: {"error": "a\n b\nc: d"}\n\n')
        self.assertEqual(event.data, b'{"error": "a')
        self.assertEqual(event.lenient_data(), b'{"error": "a\n b\nc: d"}')

    def test_error_field(self) -> None:
        (event,) = decode(b'error: {"message": "no"}\n\n')
        self.assertEqual((event.name, event.data), (b"error", b'{"message": "no"}'))

    def test_pending(self) -> None:
        decoder = EventDecoder(NO_LIMIT)
        list(decoder.receive_data(b"data: a\n\ndata: b\n: comment\nda"))
        self.assertEqual(decoder.pending, b"data: b\nda")


class LimitTests(SynchronousTestCase):
    """`max_event` bounds the length of an event."""

    def test_up_to_the_limit(self) -> None:
        for stream in (b"data: 456789\n\n", b"data: 4\nid:1\n\n", b": comments\n" * 99 + b"\n"):
            self.assertEqual(len(decode(stream, max_event=13)), stream.startswith(b"data"))

    def test_beyond_the_limit(self) -> None:
        for stream in (b"data: 4567890\n\n", b"data: 4\nid:12\n\n", b"data: 45678901", b":" * 14):
            self.assertRaises(EventTooLong, decode, stream, max_event=13)

    def test_lines(self) -> None:
        """Many tiny lines take more memory than their bytes."""
        lines = b"data:\n" * MAX_LINES
        self.assertEqual(len(decode(lines + b"\n")), 1)
        self.assertRaises(EventTooLong, decode, lines + b"data:\n\n")

    def test_limit_applies_to_each_event(self) -> None:
        self.assertEqual(len(decode(b"data: 456789\n\n" * 9, max_event=13)), 9)

    def test_events_before_the_long_one(self) -> None:
        self.assertEqual(outcome(13, b"data: 4\n\n" + b"x" * 20), [b"4", "too long"])


def outcome(limit: int, *packets: bytes) -> list[bytes | str]:
    """Return the data of the events, followed by "too long" if the decoder raised."""
    results: list[bytes | str] = []
    decoder = EventDecoder(limit)
    try:
        for packet in packets:
            results.extend(event.data for event in decoder.receive_data(packet))
    except EventTooLong:
        results.append("too long")
    return results


LINES = st.sampled_from(
    [b"data: a", b"data:b", b"data", b": c", b"", b"", b"event: e", b"id: 1", b"error: f", b"\xff"]
)
ENDS = st.sampled_from([b"\n", b"\n", b"\r", b"\r\n"])
STREAMS = st.tuples(
    st.sampled_from([b"", b"\xef\xbb\xbf", b"\xef\xbb"]),
    st.lists(st.tuples(LINES, ENDS).map(b"".join), max_size=30).map(b"".join),
).map(b"".join)


def reference(stream: bytes) -> list[tuple[bytes, bytes]]:
    """Return (name, data) of each event by the standard's algorithm, for a complete stream."""
    lines = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events = []
    name, values = b"", list[bytes]()
    for line in lines.split(b"\n")[:-1]:
        if not line:
            if values:
                events.append((name, b"".join(values)[:-1]))
            name, values = b"", []
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            values.append(value + b"\n")
        elif field == b"event":
            name = value
        elif field == b"error":  # the rule that blockops adds
            name = b"error"
            values.append(value + b"\n")
    return events


class SplitTests(SynchronousTestCase):
    """The events do not depend on how the bytes are split."""

    @given(STREAMS)
    def test_whole(self, stream: bytes) -> None:
        self.assertEqual([(e.name, e.data) for e in decode(stream)], reference(stream))

    @given(STREAMS, st.lists(st.integers(0, 200)))
    def test_split_anywhere(self, stream: bytes, cuts: list[int]) -> None:
        edges = [0, *sorted(cuts), len(stream)]
        packets = [stream[a:b] for a, b in itertools.pairwise(edges)]
        self.assertEqual(decode(*packets), decode(stream))

    @given(STREAMS)
    def test_byte_by_byte(self, stream: bytes) -> None:
        self.assertEqual(decode(*(stream[i : i + 1] for i in range(len(stream)))), decode(stream))

    @given(STREAMS, st.integers(0, 200), st.integers(1, 20))
    def test_limit_with_splits(self, stream: bytes, cut: int, limit: int) -> None:
        self.assertEqual(outcome(limit, stream[:cut], stream[cut:]), outcome(limit, stream))
