"""Short names in the events of other protocols, however they are cut."""

from __future__ import annotations

import json
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.chat.request import ChatRequest
from blockops.errors import ApiError
from blockops.toolcalls.options import Rules
from blockops.translation.model_alias import RenamedPassThrough, RenamedTranscoder, Renaming

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


def through(pieces: Iterable[bytes], max_event: int = 1 << 20, *, cut: bool = False) -> bytes:
    one = RenamedPassThrough(Renaming("short"), max_event)
    return b"".join([*map(one.receive_data, pieces), one.end(cut=cut)])


def short(stream: bytes) -> bytes:
    return stream.replace(b'"id":"r","model":"tiny"', b'"id":"r","model":"short"')


class Where(SynchronousTestCase):
    def test_in_each_event_that_has_the_response(self) -> None:
        """And nowhere else: what a client has said of itself stays."""
        self.assertEqual(through([STREAM]), short(STREAM))

    def test_in_messages(self) -> None:
        (started,) = through([STARTED]).split(b"data: ")[1:]
        self.assertEqual(json.loads(started)["message"], {"role": "assistant", "model": "short"})

    def test_at_the_top(self) -> None:
        self.assertEqual(through([TOP]), b'data: {"model":"short"}\n\n')

    def test_what_else_there_is_passes_as_it_came(self) -> None:
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
            self.assertEqual(through([event, event]), event * 2)

    def test_lines_of_all_kinds(self) -> None:
        for end in (b"\n", b"\r\n", b"\r"):
            event = end.join([b"id: 7", b"data: {", b'data:  "model": "tiny"}', b"", b""])
            self.assertEqual(through([event]), b'id: 7\ndata: {"model":"short"}\n\n', end)


class Cuts(SynchronousTestCase):
    def test_at_every_cut(self) -> None:
        for end in (b"\n", b"\r\n", b"\r"):
            stream = STREAM.replace(b"\n", end)
            expected = through([stream])
            self.assertEqual(through(stream[at : at + 1] for at in range(len(stream))), expected)
            for at in range(len(stream)):
                self.assertEqual(through([stream[:at], stream[at:]]), expected, at)

    @given(st.text('ad: {}"model\n\r').map(str.encode), st.integers(0, 40))
    def test_nothing_vanishes(self, stream: bytes, at: int) -> None:
        self.assertEqual(through([stream[:at], stream[at:]], 10), stream)


class Bounds(SynchronousTestCase):
    def test_what_is_too_long_goes_as_it_comes(self) -> None:
        """And the next event is held back again."""
        one = RenamedPassThrough(Renaming("short"), 20)
        self.assertEqual(one.receive_data(CREATED[:20]), b"")
        self.assertEqual(one.receive_data(CREATED[20:21]), CREATED[:21])
        self.assertEqual(one.heartbeat(), b"")
        self.assertEqual(one.receive_data(CREATED[21:] + TOP), CREATED[21:] + through([TOP]))
        self.assertNotEqual(one.heartbeat(), b"")

    def test_a_sign_of_life_stands_in_front_of_what_is_held_back(self) -> None:
        one = RenamedPassThrough(Renaming("short"))
        one.receive_data(TEXT + b"data: {")
        self.assertEqual(one.heartbeat(), b": heartbeat\n\n")


class Ends(SynchronousTestCase):
    def test_what_was_held_back_comes_before_an_error(self) -> None:
        one = RenamedPassThrough(Renaming("short"))
        one.receive_data(b"data: {")
        said = one.fail(ApiError(502, "boom"))
        self.assertTrue(said.startswith(b"data: {\n\nevent: error\ndata: {"), said)
        self.assertEqual(one.report.error, "boom")
        self.assertEqual(one.receive_data(TOP) + one.end(cut=True), b"")

    def test_cut(self) -> None:
        said = through([TEXT, b"data: {"], cut=True)
        self.assertTrue(said.startswith(TEXT + b"data: {\n\nevent: error"), said)


class Chats(SynchronousTestCase):
    def transcoder(self) -> RenamedTranscoder:
        asked = ChatRequest.parse(
            b'{"model":"short","stream":true,"messages":[{"role":"user","content":"Hi"}]}',
            {"short": "tiny"},
        )
        return RenamedTranscoder(Renaming("short"), asked, Rules())

    def test_a_chunk_that_was_mended(self) -> None:
        transcoder = self.transcoder()
        chunk = (
            b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"a\\/\\u00fc",'
            b'"choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},'
            b'"finish_reason":null}]}\n\n'
        )
        for said in (b"Hi", b"\\ud83d", b"\\ude00"):
            event = transcoder.receive_data(chunk.replace(b"Hi", said))
            self.assertEqual(json.loads(event[6:])["model"], "short")

    def test_a_whole_answer_under_the_name_of_a_stream(self) -> None:
        transcoder = self.transcoder()
        answer = (
            b'{"id":"c","object":"chat.completion","created":1,"model":"tiny","choices":[{"index":0,'
            b'"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}]}'
        )
        self.assertEqual(transcoder.receive_data(answer), b"")
        events = transcoder.end(cut=False).split(b"\n\n")
        said = [json.loads(event[6:])["model"] for event in events if b"choices" in event]
        self.assertEqual(set(said), {"short"})
        self.assertIn(b"[DONE]", events[-2])
