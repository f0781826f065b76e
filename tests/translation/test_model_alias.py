"""Model aliases in streams, split anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.request import ChatRequest
from blockops.errors import ApiError
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.model_alias import AliasedPassThrough
from blockops.translation.stream import StreamTranslator

CREATED = (
    b"event: response.created\n"
    b'data: {"type":"response.created","response":{"id":"r","model":"tiny","metadata":'
    b'{"model":"tiny"},"output":[],"temperature":1.0},"sequence_number":0}\n\n'
)
TEXT = (
    b"event: response.output_text.delta\n"
    b'data: {"type":"response.output_text.delta","delta":"{\\"model\\":\\"tiny\\"}"}\n\n'
)
DONE = CREATED.replace(b"created", b"completed")
STARTED = b'event: message_start\ndata: {"message": {"role": "assistant", "model": "tiny"}}\n\n'
TOP = b'data: {"model": "tiny"}\n\n'
STREAM = CREATED + TEXT + DONE


def pass_through(
    pieces: Iterable[bytes], max_event: int = 1 << 20, *, truncated: bool = False
) -> bytes:
    stream = AliasedPassThrough("short", max_event)
    return b"".join([*map(stream.receive_data, pieces), stream.end(is_truncated=truncated)])


def renamed(stream: bytes) -> bytes:
    return stream.replace(b'"id":"r","model":"tiny"', b'"id":"r","model":"short"')


class PlacesTests(SynchronousTestCase):
    def test_in_events_with_a_response(self) -> None:
        """Only there: the client's own metadata are kept."""
        self.assertEqual(pass_through([STREAM]), renamed(STREAM))

    def test_in_messages(self) -> None:
        (started,) = pass_through([STARTED]).split(b"data: ")[1:]
        self.assertEqual(json.loads(started)["message"], {"role": "assistant", "model": "short"})

    def test_at_the_top(self) -> None:
        self.assertEqual(pass_through([TOP]), b'data: {"model":"short"}\n\n')

    def test_other_events_pass_unchanged(self) -> None:
        for event in (
            TEXT,
            b": model\n\n",
            b": c\r\n\r\n",
            b"retry: 3\r\r",
            b'data: {"model": 7}\n\n',
            b'data: {"response": "model", "x": {"model": "tiny"}}\n\n',
            b'data: {"message": {"model": ["tiny"]}}\r\n\r\n',
            b'data: "model"\n\n',
            b'data: {"model": "short"}\n\n',
            b'data: {"model": "ti\n\n',
            b"data: [DONE]\n\n",
            b"data:",
        ):
            self.assertEqual(pass_through([event, event]), event * 2)

    def test_all_line_ends(self) -> None:
        for end in (b"\n", b"\r\n", b"\r"):
            event = end.join([b"id: 7", b"data: {", b'data:  "model": "tiny"}', b"", b""])
            self.assertEqual(pass_through([event]), b'id: 7\ndata: {"model":"short"}\n\n', end)


class SplitTests(SynchronousTestCase):
    def test_at_every_split(self) -> None:
        for end in (b"\n", b"\r\n", b"\r"):
            stream = STREAM.replace(b"\n", end)
            expected = pass_through([stream])
            self.assertEqual(
                pass_through(stream[at : at + 1] for at in range(len(stream))), expected
            )
            for at in range(len(stream)):
                self.assertEqual(pass_through([stream[:at], stream[at:]]), expected, at)

    @given(st.text('ad: {}"model\n\r').map(str.encode), st.integers(0, 40))
    def test_nothing_is_lost(self, stream: bytes, at: int) -> None:
        self.assertEqual(pass_through([stream[:at], stream[at:]], 10), stream)


class BoundTests(SynchronousTestCase):
    def test_too_long_events_pass_as_they_arrive(self) -> None:
        """The next event is held back until it is complete."""
        stream = AliasedPassThrough("short", 20)
        self.assertEqual(stream.receive_data(CREATED[:20]), b"")
        self.assertEqual(stream.receive_data(CREATED[20:21]), CREATED[:21])
        self.assertEqual(stream.heartbeat(), b"")
        self.assertEqual(
            stream.receive_data(CREATED[21:] + TOP), CREATED[21:] + pass_through([TOP])
        )
        self.assertNotEqual(stream.heartbeat(), b"")

    def test_heartbeat_before_a_pending_event(self) -> None:
        stream = AliasedPassThrough("short")
        stream.receive_data(TEXT + b"data: {")
        self.assertEqual(stream.heartbeat(), b": heartbeat\n\n")


class EndTests(SynchronousTestCase):
    def test_pending_bytes_precede_an_error(self) -> None:
        stream = AliasedPassThrough("short")
        stream.receive_data(b"data: {")
        out = stream.fail(ApiError(502, "boom"))
        self.assertTrue(out.startswith(b"data: {\n\nevent: error\ndata: {"), out)
        self.assertEqual(stream.report.error, "boom")
        self.assertEqual(stream.receive_data(TOP) + stream.end(is_truncated=True), b"")

    def test_truncated(self) -> None:
        out = pass_through([TEXT, b"data: {"], truncated=True)
        self.assertTrue(out.startswith(TEXT + b"data: {\n\nevent: error"), out)


class ChatTests(SynchronousTestCase):
    def translator(self) -> StreamTranslator:
        request = ChatRequest(
            b'{"model":"short","stream":true,"messages":[{"role":"user","content":"Hi"}]}',
            {"short": "tiny"},
        )
        return StreamTranslator(request, TranslationOptions())

    def test_repaired_chunk(self) -> None:
        translator = self.translator()
        chunk = (
            b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"a\\/\\u00fc",'
            b'"choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},'
            b'"finish_reason":null}]}\n\n'
        )
        for text in (b"Hi", b"\\ud83d", b"\\ude00"):
            event = translator.receive_data(chunk.replace(b"Hi", text))
            self.assertEqual(json.loads(event[6:])["model"], "short")

    def test_json_body_sent_as_a_stream(self) -> None:
        translator = self.translator()
        answer = (
            b'{"id":"c","object":"chat.completion","created":1,"model":"tiny","choices":[{"index":0,'
            b'"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}]}'
        )
        self.assertEqual(translator.receive_data(answer), b"")
        events = translator.end(is_truncated=False).split(b"\n\n")
        names = [json.loads(event[6:])["model"] for event in events if b"choices" in event]
        self.assertEqual(set(names), {"short"})
        self.assertIn(b"[DONE]", events[-2])

    def test_json_body(self) -> None:
        answer = (
            b'{"id":"c","model":"tiny","choices":[{"index":0,"message":{"role":"assistant",'
            b'"content":"Hello"},"finish_reason":"stop"}]}'
        )
        events = self.translator().receive_body(answer).split(b"\n\n")
        self.assertEqual(json.loads(events[0][6:])["model"], "short")
