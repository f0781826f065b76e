"""A stream, aggregated, is the response that the backend would have sent without streaming."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.request import ChatRequest, GenerationRequest, change_to_stream
from blockops.errors import ApiError
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.non_streaming import ResponseTranslator
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
    response_as_stream,
    text,
)
from tests.translation.test_captures import RESPONSES, STREAMS, call_pairs, expected
from tests.translation.test_stream import CHUNKS, STRUCTURED, USAGE


def aggregate(
    stream: bytes, request: Any = None, *, truncated: bool = False, **options: Any
) -> Any:
    aggregator = ResponseTranslator(
        request or chat("search"), TranslationOptions(), new_id=counted_ids(), **options
    )
    assert aggregator.receive_data(stream) == b""
    return json.loads(aggregator.end(is_truncated=truncated))


def message(stream: bytes) -> Any:
    (choice,) = aggregate(stream + DONE)["choices"]
    return choice["message"]


class AggregateTests(SynchronousTestCase):
    def test_text(self) -> None:
        answer = aggregate(ROLE + text("Hello") + text(" you") + LENGTH + DONE)
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
        answer = message(stream + STOP)
        self.assertEqual(answer["content"], "a")
        self.assertEqual(call_pairs(answer), [("search", {"query": "x"}), ("get_weather", {})])
        self.assertEqual(answer["tool_calls"][0].keys(), {"id", "type", "function"})

    def test_unusual_framing_loses_no_text(self) -> None:
        a = text("a")
        unusual = [b"id: 1\n" + a, a.replace(b"data: ", b"data:"), a.replace(b"\n\n", b"\n}\n\n")]
        self.assertEqual(message(ROLE + b"".join(unusual) + STOP)["content"], "aaa")

    def test_only_calls(self) -> None:
        self.assertIsNone(message(ROLE + text(CALL) + STOP)["content"])

    def test_empty_answer(self) -> None:
        self.assertEqual(message(b""), {"role": "assistant", "content": ""})

    def test_calls_without_an_index(self) -> None:
        """A name starts one, as in the report of a stream."""
        calls = [{"name": "f", "arguments": ""}, {"arguments": "{}"}, {"name": "f"}, {"name": "g"}]
        made = [{"function": call} for call in calls]
        for stream in (
            b"".join(delta(tool_calls=[call]) for call in made),
            delta(tool_calls=made),
            delta(tool_calls=made[:2]) + delta(tool_calls=made[2:]),
        ):
            calls_seen = [call["function"] for call in message(ROLE + stream + STOP)["tool_calls"]]
            self.assertEqual(
                calls_seen, [{"name": "f", "arguments": "{}"}, {"name": "f"}, {"name": "g"}]
            )

    def test_function_call(self) -> None:
        parts = ({"name": "f", "arguments": "{"}, {"arguments": "}"})
        answer = message(ROLE + b"".join(delta(function_call=part) for part in parts) + STOP)
        self.assertEqual(answer["function_call"], {"name": "f", "arguments": "{}"})

    def test_other_fields(self) -> None:
        """Usage, log probabilities, reasoning, unknown fields."""
        logprobs = [{"content": [{"token": t, "logprob": -1.5}], "refusal": None} for t in "ab"]
        stream = ROLE
        for part, probs in zip("ab", logprobs, strict=True):
            choice = {"index": 0, "delta": {"content": part, "reasoning": part}, "logprobs": probs}
            stream += event({"id": "c", "choices": [{**choice, "k": part}], "x": part, "y": None})
        stream += STOP + event({"id": "c", "choices": [], "usage": USAGE, "x": None})
        answer = aggregate(stream + DONE)
        (choice,) = answer["choices"]
        self.assertEqual(choice["message"]["reasoning"], "ab")
        self.assertEqual([p["token"] for p in choice["logprobs"]["content"]], ["a", "b"])
        self.assertEqual((choice["k"], answer["x"], answer["usage"]), ("b", "b", USAGE))

    def test_content_parts_and_texts(self) -> None:
        """Both are kept if a backend alternates between content parts and texts."""
        image, a, b = {"type": "x", "x": 1}, {"type": "text", "text": "a"}, {"type": "y"}
        for stream, content in (
            (text("a") + delta(content=[image]), [a, image]),
            (text("") + delta(content=[image]) + delta(content=[b]) + text("a"), [image, b, a]),
        ):
            self.assertEqual(message(ROLE + stream + STOP)["content"], content)

    def test_substitutes_for_content(self) -> None:
        for substitute in ({"refusal": "no"}, {"audio": {"id": "a"}}):
            answer = message(delta(role="assistant", content=None, **substitute) + STOP)
            self.assertEqual(answer, {"role": "assistant", "content": None, **substitute})
        for nothing in ({"refusal": None}, {"reasoning": "hm"}):
            answer = message(delta(role="assistant", content=None, **nothing) + STOP)
            self.assertEqual(answer["content"], "")

    def test_several_choices(self) -> None:
        stream = delta(1, role="assistant", content="b") + delta(0, role="assistant", content="a")
        answer = aggregate(stream + delta(1, "stop") + delta(0, "length") + DONE)
        self.assertEqual([choice["message"]["content"] for choice in answer["choices"]], ["a", "b"])

    def test_completion(self) -> None:
        parts = [
            {"index": 0, "text": t, "logprobs": {"tokens": [t]}, "finish_reason": f}
            for t, f in (("a", None), ("b", "stop"))
        ]
        stream = b"".join(event({"object": "text_completion", "choices": [p]}) for p in parts)
        answer = aggregate(stream, completion())
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

    def test_has_ended(self) -> None:
        aggregator = ResponseTranslator(chat(), TranslationOptions())
        aggregator.receive_data(ROLE + STOP)
        self.assertFalse(aggregator.has_ended)
        aggregator.receive_data(event({"choices": [], "usage": USAGE}) + DONE)
        self.assertTrue(aggregator.has_ended)
        self.assertEqual(aggregator.report.usage, USAGE)

    def test_unusual_values(self) -> None:
        """Values that no client could use do no harm."""
        unusual: dict[str, Any] = {
            "role": 5,
            "content": ["a"],
            "tool_calls": [5, {"function": 5}],
            "k": 1,
        }
        self.assertEqual(message(ROLE + delta(**unusual) + delta(k={"a": 1}) + STOP)["k"], {"a": 1})
        for other in ({"content": ["b"]}, {"tool_calls": {"a": None}}, {"content": None}):
            first = delta(content="a", tool_calls=[STRUCTURED])
            message(ROLE + first + delta(**other) + first + STOP)
        huge = ROLE[:-3] + b',"n":1e400}\n\n'
        self.assertEqual(message(huge + STOP)["content"], "")


class FailureTests(SynchronousTestCase):
    def fail_with(self, stream: bytes, *, status: int = 502, **options: Any) -> ApiError:
        error: ApiError = self.assertRaises(ApiError, aggregate, stream, **options)
        self.assertEqual(error.status, status)
        return error

    def test_truncated(self) -> None:
        for stream in (b"", ROLE + text("a"), text(CALL[:-9])):
            code = "backend_truncated" if stream else "backend_empty_response"
            self.assertEqual(self.fail_with(stream).code, code)
            self.assertIn("broke", self.fail_with(stream, truncated=True).message)

    def test_complete_though_truncated(self) -> None:
        self.assertEqual(
            aggregate(ROLE + STOP, truncated=True)["choices"][0]["finish_reason"], "stop"
        )

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

    def test_too_long_in_the_read_that_ends_the_stream(self) -> None:
        stream = ROLE + text("x" * 1000) + STOP + DONE
        self.assertEqual(self.fail_with(stream, max_answer=1000).code, "backend_response_too_large")
        response = {"choices": [{"index": 0, "message": {"content": "x" * 1000}}]}
        body = json.dumps(response).encode()
        self.assertEqual(self.fail_with(body, max_answer=1000).code, "backend_response_too_large")

    @given(st.lists(CHUNKS, max_size=3))
    def test_junk(self, chunks: list[Any]) -> None:
        for request in (chat("search"), completion()):
            aggregator = ResponseTranslator(request, TranslationOptions(reasoning="split"))
            aggregator.receive_data(b"".join(map(event, chunks)) + DONE)
            try:
                aggregator.end(is_truncated=False)
            except ApiError as error:
                self.assertIn(error.status, range(400, 600))


class CaptureTests(SynchronousTestCase):
    def test_streams(self) -> None:
        for name, body in STREAMS.items():
            if name in {"llamacpp-tooltmpl-required", "transformers-err-max0"}:
                continue
            (choice,) = aggregate(body, chat("search", "get_weather"))["choices"]
            content, calls, reason = expected(name)
            self.assertEqual(choice["message"]["content"], content or None, name)
            self.assertEqual(call_pairs(choice["message"]), calls, name)
            self.assertEqual(choice["finish_reason"], reason, name)

    def test_stream_of_a_response(self) -> None:
        """A response that becomes a stream is aggregated to the same response."""
        for name, body in RESPONSES.items():
            stream, _ = response_as_stream(body, chat(), TranslationOptions())
            self.assertEqual(aggregate(stream, chat()), json.loads(body), name)


class RequestTests(SynchronousTestCase):
    """The body that requests a stream from the backend."""

    def test_fields(self) -> None:
        for kind in (ChatRequest, GenerationRequest):
            request = kind(b'{"messages":[{"a":1.50}],"stream":false,"x":1e5}')
            self.assertEqual(
                change_to_stream(request.body()),
                b'{"messages":[{"a":1.50}],"stream":true,"x":1e5,'
                b'"stream_options":{"include_usage":true}}',
            )
            self.assertEqual(request.body(), b'{"messages":[{"a":1.50}],"stream":false,"x":1e5}')

    def test_options_are_kept(self) -> None:
        request = chat(stream_options={"include_usage": False, "x": 1})
        options = json.loads(change_to_stream(request.body()))["stream_options"]
        self.assertEqual(options, {"include_usage": True, "x": 1})

    def test_lenient_body(self) -> None:
        self.assertEqual(
            change_to_stream(b'{"messages":[{"content":"\\ud83d"}]}'),
            b'{"messages":[{"content":"\\ud83d"}],"stream":true,'
            b'"stream_options":{"include_usage":true}}',
        )
