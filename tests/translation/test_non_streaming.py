"""Non-streaming responses, translated, and sent as streams."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.errors import ApiError
from blockops.toolcalls.options import TranslationOptions
from tests.api.requests import CALL, chat, counted_ids, response_as_stream, translate_response
from tests.api.strict import StreamAnswer
from tests.translation.test_stream import SEARCH, STRUCTURED, USAGE, events, read


class ResponseTests(SynchronousTestCase):
    """Non-streaming responses."""

    def response(self, *choices: Any, **fields: Any) -> bytes:
        numbered = [
            {"index": i, "finish_reason": "stop", **choice} for i, choice in enumerate(choices)
        ]
        return json.dumps(
            {"id": "i", "object": "chat.completion", "choices": numbered, **fields}
        ).encode()

    def message(self, **fields: Any) -> dict[str, Any]:
        return {"message": {"role": "assistant", **fields}}

    def choices(self, body: bytes, request: Any = None, **options: Any) -> Any:
        out, self.report = translate_response(
            body, request or chat("search"), TranslationOptions(**options), new_id=counted_ids()
        )
        return json.loads(out)["choices"]

    def test_unchanged(self) -> None:
        for body in (
            self.response(self.message(content="a\nb")),
            self.response(self.message(content=None, tool_calls=[STRUCTURED])),
            self.response(self.message(content="")),
            b'{\n "choices" : [ {"message":{"role":"x","content":"a"},"finish_reason":"stop"} ]}',
        ):
            self.assertEqual(
                translate_response(body, chat("search"), TranslationOptions())[0], body
            )

    def test_call(self) -> None:
        body = self.response(self.message(content="a " + CALL, refusal=None), usage=USAGE)
        (choice,) = self.choices(body)
        self.assertEqual(choice["finish_reason"], "tool_calls")
        self.assertEqual(choice["message"]["content"], "a")
        self.assertEqual(
            choice["message"]["tool_calls"],
            [
                {
                    "id": "call_" + "0" * 24,
                    "type": "function",
                    "function": {"name": "search", "arguments": '{"query": "x"}'},
                }
            ],
        )
        self.assertEqual((self.report.usage, self.report.tool_names), (USAGE, ["search"]))

    def test_only_calls(self) -> None:
        (choice,) = self.choices(self.response(self.message(content=CALL)))
        self.assertIsNone(choice["message"]["content"])

    def test_other_fields_are_kept(self) -> None:
        body = (
            b'{"choices":[{"message":{"content":%s,"reasoning_content":"r","k":1.50},"logprobs":{"x":0.10},'
            b'"finish_reason":"stop"}],"n":1.0}'
        ) % json.dumps(CALL).encode()
        out, _ = translate_response(body, chat("search"), TranslationOptions())
        for kept in (b'"reasoning_content":"r"', b'"k":1.50', b'"logprobs":{"x":0.10}', b'"n":1.0'):
            self.assertIn(kept, out)
        self.assertEqual(json.loads(out)["choices"][0]["message"]["role"], "assistant")

    def test_several_choices(self) -> None:
        body = self.response(
            self.message(content=CALL), self.message(content="b"), self.message(content=CALL)
        )
        a, b, c = self.choices(body)
        self.assertEqual(b["message"]["content"], "b")
        self.assertNotEqual(*(choice["message"]["tool_calls"][0]["id"] for choice in (a, c)))

    def test_reasoning_split(self) -> None:
        text = "<think>b</think>c"
        cases: list[tuple[dict[str, Any], str]] = [
            ({}, "b"),
            ({"reasoning_content": "a"}, "ab"),
            ({"reasoning_content": None}, "b"),
            ({"reasoning_content": ["unusual"]}, "b"),
        ]
        for own, joined in cases:
            (choice,) = self.choices(
                self.response(self.message(content=text, **own)), reasoning="split"
            )
            self.assertEqual(choice["message"]["reasoning_content"], joined)
            self.assertEqual(choice["message"]["content"], "c")

    def test_structured_after_ours(self) -> None:
        call = {key: value for key, value in STRUCTURED.items() if key != "index"}
        (choice,) = self.choices(self.response(self.message(content=CALL, tool_calls=[call])))
        names = [call["function"]["name"] for call in choice["message"]["tool_calls"]]
        self.assertEqual(names, ["search", "get_weather"])
        for own in (None, [], 5, [5]):
            (choice,) = self.choices(self.response(self.message(content=CALL, tool_calls=own)))
            self.assertEqual(len(choice["message"]["tool_calls"]), 1)

    def test_missing_finish_reason(self) -> None:
        cases = ((None, "stop"), ("a", "stop"), (CALL, "tool_calls"), (CALL[:-20], "length"))
        for content, reason in cases:
            (choice,) = self.choices(
                self.response({**self.message(content=content), "finish_reason": None})
            )
            self.assertEqual(choice["finish_reason"], reason)

    def test_length(self) -> None:
        (choice,) = self.choices(
            self.response({**self.message(content=CALL[:-20]), "finish_reason": "length"})
        )
        self.assertEqual(choice["finish_reason"], "length")

    def test_lenient_json(self) -> None:
        body = b'{"choices":[{"message":{"content":"a\\ud83d","x":NaN},"finish_reason":"stop"}]}'
        (choice,) = self.choices(body)
        self.assertEqual(choice["message"], {"role": "assistant", "content": "a\ufffd", "x": None})

    def test_invalid_response(self) -> None:
        for body in (
            b"",
            b"nope",
            b"[]",
            b"{}",
            b'{"choices":null}',
            b'{"choices":[]}',
            b'{"choices":[{"delta":{}}]}',
            b'{"choices":[{"message":"x"}]}',
            b'{"choices":[{"text":"a"}]}',
            b'{"error":{"message":"no"}}',
        ):
            for function in (translate_response, response_as_stream):
                error = self.assertRaises(
                    ApiError, function, body, chat("search"), TranslationOptions()
                )
                self.assertEqual(error.status, 502)
                self.assertTrue(error.message)

    def test_error_with_a_status_of_success(self) -> None:
        error = self.assertRaises(
            ApiError,
            translate_response,
            b'{"error":{"message":"no"}}',
            chat(),
            TranslationOptions(),
        )
        self.assertEqual((error.message, error.code), ("no", "backend_error"))


class ResponseAsStreamTests(ResponseTests):
    """A non-streaming response for a client that has requested a stream."""

    def stream(self, body: bytes, request: Any = None, **options: Any) -> StreamAnswer:
        out, self.report = response_as_stream(
            body, request or chat("search"), TranslationOptions(**options)
        )
        return read(out)

    def test_text(self) -> None:
        answer = self.stream(self.response(self.message(content="a\nb"), usage=USAGE, k=1))
        self.assertEqual((answer.choice.content, answer.choice.finish_reason), ("a\nb", "stop"))
        self.assertEqual((answer.usage, self.report.usage), ([USAGE], USAGE))
        self.assertEqual(answer.chunks[-1]["k"], 1)
        self.assertEqual({chunk["object"] for chunk in answer.chunks}, {"chat.completion.chunk"})

    def test_usage_on_request(self) -> None:
        """A client that requests usage gets it in a separate chunk, as from OpenAI."""
        request = chat("search", stream_options={"include_usage": True})
        answer = self.stream(self.response(self.message(content=CALL), usage=USAGE), request)
        self.assertEqual(answer.chunks[-1]["choices"], [])
        self.assertEqual(answer.usage, [USAGE])

    def test_calls(self) -> None:
        call = {key: value for key, value in STRUCTURED.items() if key != "index"}
        body = self.response(
            self.message(content="a " + CALL, tool_calls=[call], reasoning_content="r")
        )
        choice = self.stream(body).choice
        self.assertEqual((choice.content, choice.reasoning), ("a", "r"))
        self.assertEqual(choice.pairs(), [SEARCH, ("get_weather", {})])

    def test_reasoning_precedes_content(self) -> None:
        """Reasoning also precedes the reasoning in the text, and calls; the role precedes all."""
        fields = {"reasoning_content": "a", "content": f"<think>b</think>c{CALL}"}
        body = self.response(self.message(**fields, tool_calls=[STRUCTURED]))
        out, _ = response_as_stream(body, chat("search"), TranslationOptions(reasoning="split"))
        deltas = [chunk["choices"][0]["delta"] for chunk in events(out)]
        self.assertEqual(deltas[0], {"role": "assistant", "reasoning_content": "a"})
        self.assertEqual(deltas[1:3], [{"reasoning_content": "b"}, {"content": "c"}])
        self.assertTrue(all(delta.keys() <= {"tool_calls"} for delta in deltas[3:]))
        self.assertEqual(deltas[-1]["tool_calls"][0]["function"]["name"], "get_weather")

    def test_several_choices_of_a_stream(self) -> None:
        body = self.response(self.message(content=CALL), self.message(content="b"))
        answer = self.stream(body)
        self.assertEqual((answer.choices[0].pairs(), answer.choices[1].content), ([SEARCH], "b"))

    def test_line_ends_between_the_fields(self) -> None:
        body = json.dumps(json.loads(self.response(self.message(content="a\r\nb"))), indent=2)
        self.assertEqual(self.stream(body.encode()).choice.content, "a\r\nb")
        self.assertEqual(self.stream(body.replace("\n", "\r\n").encode()).choice.content, "a\r\nb")

    def test_missing_finish_reason_of_a_stream(self) -> None:
        body = self.response({**self.message(content="a"), "finish_reason": None})
        self.assertEqual(self.stream(body).choice.finish_reason, "stop")

    def test_long(self) -> None:
        content = "x" * 10_000_000
        self.assertEqual(
            self.stream(self.response(self.message(content=content))).choice.content, content
        )
