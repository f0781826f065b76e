"""Cases in which the one path of an answer could lose, repeat or reorder something."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.api.notice import Notice
from blockops.errors import ApiError
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.non_streaming import ResponseTranslator
from tests.api.requests import (
    DONE,
    ROLE,
    STOP,
    chat,
    completion,
    text,
    translate,
    translate_response,
    translator,
)
from tests.translation.test_unchanged_chunks import chunk, one

TOO_LARGE = "1e999"  # a number that strict parsers reject


def aggregate(stream: bytes, **options: Any) -> dict[str, Any]:
    response_translator = ResponseTranslator(chat("search"), TranslationOptions(), **options)
    response_translator.receive_data(stream)
    answer: dict[str, Any] = json.loads(response_translator.end(is_truncated=False))
    return answer


class NumberTests(SynchronousTestCase):
    """Numbers beyond the range of a float."""

    def test_in_usage(self) -> None:
        usage = chunk(f'{{"choices":[],"usage":{{"x":{TOO_LARGE}}}}}')
        self.assertEqual(translate(ROLE + usage + STOP + DONE), ROLE + usage + STOP + DONE)
        self.assertEqual(aggregate(ROLE + usage + STOP + DONE)["usage"], {"x": None})

    def test_in_a_rewritten_chunk(self) -> None:
        held = one(f'{{"index":0,"delta":{{"content":"a<tool"}},"x":{TOO_LARGE}}}')
        answer = aggregate(ROLE + held + STOP + DONE)
        self.assertIsNone(answer["choices"][0]["x"])
        self.assertEqual(answer["choices"][0]["message"]["content"], "a<tool")

    def test_in_fields_that_pass(self) -> None:
        for field in ("logprobs", "stop_reason", "token_ids"):
            event = one(f'{{"index":0, "delta":{{"content":"a"}},"{field}":{TOO_LARGE}}}')
            self.assertEqual(translate(ROLE + event + STOP + DONE), ROLE + event + STOP + DONE)


class RewriteTests(SynchronousTestCase):
    def test_other_texts_of_a_choice(self) -> None:
        """They are sent once, whatever becomes of the content."""
        calls = '<tool_call>{"name":"search","arguments":{}}</tool_call>' * 3
        for content in ("<tool", calls):
            for field in ("text", "message"):
                value = {"k": "v"} if field == "message" else "v"
                choice = {"index": 0, "delta": {"content": content}, field: value}
                out = translate(ROLE + one(json.dumps(choice)) + STOP + DONE)
                self.assertEqual(out.count(json.dumps(value).encode()), 1)

    def test_message_beside_a_delta(self) -> None:
        message = '{"role":"assistant","tool_calls":[{"id":"q","type":"function"}]}'
        out = translate(
            ROLE + one(f'{{"index":0,"delta":{{"content":"a<tool"}},"message":{message}}}') + STOP
        )
        self.assertIn(message.encode(), out)

    def test_error_that_is_false(self) -> None:
        out = translate(ROLE + one('{"index":0,"delta":{"content":"<tool"}}', ',"error":0') + STOP)
        self.assertIn(b'"error":0', out)


class BoundTests(SynchronousTestCase):
    def test_aggregated_stream_with_a_pending_surrogate(self) -> None:
        response_translator = ResponseTranslator(chat(), TranslationOptions(), max_answer=700)
        half = one('{"index":1,"delta":{"role":"assistant","content":"\\ud83d"}}')
        self.assertEqual(response_translator.receive_data(ROLE + half + text("x" * 900)), b"")
        self.assertTrue(response_translator.has_ended)
        with self.assertRaises(ApiError) as caught:
            response_translator.end(is_truncated=False)
        self.assertEqual(caught.exception.code, "backend_response_too_large")

    def test_choices_of_a_body_in_place_of_a_stream(self) -> None:
        message = {"role": "assistant", "content": "a"}
        choices = [{"index": n, "message": message} for n in range(4097)]
        stream_translator = translator()
        stream_translator.receive_data(json.dumps({"choices": choices}).encode())
        self.assertIn(b"more than 4096 choices", stream_translator.end(is_truncated=False))

    def test_choices_of_a_response(self) -> None:
        """A batch of prompts has as many choices; none of them waits for more."""
        choices = [{"index": n, "text": "a", "finish_reason": "stop"} for n in range(5000)]
        body = json.dumps({"choices": choices}).encode()
        out, report = translate_response(body, completion(), TranslationOptions())
        self.assertEqual((out, len(report.finish_reasons)), (body, 5000))

    def test_choices_with_one_index(self) -> None:
        """A completion passes unchanged, whatever its indexes."""
        choice = {"index": 0, "text": "a", "finish_reason": "stop"}
        body = json.dumps({"choices": [choice, choice]}).encode()
        self.assertEqual(translate_response(body, completion(), TranslationOptions())[0], body)


class OrderTests(SynchronousTestCase):
    def test_index_of_a_choice_in_a_response(self) -> None:
        def choice(index: int, reason: str) -> dict[str, Any]:
            message = {"role": "assistant", "content": str(index)}
            return {"index": index, "message": message, "finish_reason": reason}

        body = json.dumps({"choices": [choice(1, "stop"), choice(0, "length")]}).encode()
        notice = Notice("before", "N ")
        out, report = translate_response(body, chat(), TranslationOptions(), notice=notice)
        contents = [each["message"]["content"] for each in json.loads(out)["choices"]]
        self.assertEqual(contents, ["1", "N 0"])
        self.assertEqual(report.finish_reasons, {1: "stop", 0: "length"})

    def test_names_of_calls(self) -> None:
        content = '<tool_call>{"name":"write","arguments":{}}</tool_call>'
        call = {"index": 0, "id": "c", "function": {"name": "read", "arguments": "{}"}}
        delta = {"content": content, "tool_calls": [call]}
        stream_translator = translator()
        stream_translator.receive_data(ROLE + one(json.dumps({"index": 0, "delta": delta})))
        self.assertEqual(stream_translator.report.tool_names, ["write", "read"])

    def test_one_id(self) -> None:
        """A chunk of blockops has the fields of the first chunk."""
        with_id = chunk('{"id":"i","choices":[{"index":1,"delta":{"role":"assistant"}}]}')
        without_id = one('{"index":0,"delta":{"role":"assistant","content":"a"}}')
        stream_translator = translator(chat(), notice=Notice("reasoning", "N"))
        out = stream_translator.receive_data(with_id + without_id)
        notice = next(event for event in out.split(b"\n\n") if b"reasoning_content" in event)
        self.assertIn(b'"id":"i"', notice)
