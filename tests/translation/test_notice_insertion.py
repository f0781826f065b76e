"""Notices: their place, that they are inserted once, and that other bytes are kept."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.notice import Notice, Place
from blockops.api.request import ChatRequest
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.notice_insertion import ThinkBlockTracker
from blockops.translation.stream import StreamTranslator
from tests.api.requests import translate_response

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
BACKEND_CALL = {
    "index": 0,
    "id": "c",
    "type": "function",
    "function": {"name": "f", "arguments": "{}"},
}
TEXT = "[notice]\n\n"


def chat_request(*, tools: bool = False) -> ChatRequest:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    return ChatRequest(json.dumps({**body, "tools": [TOOL] if tools else []}).encode())


def event(delta: dict[str, Any], finish: str | None = None, **extra: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, **extra}
    return b"data: " + json.dumps({"id": "c", "choices": [choice]}).encode() + b"\n\n"


class Stream:
    """One stream with a notice."""

    def __init__(
        self, place: Place, *, tools: bool = False, options: TranslationOptions | None = None
    ) -> None:
        self.notice = Notice(place, TEXT)
        self.translator = StreamTranslator(
            chat_request(tools=tools), options or TranslationOptions(), notice=self.notice
        )
        self.out = b""

    def send(self, *texts: str, finish: str | None = "stop") -> Stream:
        self.feed(
            event({"role": "assistant", "content": ""}), *(event({"content": t}) for t in texts)
        )
        if finish:
            self.feed(event({}, finish), b"data: [DONE]\n\n")
        return self

    def feed(self, *events: bytes) -> None:
        for each in events:
            self.out += self.translator.receive_data(each)

    def choices(self) -> list[dict[str, Any]]:
        lines = [line for line in self.out.split(b"\n\n") if line and line != b"data: [DONE]"]
        return [choice for line in lines for choice in json.loads(line[6:]).get("choices", [])]

    def text(self, field: str = "content") -> str:
        return "".join(choice["delta"].get(field) or "" for choice in self.choices())

    def check(self, test: SynchronousTestCase) -> None:
        """Check that every client accepts the stream."""
        choices = self.choices()
        test.assertEqual(choices[0]["delta"]["role"], "assistant")
        reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
        test.assertEqual(len(reasons), 1)
        test.assertEqual(choices[-1]["finish_reason"], reasons[0])
        test.assertTrue(self.out.endswith(b"data: [DONE]\n\n"))


#: Maps the text of an answer to the text with a "before" notice, or None without one.
WITH_NOTICE = {
    "Hello": TEXT + "Hello",
    "": TEXT,
    "\n\nHello": TEXT + "\n\nHello",
    "<b>Hello</b>": TEXT + "<b>Hello</b>",
    "<thin": TEXT + "<thin",
    "<think>hm</think>Hello": "<think>hm</think>" + TEXT + "Hello",
    "\n<think>\nhm\n</think>\n\nHello": "\n<think>\nhm\n</think>\n\n" + TEXT + "Hello",
    "<think>a < b </thin</think> ok": "<think>a < b </thin</think> " + TEXT + "ok",
    "<think>hm</think>\n": "<think>hm</think>\n" + TEXT,
    "<think>never ends": None,
    "<think>never ends </thi": None,
    "see <think>x</think>": TEXT + "see <think>x</think>",
    " " * 100 + "<think>": TEXT + " " * 100 + "<think>",
}


class BeforeTests(SynchronousTestCase):
    def test_at_every_split(self) -> None:
        for text, expected in WITH_NOTICE.items():
            for at in range(len(text) + 1):
                stream = Stream("before").send(text[:at], text[at:])
                self.assertEqual(stream.text(), text if expected is None else expected)
                self.assertEqual(stream.notice.is_delivered, expected is not None)
                stream.check(self)

    def test_character_by_character(self) -> None:
        for text, expected in WITH_NOTICE.items():
            stream = Stream("before").send(*text)
            self.assertEqual(stream.text(), text if expected is None else expected)
            stream.check(self)

    def test_response(self) -> None:
        for text, expected in WITH_NOTICE.items():
            notice = Notice("before", TEXT)
            message = {"role": "assistant", "content": text, "x": 1}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            body = json.dumps({"object": "chat.completion", "choices": [choice], "y": 2}).encode()
            out, _ = translate_response(body, chat_request(), TranslationOptions(), notice=notice)
            answer = json.loads(out)
            self.assertEqual(answer["choices"][0]["message"]["content"], expected or text)
            self.assertEqual((answer["y"], answer["choices"][0]["message"]["x"]), (2, 1))

    def test_prefilled_think_block(self) -> None:
        stream = Stream("before", options=TranslationOptions(think_prefilled=True)).send(
            "hm</th", "ink>Hello"
        )
        self.assertEqual(stream.text(), f"hm</think>{TEXT}Hello")

    def test_separate_reasoning(self) -> None:
        stream = Stream("before")
        stream.feed(
            event({"role": "assistant", "reasoning_content": "hm"}),
            event({"content": "Hello"}),
            event({}, "stop"),
            b"data: [DONE]\n\n",
        )
        self.assertEqual(stream.text(), TEXT + "Hello")
        self.assertEqual(stream.text("reasoning_content"), "hm")

    def test_held_text_is_sent_when_the_stream_is_truncated(self) -> None:
        stream = Stream("before").send("<thi", finish=None)
        out = stream.translator.end(is_truncated=True)
        self.assertIn(b"<thi", out)
        self.assertNotIn(TEXT.strip().encode(), stream.out + out)

    def test_held_text_is_sent_before_a_call_of_the_backend(self) -> None:
        stream = Stream("before", tools=True).send("<thi", finish=None)
        call = {
            "index": 0,
            "id": "c",
            "type": "function",
            "function": {"name": "f", "arguments": ""},
        }
        stream.feed(event({"tool_calls": [call]}), event({}, "tool_calls"), b"data: [DONE]\n\n")
        self.assertEqual(stream.text(), "<thi")
        self.assertEqual(
            [c["delta"]["tool_calls"] for c in stream.choices() if "tool_calls" in c["delta"]],
            [[call]],
        )
        stream.check(self)

    def test_missing_finish_reason(self) -> None:
        stream = Stream("before").send("<thi", finish=None)
        stream.feed(b"data: [DONE]\n\n")
        self.assertEqual(stream.text(), TEXT + "<thi")
        stream.check(self)

    def test_content_and_end_in_one_chunk(self) -> None:
        stream = Stream("before")
        stream.feed(event({"role": "assistant", "content": "Hi"}, "stop"), b"data: [DONE]\n\n")
        self.assertEqual(stream.text(), TEXT + "Hi")
        stream.check(self)

    def test_only_the_first_choice(self) -> None:
        stream = Stream("before")
        second = {
            "index": 1,
            "delta": {"role": "assistant", "content": "Two"},
            "finish_reason": None,
        }
        stream.feed(b"data: " + json.dumps({"choices": [second]}).encode() + b"\n\n")
        self.assertEqual(stream.text(), "Two")
        stream.send("One", finish=None)
        self.assertEqual(stream.text(), "Two" + TEXT + "One")

    def test_other_fields_are_kept(self) -> None:
        stream = Stream("before")
        stream.feed(event({"role": "assistant", "content": "Hi"}, None, logprobs={"x": 1}))
        self.assertEqual([c.get("logprobs") for c in stream.choices()], [{"x": 1}])

    @given(st.text(alphabet="<>/think \n", max_size=30), st.lists(st.integers(0, 30), max_size=5))
    def test_only_the_notice_is_added(self, text: str, splits: list[int]) -> None:
        places = sorted({0, len(text), *(min(split, len(text)) for split in splits)})
        parts = [text[a:b] for a, b in pairwise(places)]
        stream = Stream("before").send(*parts)
        self.assertEqual(stream.text().replace(TEXT, "", 1), text)
        self.assertEqual(stream.text(), Stream("before").send(text).text())


class AfterTests(SynchronousTestCase):
    def test_after_the_text(self) -> None:
        for finish in ("stop", "eos"):
            stream = Stream("after", tools=True).send("Hel", "lo", finish=finish)
            self.assertEqual(stream.text(), "Hello" + TEXT)
            stream.check(self)

    def test_not_with_a_call(self) -> None:
        for texts in ((CALL,), ("First ", CALL), (CALL, " and more")):
            stream = Stream("after", tools=True).send(*texts)
            self.assertNotIn(TEXT, stream.text())
            self.assertFalse(stream.notice.is_delivered)
            stream.check(self)

    def test_not_with_a_call_of_the_backend(self) -> None:
        stream = Stream("after", tools=True).send("Hm", finish=None)
        call = {
            "index": 0,
            "id": "c",
            "type": "function",
            "function": {"name": "f", "arguments": "{}"},
        }
        stream.feed(event({"tool_calls": [call]}), event({}, "stop"), b"data: [DONE]\n\n")
        self.assertEqual(stream.text(), "Hm")

    def test_not_in_a_truncated_answer(self) -> None:
        for finish in ("length", "content_filter"):
            self.assertEqual(Stream("after").send("Hello", finish=finish).text(), "Hello")

    def test_not_in_a_think_block(self) -> None:
        self.assertEqual(Stream("after").send("<think>", "hm").text(), "<think>hm")
        text = Stream("after").send("<think>hm</thi", "nk>ok").text()
        self.assertEqual(text, "<think>hm</think>ok" + TEXT)

    def test_missing_finish_reason(self) -> None:
        stream = Stream("after").send("Hello", finish=None)
        stream.feed(b"data: [DONE]\n\n")
        self.assertEqual(stream.text(), "Hello" + TEXT)
        stream.check(self)

    def test_response_without_text(self) -> None:
        notice = Notice("after", TEXT)
        message = {"role": "assistant", "content": None}
        body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        out, _ = translate_response(
            body.encode(), chat_request(), TranslationOptions(), notice=notice
        )
        self.assertEqual(json.loads(out)["choices"][0]["message"]["content"], TEXT)

    def test_response_with_a_call(self) -> None:
        notice = Notice("after", TEXT)
        message = {"role": "assistant", "content": CALL}
        body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        out, report = translate_response(
            body.encode(), chat_request(tools=True), TranslationOptions(), notice=notice
        )
        self.assertEqual((report.tool_names, notice.is_delivered), (["f"], False))
        self.assertNotIn(TEXT.strip().encode(), out)

    def test_response_with_a_call_of_the_backend(self) -> None:
        """Even if its finish reason is not "tool_calls", as with a function forced by name."""
        for place, content, expected in (
            ("after", "Hi", "Hi"),
            ("after", None, None),
            ("before", "Hi", TEXT + "Hi"),
            ("before", "", ""),
            ("before", "<think>", "<think>"),
            ("before", "<think", "<think"),
        ):
            notice = Notice("after" if place == "after" else "before", TEXT)
            message = {"role": "assistant", "content": content, "tool_calls": [BACKEND_CALL]}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            out, _ = translate_response(
                json.dumps({"choices": [choice]}).encode(),
                chat_request(),
                TranslationOptions(),
                notice=notice,
            )
            (sent,) = json.loads(out)["choices"]
            self.assertEqual(sent, {**choice, "message": {**message, "content": expected}}, content)
            self.assertEqual(notice.is_delivered, content != expected)

    def test_one_delta_with_a_call_of_the_backend(self) -> None:
        for content in ({"content": "Hi"}, {"content": None}, {}):
            stream = Stream("after", tools=True)
            stream.feed(
                event({"role": "assistant", **content, "tool_calls": [BACKEND_CALL]}, "stop")
            )
            stream.feed(b"data: [DONE]\n\n")
            self.assertEqual(stream.text(), content.get("content") or "")
            self.assertEqual(stream.choices()[-1]["delta"]["tool_calls"], [BACKEND_CALL])
            stream.check(self)


class ReasoningTests(SynchronousTestCase):
    def test_before_everything_but_the_role(self) -> None:
        for texts in (("Hello",), (CALL,), ("<think>x</think>y",)):
            stream = Stream("reasoning", tools=True).send(*texts)
            self.assertEqual(stream.text("reasoning_content"), TEXT)
            self.assertEqual(stream.choices()[0]["delta"], {"role": "assistant"})
            self.assertNotIn(TEXT, stream.text())
            stream.check(self)

    def test_after_the_role_of_a_heartbeat(self) -> None:
        notice = Notice("reasoning", TEXT)
        translator = StreamTranslator(
            chat_request(), TranslationOptions(), heartbeat_style="chunk", notice=notice
        )
        translator.heartbeat()
        out = translator.receive_data(event({"content": "Hello"}))
        self.assertLess(out.index(b"[notice]"), out.index(b"Hello"))
        self.assertNotIn(b"role", out)

    def test_heartbeat_while_it_waits(self) -> None:
        translator = StreamTranslator(
            chat_request(),
            TranslationOptions(),
            heartbeat_style="chunk",
            notice=Notice("after", TEXT),
        )
        translator.receive_data(event({"role": "assistant", "content": "Hello"}))
        self.assertIn(b'"delta":{}', translator.heartbeat())

    def test_response(self) -> None:
        message = {"role": "assistant", "content": "Hello", "reasoning_content": "hm"}
        body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        out, _ = translate_response(
            body.encode(), chat_request(), TranslationOptions(), notice=Notice("reasoning", TEXT)
        )
        sent = json.loads(out)["choices"][0]["message"]
        self.assertEqual((sent["content"], sent["reasoning_content"]), ("Hello", TEXT + "hm"))

    def test_before_reasoning(self) -> None:
        stream = Stream("reasoning")
        stream.feed(event({"role": "assistant", "reasoning_content": "hm", "content": "Hi"}))
        self.assertEqual(stream.text("reasoning_content"), TEXT + "hm")
        roles = [choice["delta"].get("role") for choice in stream.choices()]
        self.assertEqual(roles, ["assistant", None, None])

    def test_empty_answer(self) -> None:
        stream = Stream("reasoning")
        stream.feed(b"data: [DONE]\n\n")
        deltas = [choice["delta"] for choice in stream.choices()]
        self.assertEqual(deltas, [{"role": "assistant"}, {"reasoning_content": TEXT}, {}])
        stream.check(self)

    def test_chunk_without_content(self) -> None:
        """Its other fields are kept, once."""
        stream = Stream("reasoning")
        stream.feed(event({"role": "assistant"}, logprobs={"x": 1}, other=2))
        deltas = [choice["delta"] for choice in stream.choices()]
        self.assertEqual(deltas, [{"role": "assistant"}, {"reasoning_content": TEXT}, {}])
        self.assertEqual(stream.out.count(b'"x"') + stream.out.count(b'"other"'), 2)


class NoTextTests(SynchronousTestCase):
    def test_bytes_pass_without_a_text(self) -> None:
        for place in ("before", "after", "reasoning"):
            notice = Notice(place)
            translator = StreamTranslator(chat_request(), TranslationOptions(), notice=notice)
            sent = event({"role": "assistant", "content": "<thi"}) + event({}, "stop")
            self.assertEqual(translator.receive_data(sent), sent)
            self.assertFalse(notice.is_delivered)

    def test_text_set_before_the_answer(self) -> None:
        stream = Stream("before")
        stream.notice.text = ""
        stream.out += stream.translator.heartbeat()
        stream.notice.text = "late "
        stream.out = b""
        self.assertEqual(stream.send("Hello").text(), "late Hello")


class PrefillNoticeTests(SynchronousTestCase):
    def test_before_any_content(self) -> None:
        stream = Stream("before")
        stream.out = stream.translator.prefill_notice("wait")
        self.assertEqual(
            [c["delta"] for c in stream.choices()],
            [{"role": "assistant"}, {"reasoning_content": "wait"}],
        )
        stream.send("Hello")
        self.assertEqual(stream.text(), TEXT + "Hello")

    def test_not_after_content_or_the_end(self) -> None:
        for events in (
            (event({"content": "H"}),),
            (event({"reasoning": "H"}),),
            (event({"tool_calls": [{"index": 0}]}),),
            (event({}, "stop"),),
            (b'data: {"error": {"message": "no"}}\n\n',),
        ):
            stream = Stream("before")
            stream.feed(*events)
            self.assertEqual(stream.translator.prefill_notice("wait"), b"", events)

    def test_not_after_a_chunk_of_an_unknown_shape(self) -> None:
        stream = Stream("before")
        stream.feed(b'data: {"choices": [{"index": 0, "delta": "H"}]}\n\n')
        self.assertEqual(stream.translator.prefill_notice("wait"), b"")


class ThinkBlockTests(SynchronousTestCase):
    @given(st.text(alphabet="<>/think \n", max_size=40), st.lists(st.integers(0, 40), max_size=6))
    def test_no_text_is_lost(self, text: str, splits: list[int]) -> None:
        block, out = ThinkBlockTracker(), ""
        places = sorted({0, len(text), *(min(split, len(text)) for split in splits)})
        for start, end in pairwise(places):
            before, after = block.feed(text[start:end])
            out += before + after
            if after:
                out += text[end:]
                break
        else:
            out += block.flush()
        self.assertEqual(out, text)
