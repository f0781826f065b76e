"""A stream, joined, is the whole answer that the backend would have given."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.chat.request import ChatRequest, CompletionRequest
from blockops.errors import ApiError
from blockops.toolcalls.options import Rules
from blockops.translation.aggregate import StreamJoiner
from blockops.translation.stream import whole_as_stream
from tests.api.requests import (
    CALL,
    DONE,
    LENGTH,
    ROLE,
    STOP,
    chat,
    completion,
    counted_ids,
    delta,
    event,
    text,
)
from tests.translation.test_captures import STREAMS, WHOLE, expected, pairs
from tests.translation.test_stream import CHUNKS, STRUCTURED, USAGE


def join(stream: bytes, asked: Any = None, *, cut: bool = False, **options: Any) -> Any:
    joiner = StreamJoiner(asked or chat("search"), Rules(), new_id=counted_ids(), **options)
    assert joiner.receive_data(stream) == b""
    return json.loads(joiner.whole(cut=cut))


def message(stream: bytes) -> Any:
    (choice,) = join(stream + DONE)["choices"]
    return choice["message"]


class JoinTests(SynchronousTestCase):
    def test_text(self) -> None:
        answer = join(ROLE + text("Hello") + text(" you") + LENGTH + DONE)
        self.assertEqual(
            answer,
            {
                "id": "c",
                "object": "chat.completion",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "Hello you"},
                        "finish_reason": "length",
                    }
                ],
            },
        )

    def test_calls(self) -> None:
        stream = ROLE + text("a") + text(CALL) + delta(tool_calls=[STRUCTURED])
        said = message(stream + STOP)
        self.assertEqual(said["content"], "a")
        self.assertEqual(pairs(said), [("search", {"query": "x"}), ("get_weather", {})])
        self.assertEqual(said["tool_calls"][0].keys(), {"id", "type", "function"})

    def test_odd_framing_costs_no_text(self) -> None:
        a = text("a")
        odd = [b"id: 1\n" + a, a.replace(b"data: ", b"data:"), a.replace(b"\n\n", b"\n}\n\n")]
        self.assertEqual(message(ROLE + b"".join(odd) + STOP)["content"], "aaa")

    def test_only_calls(self) -> None:
        self.assertIsNone(message(ROLE + text(CALL) + STOP)["content"])

    def test_nothing(self) -> None:
        self.assertEqual(message(b""), {"role": "assistant", "content": ""})

    def test_calls_without_an_index(self) -> None:
        """A name begins one, as it does in a report of a stream."""
        calls = [{"name": "f", "arguments": ""}, {"arguments": "{}"}, {"name": "f"}, {"name": "g"}]
        made = [{"function": call} for call in calls]
        for stream in (
            b"".join(delta(tool_calls=[call]) for call in made),
            delta(tool_calls=made),
            delta(tool_calls=made[:2]) + delta(tool_calls=made[2:]),
        ):
            told = [call["function"] for call in message(ROLE + stream + STOP)["tool_calls"]]
            self.assertEqual(told, [{"name": "f", "arguments": "{}"}, {"name": "f"}, {"name": "g"}])

    def test_function_call(self) -> None:
        parts = ({"name": "f", "arguments": "{"}, {"arguments": "}"})
        said = message(ROLE + b"".join(delta(function_call=part) for part in parts) + STOP)
        self.assertEqual(said["function_call"], {"name": "f", "arguments": "{}"})

    def test_everything_else(self) -> None:
        """Usage, log probabilities, reasoning, unknown fields."""
        logprobs = [{"content": [{"token": t, "logprob": -1.5}], "refusal": None} for t in "ab"]
        stream = ROLE
        for part, probs in zip("ab", logprobs, strict=True):
            choice = {"index": 0, "delta": {"content": part, "reasoning": part}, "logprobs": probs}
            stream += event({"id": "c", "choices": [{**choice, "k": part}], "x": part, "y": None})
        stream += STOP + event({"id": "c", "choices": [], "usage": USAGE, "x": None})
        answer = join(stream + DONE)
        (choice,) = answer["choices"]
        self.assertEqual(choice["message"]["reasoning"], "ab")
        self.assertEqual([p["token"] for p in choice["logprobs"]["content"]], ["a", "b"])
        self.assertEqual((choice["k"], answer["x"], answer["usage"]), ("b", "b", USAGE))

    def test_parts_and_texts(self) -> None:
        """Neither is lost where a backend sends now the one and now the other."""
        image, a, b = {"type": "x", "x": 1}, {"type": "text", "text": "a"}, {"type": "y"}
        for stream, said in (
            (text("a") + delta(content=[image]), [a, image]),
            (text("") + delta(content=[image]) + delta(content=[b]) + text("a"), [image, b, a]),
        ):
            self.assertEqual(message(ROLE + stream + STOP)["content"], said)

    def test_something_else_in_place_of_content(self) -> None:
        for said in ({"refusal": "no"}, {"audio": {"id": "a"}}):
            answer = message(delta(role="assistant", content=None, **said) + STOP)
            self.assertEqual(answer, {"role": "assistant", "content": None, **said})
        for nothing in ({"refusal": None}, {"reasoning": "hm"}):
            answer = message(delta(role="assistant", content=None, **nothing) + STOP)
            self.assertEqual(answer["content"], "")

    def test_several_choices(self) -> None:
        stream = delta(1, role="assistant", content="b") + delta(0, role="assistant", content="a")
        answer = join(stream + delta(1, "stop") + delta(0, "length") + DONE)
        self.assertEqual([choice["message"]["content"] for choice in answer["choices"]], ["a", "b"])

    def test_completion(self) -> None:
        parts = [
            {"index": 0, "text": t, "logprobs": {"tokens": [t]}, "finish_reason": f}
            for t, f in (("a", None), ("b", "stop"))
        ]
        stream = b"".join(event({"object": "text_completion", "choices": [p]}) for p in parts)
        answer = join(stream, completion())
        self.assertEqual(answer["object"], "text_completion")
        self.assertEqual(
            answer["choices"],
            [
                {
                    "index": 0,
                    "text": "ab",
                    "logprobs": {"tokens": ["a", "b"]},
                    "finish_reason": "stop",
                }
            ],
        )

    def test_ended(self) -> None:
        joiner = StreamJoiner(chat(), Rules())
        joiner.receive_data(ROLE + STOP)
        self.assertFalse(joiner.ended)
        joiner.receive_data(event({"choices": [], "usage": USAGE}) + DONE)
        self.assertTrue(joiner.ended)
        self.assertEqual(joiner.report.usage, USAGE)

    def test_odd_values(self) -> None:
        """What no reader could use does no harm."""
        odd: dict[str, Any] = {
            "role": 5,
            "content": ["a"],
            "tool_calls": [5, {"function": 5}],
            "k": 1,
        }
        self.assertEqual(message(ROLE + delta(**odd) + delta(k={"a": 1}) + STOP)["k"], {"a": 1})
        for other in ({"content": ["b"]}, {"tool_calls": {"a": None}}, {"content": None}):
            first = delta(content="a", tool_calls=[STRUCTURED])
            message(ROLE + first + delta(**other) + first + STOP)
        huge = ROLE[:-3] + b',"n":1e400}\n\n'
        self.assertEqual(message(huge + STOP)["content"], "")


class FailureTests(SynchronousTestCase):
    def fail_with(self, stream: bytes, *, status: int = 502, **options: Any) -> ApiError:
        error: ApiError = self.assertRaises(ApiError, join, stream, **options)
        self.assertEqual(error.status, status)
        return error

    def test_cut(self) -> None:
        for stream in (b"", ROLE + text("a"), text(CALL[:-9])):
            code = "backend_truncated" if stream else "backend_empty_response"
            self.assertEqual(self.fail_with(stream).code, code)
            self.assertIn("broke", self.fail_with(stream, cut=True).message)

    def test_complete_though_cut(self) -> None:
        self.assertEqual(join(ROLE + STOP, cut=True)["choices"][0]["finish_reason"], "stop")

    def test_error_of_the_backend(self) -> None:
        error = self.fail_with(ROLE + event({"error": {"message": "m", "type": "t", "code": "c"}}))
        self.assertEqual((error.message, error.type, error.code), ("m", "t", "c"))
        error = self.fail_with(event({"error": {"code": 500}}), status=500)
        self.assertEqual((error.type, error.code), ("server_error", "backend_error"))
        self.assertIn("500", error.message)

    def test_too_long(self) -> None:
        stream = ROLE + text("x" * 1000)
        self.assertEqual(self.fail_with(stream, max_answer=1000).code, "backend_response_too_large")
        self.assertEqual(self.fail_with(stream, max_event=1000).code, "backend_event_too_large")

    @given(st.lists(CHUNKS, max_size=3))
    def test_junk(self, chunks: list[Any]) -> None:
        for asked in (chat("search"), completion()):
            joiner = StreamJoiner(asked, Rules(reasoning="split"))
            joiner.receive_data(b"".join(map(event, chunks)) + DONE)
            try:
                joiner.whole(cut=False)
            except ApiError as error:
                self.assertIn(error.status, range(400, 600))


class CaptureTests(SynchronousTestCase):
    def test_streams(self) -> None:
        for name, body in STREAMS.items():
            if name in {"llamacpp-tooltmpl-required", "transformers-err-max0"}:
                continue
            (choice,) = join(body, chat("search", "get_weather"))["choices"]
            content, calls, reason = expected(name)
            self.assertEqual(choice["message"]["content"], content or None, name)
            self.assertEqual(pairs(choice["message"]), calls, name)
            self.assertEqual(choice["finish_reason"], reason, name)

    def test_there_and_back(self) -> None:
        """A whole answer that becomes a stream becomes that whole answer again."""
        for name, body in WHOLE.items():
            stream, _ = whole_as_stream(body, chat(), Rules())
            self.assertEqual(join(stream, chat()), json.loads(body), name)


class StreamedTests(SynchronousTestCase):
    """The request that asks the backend for a stream."""

    def test_fields(self) -> None:
        for kind in (ChatRequest, CompletionRequest):
            asked = kind.parse(b'{"messages":[{"a":1.50}],"stream":false,"x":1e5}')
            self.assertEqual(
                asked.streamed(),
                b'{"messages":[{"a":1.50}],"stream":true,"x":1e5,'
                b'"stream_options":{"include_usage":true}}',
            )
            self.assertEqual(asked.body(), b'{"messages":[{"a":1.50}],"stream":false,"x":1e5}')

    def test_options_are_kept(self) -> None:
        asked = chat(stream_options={"include_usage": False, "x": 1})
        options = json.loads(asked.streamed() or b"")["stream_options"]
        self.assertEqual(options, {"include_usage": True, "x": 1})

    def test_lenient_body(self) -> None:
        self.assertIsNone(ChatRequest.parse(b'{"messages":[{"content":"\\ud83d"}]}').streamed())
