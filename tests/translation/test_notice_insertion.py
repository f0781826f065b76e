"""What blockops says itself: where it stands, that it is said once, and what it never touches."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.chat.request import ChatRequest
from blockops.toolcalls.options import Rules
from blockops.translation import stream as transcode
from blockops.translation.notice_insertion import Aside, Place, ThinkBlock

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
GIVEN = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SAID = "[aside]\n\n"


def asked(*, tools: bool = False) -> ChatRequest:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    return ChatRequest.parse(json.dumps({**body, "tools": [TOOL] if tools else []}).encode())


def event(delta: dict[str, Any], finish: str | None = None, **beside: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, **beside}
    return b"data: " + json.dumps({"id": "c", "choices": [choice]}).encode() + b"\n\n"


class Stream:
    """One stream with an aside in it."""

    def __init__(self, place: Place, *, tools: bool = False, rules: Rules | None = None) -> None:
        self.aside = Aside(place, SAID)
        self.transcoder = transcode.StreamTranscoder(
            asked(tools=tools), rules or Rules(), aside=self.aside
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
            self.out += self.transcoder.receive_data(each)

    def choices(self) -> list[dict[str, Any]]:
        lines = [line for line in self.out.split(b"\n\n") if line and line != b"data: [DONE]"]
        return [choice for line in lines for choice in json.loads(line[6:]).get("choices", [])]

    def text(self, field: str = "content") -> str:
        return "".join(choice["delta"].get(field) or "" for choice in self.choices())

    def check(self, test: SynchronousTestCase) -> None:
        """See that this is a stream that every client takes."""
        choices = self.choices()
        test.assertEqual(choices[0]["delta"]["role"], "assistant")
        reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
        test.assertEqual(len(reasons), 1)
        test.assertEqual(choices[-1]["finish_reason"], reasons[0])
        test.assertTrue(self.out.endswith(b"data: [DONE]\n\n"))


#: Text of an answer -> the text with the aside that opens it; None where it is not said.
OPENED = {
    "Hello": SAID + "Hello",
    "": SAID,
    "\n\nHello": SAID + "\n\nHello",
    "<b>Hello</b>": SAID + "<b>Hello</b>",
    "<thin": SAID + "<thin",
    "<think>hm</think>Hello": "<think>hm</think>" + SAID + "Hello",
    "\n<think>\nhm\n</think>\n\nHello": "\n<think>\nhm\n</think>\n\n" + SAID + "Hello",
    "<think>a < b </thin</think> ok": "<think>a < b </thin</think> " + SAID + "ok",
    "<think>hm</think>\n": "<think>hm</think>\n" + SAID,
    "<think>never ends": None,
    "<think>never ends </thi": None,
    "see <think>x</think>": SAID + "see <think>x</think>",
    " " * 100 + "<think>": SAID + " " * 100 + "<think>",
}


class Opening(SynchronousTestCase):
    def test_at_every_cut(self) -> None:
        for text, wanted in OPENED.items():
            for at in range(len(text) + 1):
                stream = Stream("opens").send(text[:at], text[at:])
                self.assertEqual(stream.text(), text if wanted is None else wanted)
                self.assertEqual(stream.aside.said, wanted is not None)
                stream.check(self)

    def test_character_by_character(self) -> None:
        for text, wanted in OPENED.items():
            stream = Stream("opens").send(*text)
            self.assertEqual(stream.text(), text if wanted is None else wanted)
            stream.check(self)

    def test_whole(self) -> None:
        for text, wanted in OPENED.items():
            aside = Aside("opens", SAID)
            message = {"role": "assistant", "content": text, "x": 1}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            body = json.dumps({"object": "chat.completion", "choices": [choice], "y": 2}).encode()
            out, _ = transcode.whole(body, asked(), Rules(), aside=aside)
            answer = json.loads(out)
            self.assertEqual(answer["choices"][0]["message"]["content"], wanted or text)
            self.assertEqual((answer["y"], answer["choices"][0]["message"]["x"]), (2, 1))

    def test_a_prefilled_think_block(self) -> None:
        stream = Stream("opens", rules=Rules(think_prefilled=True)).send("hm</th", "ink>Hello")
        self.assertEqual(stream.text(), f"hm</think>{SAID}Hello")

    def test_reasoning_apart(self) -> None:
        stream = Stream("opens")
        stream.feed(
            event({"role": "assistant", "reasoning_content": "hm"}),
            event({"content": "Hello"}),
            event({}, "stop"),
            b"data: [DONE]\n\n",
        )
        self.assertEqual(stream.text(), SAID + "Hello")
        self.assertEqual(stream.text("reasoning_content"), "hm")

    def test_held_text_is_given_back_when_the_backend_breaks_off(self) -> None:
        stream = Stream("opens").send("<thi", finish=None)
        out = stream.transcoder.end(cut=True)
        self.assertIn(b"<thi", out)
        self.assertNotIn(SAID.strip().encode(), stream.out + out)

    def test_held_text_is_given_back_before_the_backends_own_call(self) -> None:
        stream = Stream("opens", tools=True).send("<thi", finish=None)
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

    def test_an_end_that_the_backend_left_out(self) -> None:
        stream = Stream("opens").send("<thi", finish=None)
        stream.feed(b"data: [DONE]\n\n")
        self.assertEqual(stream.text(), SAID + "<thi")
        stream.check(self)

    def test_content_and_end_in_one(self) -> None:
        stream = Stream("opens")
        stream.feed(event({"role": "assistant", "content": "Hi"}, "stop"), b"data: [DONE]\n\n")
        self.assertEqual(stream.text(), SAID + "Hi")
        stream.check(self)

    def test_only_the_first_choice(self) -> None:
        stream = Stream("opens")
        second = {
            "index": 1,
            "delta": {"role": "assistant", "content": "Two"},
            "finish_reason": None,
        }
        stream.feed(b"data: " + json.dumps({"choices": [second]}).encode() + b"\n\n")
        self.assertEqual(stream.text(), "Two")
        stream.send("One", finish=None)
        self.assertEqual(stream.text(), "Two" + SAID + "One")

    def test_what_stands_beside_stays(self) -> None:
        stream = Stream("opens")
        stream.feed(event({"role": "assistant", "content": "Hi"}, None, logprobs={"x": 1}))
        self.assertEqual([c.get("logprobs") for c in stream.choices()], [{"x": 1}])

    @given(st.text(alphabet="<>/think \n", max_size=30), st.lists(st.integers(0, 30), max_size=5))
    def test_nothing_but_the_aside_is_added(self, text: str, cuts: list[int]) -> None:
        places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
        parts = [text[a:b] for a, b in pairwise(places)]
        stream = Stream("opens").send(*parts)
        self.assertEqual(stream.text().replace(SAID, "", 1), text)
        self.assertEqual(stream.text(), Stream("opens").send(text).text())


class Closing(SynchronousTestCase):
    def test_behind_the_text(self) -> None:
        for finish in ("stop", "eos"):
            stream = Stream("closes", tools=True).send("Hel", "lo", finish=finish)
            self.assertEqual(stream.text(), "Hello" + SAID)
            stream.check(self)

    def test_not_where_a_call_was_made(self) -> None:
        for texts in ((CALL,), ("First ", CALL), (CALL, " and more")):
            stream = Stream("closes", tools=True).send(*texts)
            self.assertNotIn(SAID, stream.text())
            self.assertFalse(stream.aside.said)
            stream.check(self)

    def test_not_where_the_backend_made_a_call(self) -> None:
        stream = Stream("closes", tools=True).send("Hm", finish=None)
        call = {
            "index": 0,
            "id": "c",
            "type": "function",
            "function": {"name": "f", "arguments": "{}"},
        }
        stream.feed(event({"tool_calls": [call]}), event({}, "stop"), b"data: [DONE]\n\n")
        self.assertEqual(stream.text(), "Hm")

    def test_not_in_an_answer_that_was_cut(self) -> None:
        for finish in ("length", "content_filter"):
            self.assertEqual(Stream("closes").send("Hello", finish=finish).text(), "Hello")

    def test_not_in_a_think_block(self) -> None:
        self.assertEqual(Stream("closes").send("<think>", "hm").text(), "<think>hm")
        said = Stream("closes").send("<think>hm</thi", "nk>ok").text()
        self.assertEqual(said, "<think>hm</think>ok" + SAID)

    def test_an_end_that_the_backend_left_out(self) -> None:
        stream = Stream("closes").send("Hello", finish=None)
        stream.feed(b"data: [DONE]\n\n")
        self.assertEqual(stream.text(), "Hello" + SAID)
        stream.check(self)

    def test_a_whole_answer_without_text(self) -> None:
        aside = Aside("closes", SAID)
        message = {"role": "assistant", "content": None}
        body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        out, _ = transcode.whole(body.encode(), asked(), Rules(), aside=aside)
        self.assertEqual(json.loads(out)["choices"][0]["message"]["content"], SAID)

    def test_a_whole_answer_with_a_call(self) -> None:
        aside = Aside("closes", SAID)
        message = {"role": "assistant", "content": CALL}
        body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        out, report = transcode.whole(body.encode(), asked(tools=True), Rules(), aside=aside)
        self.assertEqual((report.names, aside.said), (["f"], False))
        self.assertNotIn(SAID.strip().encode(), out)

    def test_a_whole_answer_with_a_call_of_the_backend(self) -> None:
        """Also where its finish reason does not tell, as where a function was forced by name."""
        for place, content, wanted in (
            ("closes", "Hi", "Hi"),
            ("closes", None, None),
            ("opens", "Hi", SAID + "Hi"),
            ("opens", "", ""),
            ("opens", "<think>", "<think>"),
            ("opens", "<think", "<think"),
        ):
            aside = Aside("closes" if place == "closes" else "opens", SAID)
            message = {"role": "assistant", "content": content, "tool_calls": [GIVEN]}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            out, _ = transcode.whole(
                json.dumps({"choices": [choice]}).encode(), asked(), Rules(), aside=aside
            )
            (said,) = json.loads(out)["choices"]
            self.assertEqual(said, {**choice, "message": {**message, "content": wanted}}, content)
            self.assertEqual(aside.said, content != wanted)

    def test_an_answer_in_one_delta_with_a_call_of_the_backend(self) -> None:
        for content in ({"content": "Hi"}, {"content": None}, {}):
            stream = Stream("closes", tools=True)
            stream.feed(event({"role": "assistant", **content, "tool_calls": [GIVEN]}, "stop"))
            stream.feed(b"data: [DONE]\n\n")
            self.assertEqual(stream.text(), content.get("content") or "")
            self.assertEqual(stream.choices()[-1]["delta"]["tool_calls"], [GIVEN])
            stream.check(self)


class Thinking(SynchronousTestCase):
    def test_before_everything_and_behind_the_role(self) -> None:
        for texts in (("Hello",), (CALL,), ("<think>x</think>y",)):
            stream = Stream("thinks", tools=True).send(*texts)
            self.assertEqual(stream.text("reasoning_content"), SAID)
            self.assertEqual(stream.choices()[0]["delta"], {"role": "assistant"})
            self.assertNotIn(SAID, stream.text())
            stream.check(self)

    def test_behind_a_role_that_a_heartbeat_has_said(self) -> None:
        aside = Aside("thinks", SAID)
        transcoder = transcode.StreamTranscoder(
            asked(), Rules(), heartbeat_style="chunk", aside=aside
        )
        transcoder.heartbeat()
        out = transcoder.receive_data(event({"content": "Hello"}))
        self.assertLess(out.index(b"[aside]"), out.index(b"Hello"))
        self.assertNotIn(b"role", out)

    def test_whole(self) -> None:
        message = {"role": "assistant", "content": "Hello", "reasoning_content": "hm"}
        body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        out, _ = transcode.whole(body.encode(), asked(), Rules(), aside=Aside("thinks", SAID))
        said = json.loads(out)["choices"][0]["message"]
        self.assertEqual((said["content"], said["reasoning_content"]), ("Hello", SAID + "hm"))

    def test_in_front_of_thoughts(self) -> None:
        stream = Stream("thinks")
        stream.feed(event({"role": "assistant", "reasoning_content": "hm", "content": "Hi"}))
        self.assertEqual(stream.text("reasoning_content"), SAID + "hm")
        roles = [choice["delta"].get("role") for choice in stream.choices()]
        self.assertEqual(roles, ["assistant", None, None])

    def test_an_answer_of_nothing(self) -> None:
        stream = Stream("thinks")
        stream.feed(b"data: [DONE]\n\n")
        deltas = [choice["delta"] for choice in stream.choices()]
        self.assertEqual(deltas, [{"role": "assistant"}, {"reasoning_content": SAID}, {}])
        stream.check(self)

    def test_of_what_says_nothing_else(self) -> None:
        """All that is said besides stays, once."""
        stream = Stream("thinks")
        stream.feed(event({"role": "assistant"}, logprobs={"x": 1}, other=2))
        deltas = [choice["delta"] for choice in stream.choices()]
        self.assertEqual(deltas, [{"role": "assistant"}, {"reasoning_content": SAID}, {}])
        self.assertEqual(stream.out.count(b'"x"') + stream.out.count(b'"other"'), 2)


class Nothing(SynchronousTestCase):
    def test_without_a_text_the_bytes_pass(self) -> None:
        for place in ("opens", "closes", "thinks"):
            aside = Aside(place)
            transcoder = transcode.StreamTranscoder(asked(), Rules(), aside=aside)
            sent = event({"role": "assistant", "content": "<thi"}) + event({}, "stop")
            self.assertEqual(transcoder.receive_data(sent), sent)
            self.assertFalse(aside.said)

    def test_a_text_that_comes_before_the_answer_counts(self) -> None:
        stream = Stream("opens")
        stream.aside.text = ""
        stream.out += stream.transcoder.heartbeat()
        stream.aside.text = "late "
        stream.out = b""
        self.assertEqual(stream.send("Hello").text(), "late Hello")


class Remarks(SynchronousTestCase):
    def test_before_anything(self) -> None:
        stream = Stream("opens")
        stream.out = stream.transcoder.remark("wait")
        self.assertEqual(
            [c["delta"] for c in stream.choices()],
            [{"role": "assistant"}, {"reasoning_content": "wait"}],
        )
        stream.send("Hello")
        self.assertEqual(stream.text(), SAID + "Hello")

    def test_not_once_something_was_said_or_all_is_over(self) -> None:
        for events in (
            (event({"content": "H"}),),
            (event({"reasoning": "H"}),),
            (event({"tool_calls": [{"index": 0}]}),),
            (event({}, "stop"),),
            (b'data: {"error": {"message": "no"}}\n\n',),
        ):
            stream = Stream("opens")
            stream.feed(*events)
            self.assertEqual(stream.transcoder.remark("wait"), b"", events)

    def test_what_is_of_an_odd_shape_is_no_silence(self) -> None:
        stream = Stream("opens")
        stream.feed(b'data: {"choices": [{"index": 0, "delta": "H"}]}\n\n')
        self.assertEqual(stream.transcoder.remark("wait"), b"")


class Blocks(SynchronousTestCase):
    @given(st.text(alphabet="<>/think \n", max_size=40), st.lists(st.integers(0, 40), max_size=6))
    def test_what_goes_in_comes_out(self, text: str, cuts: list[int]) -> None:
        block, out = ThinkBlock(), ""
        places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
        for start, end in pairwise(places):
            before, behind = block.feed(text[start:end])
            out += before + behind
            if behind:
                out += text[end:]
                break
        else:
            out += block.release()
        self.assertEqual(out, text)
