"""Streams of any kind become streams that every client library accepts."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.errors import ApiError
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.choices import random_call_id
from tests.api.requests import (
    CALL,
    DONE,
    LENGTH,
    ROLE,
    STOP,
    chat,
    completion,
    delta,
    event,
    response_as_stream,
    text,
    translate,
    translate_response,
    translator,
)
from tests.api.strict import StreamAnswer, read_strictly, strict_json

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
SEARCH = ("search", {"query": "x"})
STRUCTURED = {
    "index": 0,
    "id": "call_b",
    "type": "function",
    "function": {"name": "get_weather", "arguments": "{}"},
}


def read(stream: bytes) -> StreamAnswer:
    return read_strictly(stream, bare=True)


def events(stream: bytes) -> list[Any]:
    """Return the JSON of each event of a stream, without `[DONE]`."""
    return [json.loads(e[6:]) for e in stream.decode().split("\n\n")[:-1] if e[6:] != "[DONE]"]


def deltas(stream: bytes) -> list[Any]:
    return [choice["delta"] for value in events(stream) for choice in value["choices"]]


class PassingTests(SynchronousTestCase):
    """Events that need no change pass byte for byte."""

    def test_plain_stream(self) -> None:
        stream = ROLE + text("Hello") + text(" you") + STOP + event({"choices": [], "usage": USAGE})
        self.assertEqual(translate(stream + DONE), stream + DONE)

    def test_spelling_survives(self) -> None:
        unusual = (
            b'data: {"choices": [{"index": 0,"delta":{"content":"\\u0041"}}], "x":1.50, "x":2}\n\n'
        )
        self.assertEqual(translate(ROLE + unusual + STOP + DONE), ROLE + unusual + STOP + DONE)

    def test_one_return_value_for_many_events(self) -> None:
        stream = translator()
        packet = ROLE + text("a") + text("b")
        self.assertEqual(stream.receive_data(packet), packet)
        self.assertEqual(stream.receive_data(text("c")[:-1]), b"")
        self.assertEqual(stream.receive_data(b"\n"), text("c"))

    def test_comments_are_dropped(self) -> None:
        stream = (
            b": ping\n\n" + ROLE + b":\n\n:\n\n: keepalive 8/9\n\n" + STOP + b": bye\n\n" + DONE
        )
        self.assertEqual(translate(stream), ROLE + STOP + DONE)

    def test_other_line_ends(self) -> None:
        stream = ROLE + text("a") + STOP + DONE
        self.assertEqual(translate(stream.replace(b"\n", b"\r\n")), stream)

    def test_reasoning_passes(self) -> None:
        stream = ROLE + delta(reasoning_content=CALL) + delta(reasoning=CALL) + STOP + DONE
        self.assertEqual(translate(stream), stream)

    def test_without_tools_nothing_is_translated(self) -> None:
        stream = ROLE + text(CALL) + STOP + DONE
        self.assertEqual(translate(stream, chat()), stream)
        self.assertEqual(translate(stream, chat("search", tool_choice="none")), stream)

    def test_empty_choices(self) -> None:
        """The first chunk of some backends, and usage, belong to no choice."""
        stream = event({"choices": [], "prompt_filter_results": []}) + ROLE + STOP
        stream += event({"choices": [], "usage": USAGE}) * 2 + DONE
        self.assertEqual(translate(stream), stream)

    def test_usage_is_reported(self) -> None:
        stream = translator()
        stream.receive_data(ROLE + delta(_finish="stop", _extra={"usage": USAGE}) + DONE)
        self.assertEqual(stream.report.usage, USAGE)
        self.assertEqual(stream.report.chunks, 2)


class TranslationTests(SynchronousTestCase):
    """Text becomes calls; the other fields of a chunk are kept."""

    def test_call(self) -> None:
        out = translate(ROLE + text("Look: ") + text(CALL) + STOP + DONE)
        choice = read(out).choice
        self.assertEqual((choice.content, choice.pairs()), ("Look:", [SEARCH]))
        self.assertEqual(choice.finish_reason, "tool_calls")

    def test_every_split_of_the_text(self) -> None:
        for split in range(1, len(CALL)):
            choice = read(
                translate(ROLE + text(CALL[:split]) + text(CALL[split:]) + STOP + DONE)
            ).choice
            self.assertEqual((choice.content, choice.pairs()), ("", [SEARCH]))

    def test_first_delta_of_a_call(self) -> None:
        out = translate(ROLE + text(CALL) + STOP + DONE)
        calls = [d["tool_calls"][0] for d in deltas(out) if "tool_calls" in d]
        self.assertEqual(
            calls[0],
            {
                "index": 0,
                "id": "call_" + "0" * 24,
                "type": "function",
                "function": {"name": "search", "arguments": ""},
            },
        )
        for call in calls[1:]:
            self.assertEqual(call.keys(), {"index", "function"})
            self.assertEqual(call["function"].keys(), {"arguments"})

    def test_arguments_stream(self) -> None:
        stream = translator()
        stream.receive_data(ROLE + text('<tool_call>{"name":"search","arguments":{"query":"'))
        for part in ("a", "b", "c"):
            (made,) = deltas(stream.receive_data(text(part)))
            self.assertEqual(made, {"tool_calls": [{"index": 0, "function": {"arguments": part}}]})

    def test_other_fields_are_sent_once(self) -> None:
        """A chunk that becomes several has its other fields in one of them only."""
        logprobs = b'{"content":[{"token":"x","logprob":-1.50}]}'
        chunk = (
            b'data: {"id":"i","object":"o","created":1.0,"model":"m","system_fingerprint":"f",'
            b'"choices":[{"index":0,"delta":{"content":%s,"extra":1.50},"logprobs":%s,'
            b'"token_ids":null,"finish_reason":"stop","stop_reason":7}],'
            b'"usage":{"total_tokens":1},"timings":{"ms":0.10},"nothing":null}\n\n'
        ) % (json.dumps("a" + CALL).encode(), logprobs)
        out = translate(ROLE + chunk + DONE).removeprefix(ROLE).removesuffix(DONE)
        for once in (
            logprobs,
            b'"extra":1.50',
            b'"stop_reason":7',
            b'"usage"',
            b'"timings":{"ms":0.10}',
        ):
            self.assertEqual(out.count(once), 1, once)
        chunks = events(out)
        self.assertGreater(len(chunks), 3)
        for repeated in (
            b'"id":"i"',
            b'"created":1.0',
            b'"system_fingerprint":"f"',
            b'"nothing":null',
        ):
            self.assertEqual(out.count(repeated), len(chunks))
        self.assertEqual(out.count(b'"token_ids":null'), len(chunks))
        self.assertIn("logprobs", chunks[0]["choices"][0])
        self.assertEqual(chunks[-1]["usage"], {"total_tokens": 1})

    def test_held_delta_sends_nothing(self) -> None:
        stream = translator()
        stream.receive_data(ROLE)
        beside = {"usage": None, "system_fingerprint": "f", "service_tier": "x"}
        self.assertEqual(stream.receive_data(delta(content="<tool_", _extra=beside)), b"")

    def test_other_fields_of_a_held_delta_are_sent(self) -> None:
        held = b'{"index":0,"delta":{"content":"<tool_"},"logprobs":{"content":[]}}'
        stream = translator()
        stream.receive_data(ROLE)
        (chunk,) = events(stream.receive_data(b'data: {"choices":[%s]}\n\n' % held))
        self.assertEqual(chunk["choices"][0]["delta"], {})
        self.assertEqual(chunk["choices"][0]["logprobs"], {"content": []})
        (chunk,) = events(stream.receive_data(delta(content="call", _extra={"usage": USAGE})))
        self.assertEqual(chunk, {"id": "c", "choices": [], "usage": USAGE})
        (chunk,) = events(stream.receive_data(delta(content=">", reasoning_content="hm")))
        self.assertEqual(chunk["choices"][0]["delta"], {"reasoning_content": "hm"})

    def test_reasoning_split(self) -> None:
        out = translate(
            ROLE + text("<think>hm</think>ok") + STOP + DONE,
            options=TranslationOptions(reasoning="split"),
        )
        self.assertEqual((read(out).choice.reasoning, read(out).choice.content), ("hm", "ok"))

    def test_reasoning_of_both_kinds(self) -> None:
        """The backend's own reasoning and ours in one delta are both sent."""
        both = delta(content="<think>b</think>c", reasoning_content="a")
        out = translate(ROLE + both + STOP + DONE, options=TranslationOptions(reasoning="split"))
        self.assertEqual((read(out).choice.reasoning, read(out).choice.content), ("ab", "c"))

    def test_ids_are_random(self) -> None:
        self.assertTrue(re.fullmatch("call_[0-9a-zA-Z]{24}", random_call_id()))
        self.assertEqual(len({random_call_id() for _ in range(1000)}), 1000)

    def test_structured_after_ours(self) -> None:
        out = translate(
            ROLE + text(CALL) + delta(tool_calls=[STRUCTURED]) + delta(_finish="tool_calls") + DONE
        )
        choice = read(out).choice
        self.assertEqual(choice.pairs(), [SEARCH, ("get_weather", {})])
        self.assertEqual(choice.calls[1]["id"], "call_b")

    def test_structured_and_ours_in_one_delta(self) -> None:
        both = delta(content=CALL, tool_calls=[STRUCTURED], _finish="stop")
        out = translate(ROLE + both + DONE)
        self.assertEqual(read(out).choice.pairs(), [SEARCH, ("get_weather", {})])

    def test_structured_without_index_after_ours(self) -> None:
        call = {key: value for key, value in STRUCTURED.items() if key != "index"}
        out = translate(ROLE + text(CALL) + delta(tool_calls=[call]) + STOP + DONE)
        self.assertEqual(read(out).choice.pairs(), [SEARCH, ("get_weather", {})])

    def test_leaked_tag(self) -> None:
        stream = ROLE + text("Hi.\n\n") + text("<tool_call") + delta(tool_calls=[STRUCTURED])
        choice = read(translate(stream + delta(_finish="tool_calls") + DONE)).choice
        self.assertEqual((choice.content, choice.pairs()), ("Hi.", [("get_weather", {})]))

    def test_function_call(self) -> None:
        stream = ROLE + delta(function_call={"name": "f", "arguments": ""})
        stream += delta(function_call={"arguments": "{}"}) + delta(_finish="function_call") + DONE
        self.assertEqual(translate(stream), stream)
        self.assertEqual(read(stream).choice.function_call, {"name": "f", "arguments": "{}"})


class ChoicesTests(SynchronousTestCase):
    """Several choices, each with its own state."""

    def test_interleaved(self) -> None:
        stream = delta(0, role="assistant") + delta(1, role="assistant")
        for a, b in zip(CALL, CALL.replace("x", "y"), strict=True):
            stream += text(a, 0) + text(b, 1)
        stream += delta(1, "stop") + delta(0, "stop")
        answer = read(translate(stream + DONE))
        self.assertEqual(answer.choices[0].pairs(), [SEARCH])
        self.assertEqual(answer.choices[1].pairs(), [("search", {"query": "y"})])
        self.assertNotEqual(answer.choices[0].calls[0]["id"], answer.choices[1].calls[0]["id"])

    def test_in_one_chunk(self) -> None:
        def both(a: Any, b: Any, finish: str | None = None) -> bytes:
            choices = [
                {"index": i, "delta": d, "finish_reason": finish, "k": i}
                for i, d in enumerate((a, b))
            ]
            return event({"id": "c", "choices": choices, "more": 1})

        role = {"role": "assistant"}
        unchanged = both({**role, "content": "a"}, role) + both({"content": "b"}, {"content": "c"})
        out = translate(
            unchanged + both({"content": CALL}, {"content": "d"}) + both({}, {}, "stop") + DONE
        )
        self.assertTrue(out.startswith(unchanged))
        answer = read(out)
        self.assertEqual(answer.choices[0].pairs(), [SEARCH])
        self.assertEqual((answer.choices[0].content, answer.choices[1].content), ("ab", "cd"))
        self.assertEqual([s.finish_reason for s in answer.choices.values()], ["tool_calls", "stop"])
        self.assertEqual(out.count(b'"more":1'), 4)

    def test_one_finishes_early(self) -> None:
        """Content after a choice's finish reason is dropped; the rest of its chunk is kept."""
        late = event(
            {
                "id": "c",
                "choices": [
                    {"index": 0, "delta": {"content": "x"}},
                    {"index": 1, "delta": {"content": "y"}},
                ],
            }
        )
        stream = delta(0, role="assistant") + delta(1, role="assistant") + delta(0, "stop") + late
        answer = read(translate(stream + delta(1, "length") + delta(0, "stop") + DONE))
        self.assertEqual((answer.choices[0].content, answer.choices[1].content), ("", "y"))

    def test_usage_after_the_end(self) -> None:
        stream = ROLE + STOP
        late = delta(_extra={"usage": USAGE})
        out = translate(stream + late + delta(content="") + DONE)
        self.assertEqual(out, stream + event({"id": "c", "choices": [], "usage": USAGE}) + DONE)

    def test_too_many(self) -> None:
        stream = b"".join(delta(index, role="assistant") for index in range(5000))
        answer = read(translate(stream + DONE))
        assert answer.error is not None
        self.assertIn("4096 choices", answer.error["message"])
        self.assertEqual(len(answer.choices), 4096)


class EndTests(SynchronousTestCase):
    """A stream ends with [DONE] or with an error event, and nothing follows."""

    def test_done_is_added(self) -> None:
        for truncated in (False, True):
            stream = translator()
            out = stream.receive_data(ROLE + text("a") + STOP)
            self.assertFalse(stream.has_ended)
            self.assertEqual(
                out + stream.end(is_truncated=truncated), ROLE + text("a") + STOP + DONE
            )
            self.assertTrue(stream.has_ended)

    def test_finish_reason_is_added(self) -> None:
        answer = read(translate(ROLE + text("a") + DONE))
        self.assertEqual((answer.choice.content, answer.choice.finish_reason), ("a", "stop"))
        self.assertEqual(
            read(translate(ROLE + text(CALL) + DONE)).choice.finish_reason, "tool_calls"
        )
        self.assertEqual(
            read(translate(ROLE + text(CALL[:-20]) + DONE)).choice.finish_reason, "length"
        )

    def test_added_chunks_have_the_fields_of_the_others(self) -> None:
        fields = {"id": "i", "object": "o", "created": 5, "model": "m"}
        chunk = {**fields, "choices": [{"index": 0, "delta": {"content": "a"}}], "x": 1}
        *_, last = events(translate(event(chunk) + DONE))
        self.assertEqual(
            last, {**fields, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        )

    def test_each_choice_is_finished(self) -> None:
        stream = delta(0, role="assistant") + delta(1, role="assistant") + delta(1, "length") + DONE
        answer = read(translate(stream))
        self.assertEqual([s.finish_reason for s in answer.choices.values()], ["stop", "length"])

    def test_only_done(self) -> None:
        answer = read_strictly(translate(DONE, chat(model="m")))
        self.assertEqual((answer.choice.content, answer.choice.finish_reason), ("", "stop"))
        self.assertEqual(answer.chunks[0]["model"], "m")

    def test_held_text_comes_before_done(self) -> None:
        self.assertEqual(read(translate(ROLE + text("a <tool_") + DONE)).choice.content, "a <tool_")

    def test_truncated(self) -> None:
        for stream in (
            ROLE + text("a"),
            ROLE + text("a") + b"data: [DONE]\n",
            ROLE + text("a <tool_c"),
        ):
            for truncated in (False, True):
                translation = translator()
                answer = read(
                    translation.receive_data(stream) + translation.end(is_truncated=truncated)
                )
                assert answer.error is not None
                self.assertEqual(answer.error["code"], "backend_truncated")
                self.assertIn("in the middle", answer.error["message"])
                self.assertIn("broke" if truncated else "closed", answer.error["message"])
                self.assertIsNone(answer.choice.finish_reason)
                self.assertEqual(
                    answer.choice.content,
                    "".join(re.findall(r'"content":"(.*?)"', stream.decode())),
                )
                self.assertEqual(translation.report.error, answer.error["message"])

    def test_truncated_call(self) -> None:
        answer = read(translate(ROLE + text(CALL[:-20])))
        self.assertIsNotNone(answer.error)
        self.assertIsNone(answer.choice.finish_reason)
        self.assertEqual(answer.choice.calls[0]["name"], "search")

    def test_one_truncated_choice(self) -> None:
        answer = read(
            translate(delta(0, role="assistant") + delta(1, role="assistant") + delta(1, "stop"))
        )
        self.assertIsNotNone(answer.error)

    def test_empty_body(self) -> None:
        error = read(translate(b"")).error
        assert error is not None
        self.assertIn("empty", error["message"])
        self.assertEqual(error["code"], "backend_empty_response")

    def test_body_that_is_not_a_stream(self) -> None:
        """The message contains the text that the backend sent in place of events."""
        for body in (
            b'{"error": {"message": "out of memory"}}',
            b"<p>out of\n<b>memory</b></p>",
        ):
            error = read(translate(body)).error
            assert error is not None
            self.assertIn("out of memory", error["message"])

    def test_nothing_after_done(self) -> None:
        stream = translator()
        self.assertEqual(
            stream.receive_data(ROLE + STOP + DONE + text("late") + DONE), ROLE + STOP + DONE
        )
        self.assertEqual(stream.receive_data(text("later") + DONE), b"")
        self.assertEqual(stream.heartbeat(), b"")
        self.assertEqual(stream.end(is_truncated=True), b"")
        self.assertEqual(stream.fail(ApiError(500, "no")), b"")
        self.assertIsNone(stream.report.error)

    def test_done_with_white_space(self) -> None:
        self.assertEqual(translate(ROLE + STOP + b"data:  [DONE] \n\n"), ROLE + STOP + DONE)

    def test_second_finish_reason(self) -> None:
        self.assertEqual(translate(ROLE + STOP + STOP + LENGTH + DONE), ROLE + STOP + DONE)


class ErrorTests(SynchronousTestCase):
    """Errors within a stream, the backend's and ours."""

    def error(self, stream: bytes, **options: Any) -> dict[str, Any]:
        answer = read(translate(ROLE + text("a <tool_") + stream + DONE, **options))
        self.assertEqual(answer.choice.content, "a <tool_")
        self.assertIsNone(answer.choice.finish_reason)
        assert answer.error is not None
        return answer.error

    def test_error_of_the_backend(self) -> None:
        error = {"message": "out of memory", "type": "BadRequestError", "param": None, "code": 400}
        for stream in (
            event({"error": error}),
            event({"error": error, "choices": [], "id": "c"}),
            b"event: error\n" + event({"error": error}),
            b'data: {"error":\ndata: %s}\n\n' % json.dumps(error).encode(),
            b"error: " + json.dumps({"error": error}).encode() + b"\n\n",
        ):
            self.assertEqual(self.error(stream), error)

    def test_error_messages_of_the_backend(self) -> None:
        for stream in (
            event({"error": "out of memory"}),
            b"event: error\ndata: out of memory\n\n",
            b'event: error\ndata: {"message": "out of memory"}\n\n',
            b'data: {"error": "out of\nmemory"}\n\n',
            b'event: error\ndata: {"error": "out of\nmemory"}\n\n',
            b'error: {"message": "out of memory"}\n\n',
        ):
            self.assertEqual(self.error(stream)["message"], "out of memory", stream)

    def test_error_as_the_first_event(self) -> None:
        for stream in (event({"error": {"message": "no"}}), b"event: error\ndata: no\n\n"):
            translation = translator()
            self.assertEqual(read(translation.receive_data(stream)).error["message"], "no")  # type: ignore[index]
            self.assertTrue(translation.has_ended)
            self.assertEqual(translation.report.error, "no")

    def test_json_that_is_no_response(self) -> None:
        """Neither as an event nor in place of a stream."""
        for body in (b'{"choices": [5]}', b'{"status": "loading"}'):
            for stream in (body, b"data: " + body + b"\n\n" + DONE):
                error = read(translate(stream)).error
                assert error is not None
                self.assertEqual(error["code"], "backend_invalid_response", stream)

    def test_null_error(self) -> None:
        stream = event(
            {"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant"}}], "error": None}
        )
        self.assertEqual(translate(stream + STOP + DONE), stream + STOP + DONE)

    def test_invalid_event(self) -> None:
        for data in (
            b"out of memory",
            b'{"choices": [{"delta": {"content": "out of memory',
            b'"out of memory"',
        ):
            error = self.error(b"data: " + data + b"\n\n")
            self.assertEqual(error["code"], "backend_invalid_response")
            self.assertIn("out of memory", error["message"])

    def test_other_invalid_events(self) -> None:
        for data in (
            b"[]",
            b"7",
            b"null",
            b'{"choices":[7]}',
            b"[" * 100_000,
            b'{"choices":["x"]}',
        ):
            self.assertEqual(
                self.error(b"data: " + data + b"\n\n")["code"], "backend_invalid_response"
            )

    def test_too_long(self) -> None:
        long = text("x" * 1000)
        self.assertEqual(self.error(long, max_event=1000)["code"], "backend_event_too_large")
        self.assertIn("1000 bytes", self.error(long[:-2], max_event=1000)["message"])
        self.assertEqual(self.error(b":" * 2000, max_event=1000)["code"], "backend_event_too_large")

    def test_own_error(self) -> None:
        translation = translator()
        out = translation.receive_data(ROLE + text("a <tool_"))
        out += translation.fail(ApiError(504, "too slow", type="timeout", code="t"))
        answer = read(out)
        self.assertEqual(answer.choice.content, "a <tool_")
        self.assertEqual(
            answer.error, {"message": "too slow", "type": "timeout", "param": None, "code": "t"}
        )
        self.assertTrue(translation.has_ended)
        self.assertEqual(translation.report.error, "too slow")
        self.assertEqual(translation.fail(ApiError(500, "again")), b"")

    def test_own_error_as_the_first_event(self) -> None:
        self.assertEqual(read(translator().fail(ApiError(504, "no"))).choices, {})


class UnusualChunkTests(SynchronousTestCase):
    """Chunks that differ from the API, and would break clients."""

    def test_role_is_added(self) -> None:
        out = translate(text("a") + STOP + DONE)
        self.assertEqual(read(out).choice.content, "a")

    def test_missing_delta(self) -> None:
        stream = ROLE + event(
            {"id": "c", "choices": [{"index": 0, "finish_reason": "stop", "x": 1}]}
        )
        answer = read(translate(stream + DONE))
        self.assertEqual(answer.choice.finish_reason, "stop")
        self.assertEqual(answer.chunks[-1]["choices"][0]["x"], 1)

    def test_missing_choices(self) -> None:
        for unusual in ({"usage": USAGE}, {"usage": USAGE, "choices": None}):
            answer = read(translate(ROLE + STOP + event(unusual) + DONE))
            self.assertEqual(answer.usage, [USAGE])

    def test_empty_objects_are_dropped(self) -> None:
        """`data: {}` breaks six clients."""
        for empty in (
            event({}),
            b"event: ping\ndata: {}\n\n",
            b"data:\n\n",
            b"data: \n\n",
            event({"id": "c"}),
        ):
            self.assertEqual(
                translate(empty + ROLE + empty + STOP + empty + DONE), ROLE + STOP + DONE
            )

    def test_foreign_events_are_dropped(self) -> None:
        translation = translator()
        foreign = b'event: ping\ndata: {"type":"ping"}\n\nevent: x\ndata: pong\n\n'
        self.assertEqual(translation.receive_data(foreign + ROLE), ROLE)
        self.assertEqual(translation.report.counters["foreign_event"], 2)

    def test_role_in_a_choice_without_an_index(self) -> None:
        first = event({"id": "c", "choices": [{"delta": {"role": "assistant", "content": "a"}}]})
        (choice, *_) = [
            c for value in events(translate(first + STOP + DONE)) for c in value["choices"]
        ]
        self.assertEqual(choice["index"], 0)
        self.assertEqual(choice["delta"], {"role": "assistant", "content": "a"})

    def test_named_message(self) -> None:
        stream = b"event: message\nid: 5\n" + text(CALL)
        self.assertEqual(read(translate(ROLE + stream + STOP + DONE)).choice.pairs(), [SEARCH])

    def test_each_event_is_one_line_of_data(self) -> None:
        """Many clients search for `data: ` line by line, so the backend's framing is normalized."""
        plain = text("a")
        for unusual in (
            b"event: message\n" + plain,
            b"id: 5\nretry: 3\n" + plain,
            plain.replace(b"data: ", b"data:"),
            plain.replace(b"\n\n", b"\n}\nx: y\n\n"),
            plain.replace(b"data: {", b"data: {\ndata: "),
            plain.replace(b"\n", b"\r\n"),
        ):
            with self.subTest(unusual):
                self.assertEqual(
                    translate(ROLE + unusual + STOP + DONE), ROLE + plain + STOP + DONE
                )

    def test_message_in_the_stream(self) -> None:
        message = {"role": "assistant", "content": CALL}
        chunk = event(
            {"id": "c", "choices": [{"message": message, "delta": None, "finish_reason": "stop"}]}
        )
        self.assertEqual(read(translate(chunk + DONE)).choice.pairs(), [SEARCH])

    def test_several_data_lines(self) -> None:
        pretty = json.dumps(json.loads(text(CALL)[6:]), indent=1).replace("\n", "\ndata: ")
        out = translate(ROLE + b"data: " + pretty.encode() + b"\n\n" + STOP + DONE)
        self.assertEqual(read(out).choice.pairs(), [SEARCH])

    def test_fields_of_other_types(self) -> None:
        parts = [{"type": "text", "text": "a"}]
        chunks = [
            {"index": 0, "delta": {"content": parts}},
            {"index": 0, "delta": {"content": "a", "role": 5, "tool_calls": 5}},
            {"index": 0, "delta": {"tool_calls": [5, {"function": {}}]}},
            {"index": 0, "delta": {"tool_calls": [{"function": 5}, {"index": "x"}]}},
            {"index": 0, "delta": {"function_call": "f"}},
            {"index": 0, "delta": {}, "finish_reason": 5},
        ]
        stream = ROLE + b"".join(
            event({"id": "c", "choices": [choice], "usage": 1}) for choice in chunks
        )
        self.assertEqual(translate(stream + STOP + DONE), stream + STOP + DONE)

    def test_missing_index(self) -> None:
        cases: list[dict[str, Any]] = [{}, {"index": None}, {"index": "0"}]
        for unusual in cases:
            chunk = event({"id": "c", "choices": [{**unusual, "delta": {"content": "a"}, "k": 1}]})
            answer = read(translate(ROLE + chunk + STOP + DONE))
            self.assertEqual((answer.choice.content, answer.chunks[1]["choices"][0]["k"]), ("a", 1))

    def test_content_of_another_type_is_kept(self) -> None:
        parts = [{"type": "text", "text": "a"}]
        (first, *_) = deltas(translate(delta(content=parts) + STOP + DONE))
        self.assertEqual(first, {"role": "assistant", "content": parts})

    def test_lenient_json(self) -> None:
        """The client gets strict JSON."""
        choice = b'{"index":0,"delta":{"content":"a\\ud83d"},"logprobs":NaN}'
        chunk = b'{"id":"c","choices":[%s],"n":1e400,"k":"\n\xff"}' % choice
        stream = ROLE + b"data: " + chunk + b"\n\n" + text("\ude42") + text(CALL) + STOP + DONE
        out = translate(stream)
        for line in out.decode().split("\n\n")[:-2]:
            strict_json(line[6:])
        self.assertEqual(read(out).choice.content, "a🙂")
        self.assertEqual(read(out).choice.pairs(), [SEARCH])

    def test_bytes_that_are_not_text(self) -> None:
        for place in (b'"delta":{"content":"a%s"}', b'"delta":{"content":"a"},"x":"%s"'):
            chunk = b'{"id":"c","choices":[{"index":0,%s}]}' % (place % b"\xe2\x82")
            out = translate(ROLE + b"data: " + chunk + b"\n\n" + STOP + DONE)
            self.assertEqual(read(out).choice.content.rstrip("\ufffd"), "a")
            self.assertIn("\ufffd", out.decode())

    def test_surrogate_half_before_other_text(self) -> None:
        out = translate(ROLE + text("a\ud83d") + text("b") + text("\ud83d") + STOP + DONE)
        self.assertEqual(read(out).choice.content, "a\ufffdb\ufffd")

    def test_surrogate_half_at_the_end(self) -> None:
        """For each way in which an answer ends, and for each choice."""
        stop = delta(_finish="stop", content=None)
        for end in (STOP + DONE, stop + DONE, DONE, STOP, event({"error": {"message": "x"}}), b""):
            out = translate(ROLE + text("a") + text("b\ud83d") + end)
            self.assertEqual(read(out).choice.content, "ab\ufffd", end)
        choice = read(translate(ROLE + delta(_finish="length", content="a\ud83d") + DONE)).choice
        self.assertEqual((choice.content, choice.finish_reason), ("a\ufffd", "length"))
        one = ROLE + text("\ud83d") + text("\ud83d", 1) + delta(1, "stop") + text("\ude00")
        choices = read(translate(one + STOP + DONE)).choices
        self.assertEqual([choices[0].content, choices[1].content], ["\U0001f600", "\ufffd"])

    def test_surrogate_half_in_a_call(self) -> None:
        """It is truncated, as the call is."""
        half = {**STRUCTURED, "function": {"name": "f", "arguments": '{"a": "\ud83d'}}
        out = translate(ROLE + delta(tool_calls=[half]) + LENGTH + DONE)
        self.assertEqual(read(out).choice.finish_reason, "length")
        self.assertNotIn("\ufffd", out.decode())

    def test_surrogate_half_of_a_choice_with_an_invalid_index(self) -> None:
        unusual = {"choices": [{"index": 1.5, "delta": {"content": "a\ud83d"}}]}
        self.assertEqual(read(translate(event(unusual) + DONE)).choice.content, "a\ufffd")


class HeartbeatTests(SynchronousTestCase):
    """Heartbeats at any time."""

    def test_comment(self) -> None:
        translation = translator()
        heartbeat = translation.heartbeat()
        self.assertEqual(heartbeat, b": heartbeat\n\n")
        out = (
            heartbeat
            + translation.receive_data(ROLE + text("<tool_")[:-1])
            + translation.heartbeat()
        )
        out += (
            translation.receive_data(b"\n" + text("x") + STOP)
            + translation.heartbeat()
            + translation.end(is_truncated=False)
        )
        self.assertEqual(read(out).choice.content, "<tool_x")

    def test_chunks_at_any_time(self) -> None:
        packets = [ROLE, text("a"), text(CALL[:40]), text(CALL[40:]), STOP, event({"choices": []})]
        translation = translator(chat("search", model="m"), heartbeat_style="chunk")
        out = translation.heartbeat()
        for packet in packets:
            out += translation.receive_data(packet) + translation.heartbeat()
        out += translation.receive_data(DONE)
        answer = read_strictly(out, bare=True)
        self.assertEqual((answer.choice.content, answer.choice.pairs()), ("a", [SEARCH]))
        self.assertEqual(translation.heartbeat(), b"")

    def test_first_chunk_has_the_role_and_an_id(self) -> None:
        translation = translator(chat(model="m"), heartbeat_style="chunk")
        first, second = events(translation.heartbeat() + translation.heartbeat())
        self.assertTrue(first["id"].startswith("chatcmpl-"))
        self.assertEqual((first["model"], second["id"]), ("m", first["id"]))
        self.assertEqual(first["choices"][0]["delta"], {"role": "assistant"})
        self.assertEqual(second["choices"][0]["delta"], {})

    def test_role_is_not_added_twice(self) -> None:
        translation = translator(heartbeat_style="chunk")
        translation.heartbeat()
        self.assertEqual(translation.receive_data(text("a")), text("a"))

    def test_role_of_the_backend_is_not_repeated(self) -> None:
        translation = translator(heartbeat_style="chunk")
        out = translation.heartbeat()
        for packet in (ROLE, delta(role="assistant", content="a"), ROLE, STOP, DONE):
            out += translation.receive_data(packet)
        self.assertEqual(out.count(b'"role"'), 1)
        self.assertEqual(read(out).choice.content, "a")

    def test_role_in_each_delta_is_sent_once(self) -> None:
        one = delta(role="assistant", content="a")
        for piece in (1, len(one), 5 * len(one)):
            translation = translator()
            stream = one * 20 + STOP + DONE
            out = b"".join(
                translation.receive_data(stream[at : at + piece])
                for at in range(0, len(stream), piece)
            )
            self.assertEqual((out.count(b'"role"'), read(out).choice.content), (1, "a" * 20))

    def test_later_chunks_have_the_fields_of_the_backend(self) -> None:
        translation = translator(heartbeat_style="chunk")
        translation.receive_data(ROLE)
        self.assertEqual(json.loads(translation.heartbeat()[6:])["id"], "c")

    def test_only_heartbeats(self) -> None:
        translation = translator(heartbeat_style="chunk")
        answer = read(translation.heartbeat() + translation.end(is_truncated=False))
        self.assertIsNotNone(answer.error)
        translation = translator(heartbeat_style="chunk")
        self.assertEqual(
            read(translation.heartbeat() + translation.receive_data(DONE)).choice.finish_reason,
            "stop",
        )

    def test_completion(self) -> None:
        translation = translator(completion(), heartbeat_style="chunk")
        out = translation.heartbeat() + translation.receive_data(DONE)
        self.assertEqual(read_strictly(out).choice.text, "")


class CompletionTests(SynchronousTestCase):
    """`/v1/completions`: no calls, but the same guarantees for the end."""

    def part(self, text: str, finish: str | None = None, index: int = 0) -> bytes:
        return event(
            {"id": "c", "choices": [{"index": index, "text": text, "finish_reason": finish}]}
        )

    def test_passes(self) -> None:
        stream = (
            self.part(CALL) + self.part("", "stop") + event({"choices": [], "usage": USAGE}) + DONE
        )
        self.assertEqual(translate(stream, completion()), stream)

    def test_missing_ends_are_added(self) -> None:
        stream = self.part("a") + self.part("b", index=1) + self.part("", "length", index=1)
        answer = read(translate(stream + DONE, completion()))
        self.assertEqual([s.finish_reason for s in answer.choices.values()], ["stop", "length"])
        stream = self.part("a", "stop")
        self.assertEqual(translate(stream, completion()), stream + DONE)

    def test_truncated(self) -> None:
        answer = read(translate(self.part("a"), completion()))
        self.assertEqual(answer.choice.text, "a")
        self.assertIsNotNone(answer.error)

    def test_nothing_after_the_end(self) -> None:
        stream = self.part("a", "stop")
        self.assertEqual(translate(stream + self.part("b") + DONE, completion()), stream + DONE)

    def test_surrogates(self) -> None:
        answer = read(translate(self.part("\ud83d") + self.part("\ude42", "stop"), completion()))
        self.assertEqual(answer.choice.text, "🙂")

    def test_response(self) -> None:
        body = b'{"choices":[{"index":0,"text":"a","finish_reason":"stop"}],"object":"x"}'
        out, report = translate_response(body, completion(), TranslationOptions())
        self.assertEqual((out, report.finish_reasons), (body, {0: "stop"}))

    def test_response_without_finish_reason(self) -> None:
        body = b'{"choices":[{"index":0,"text":"a"}]}'
        out, report = translate_response(body, completion(), TranslationOptions())
        self.assertEqual((out, report.finish_reasons), (body, {}))

    def test_response_as_stream(self) -> None:
        choice = b'{"index":0,"text":"a","finish_reason":"stop"}'
        body = b'{\n"id":"c","choices":[%s],"usage":{"x":1}}' % choice
        out, _ = response_as_stream(body, completion(), TranslationOptions())
        answer = read(out)
        self.assertEqual((answer.choice.text, answer.usage), ("a", [{"x": 1}]))


EVENTS = st.sampled_from(
    [
        ROLE,
        text("Hello "),
        text("\n"),
        text("<tool_call>"),
        text('{"name": "search", '),
        text('"arguments": {"query": "x"}}'),
        text("</tool_call>"),
        text("a\ud83d"),
        text("\ude42"),
        delta(1, role="assistant", content=CALL),
        delta(1, "stop"),
        delta(reasoning_content="hm"),
        delta(tool_calls=[STRUCTURED]),
        STOP,
        LENGTH,
        DONE,
        event({"error": "no"}),
        event({"choices": [], "usage": USAGE}),
        event({"usage": USAGE}),
        event({}),
        b": comment\n\n",
        b"event: ping\ndata: {}\n\n",
        b"data: garbage\n\n",
        b'data: {"choices":[{"delta":{"content":"a"},"logprobs":NaN}]}\r\n\r\n',
    ]
)


class AnyStreamTests(SynchronousTestCase):
    """Any data, split anywhere."""

    @given(
        st.lists(EVENTS, max_size=20), st.lists(st.integers(0, 2000), max_size=10), st.booleans()
    )
    def test_any_split_gives_the_same(
        self,
        pieces: list[bytes],
        splits: list[int],
        truncated: bool,  # noqa: FBT001
    ) -> None:
        stream = b"".join(pieces)
        edges = [0, *sorted(min(at, len(stream)) for at in splits), len(stream)]
        at_once, packets = translator(), translator()
        expected = at_once.receive_data(stream) + at_once.end(is_truncated=truncated)
        out = b"".join(packets.receive_data(stream[a:b]) for a, b in itertools.pairwise(edges))
        self.assertEqual(
            without_random_ids(out + packets.end(is_truncated=truncated)),
            without_random_ids(expected),
        )
        self.assertTrue(packets.has_ended)

    @given(st.lists(EVENTS, max_size=20), st.booleans())
    def test_any_stream_suits_a_strict_reader(self, pieces: list[bytes], chunks: bool) -> None:  # noqa: FBT001
        translation = translator(heartbeat_style="chunk" if chunks else "comment")
        out = b"".join(
            translation.heartbeat() + translation.receive_data(piece) for piece in pieces
        )
        out += translation.end(is_truncated=False)
        if b"call_b" in out:
            return  # calls structured by the backend pass unchanged, valid or not
        read(out)

    @given(st.lists(st.binary(max_size=60), max_size=6))
    def test_any_bytes(self, packets: list[bytes]) -> None:
        translation = translator()
        out = b"".join(map(translation.receive_data, packets)) + translation.end(is_truncated=True)
        read(out)

    def test_known_fields_of_another_type(self) -> None:
        """They pass unchanged, as all fields do that are not understood."""
        for name in sorted(TYPED_FIELDS):
            chunk = b'data: {"choices":[{"index":0,"delta":{"%s":1}}]}\n\n' % name
            self.assertIn(chunk, translate(ROLE + chunk + STOP + DONE))

    @given(st.binary(max_size=60), st.sampled_from([b'"content":"%s"', b'"x":"%s"', b'"%s":1']))
    def test_any_string(self, data: bytes, place: bytes) -> None:
        # See `test_known_fields_of_another_type`.
        assume(place != b'"%s":1' or data not in TYPED_FIELDS)
        chunk = b'{"choices":[{"index":0,"delta":{%s}}]}' % (place % data)
        read(translate(ROLE + b"data: " + chunk + b"\n\n" + STOP + DONE))

    @given(st.binary(max_size=60))
    def test_any_data(self, data: bytes) -> None:
        translation = translator()
        read(
            translation.receive_data(ROLE + b"data: " + data + b"\n\n")
            + translation.end(is_truncated=True)
        )


#: The fields of a delta whose type the strict reader checks.
TYPED_FIELDS = {b"role", b"content", b"reasoning_content", b"tool_calls", b"function_call"}


def without_random_ids(stream: bytes) -> bytes:
    """Return a stream without the random ids that an answer without a chunk has."""
    return re.sub(rb'"chatcmpl-\w+"', b'"chatcmpl"', stream)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 2)
    | st.sampled_from(["", "a", CALL, "stop", "\ud83d"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2)
    ),
    max_leaves=4,
)


def maybe(value: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return value | value | value | JUNK


def fields(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return maybe(st.fixed_dictionaries({}, optional=values))


CALLS = maybe(
    st.lists(
        fields(
            index=maybe(st.integers(0, 2)),
            id=maybe(st.just("call_b")),
            function=fields(name=maybe(st.just("f")), arguments=maybe(st.just("{}"))),
        ),
        max_size=2,
    )
)
DELTAS = fields(
    role=maybe(st.just("assistant")),
    content=maybe(st.sampled_from([CALL, CALL[:20], "a", "\n", "", "\ud83d"])),
    reasoning_content=maybe(st.just("hm")),
    tool_calls=CALLS,
    function_call=JUNK,
)
CHUNKS = fields(
    id=JUNK,
    choices=maybe(
        st.lists(
            fields(
                index=maybe(st.integers(0, 1)),
                delta=DELTAS,
                message=DELTAS,
                text=JUNK,
                logprobs=JUNK,
                finish_reason=maybe(st.sampled_from([None, "stop", "length"])),
            ),
            max_size=2,
        )
    ),
    usage=maybe(st.just(USAGE)),
    error=st.none() | JUNK,
)


class JunkTests(SynchronousTestCase):
    """Chunks with any value in any place: nothing is raised, and the stream ends properly."""

    @given(st.lists(CHUNKS, max_size=5), st.sampled_from([chat("search"), chat(), completion()]))
    def test_streams(self, chunks: list[Any], request: Any) -> None:
        translation = translator(request, TranslationOptions(reasoning="split"))
        out = translation.receive_data(b"".join(map(event, chunks))) + translation.end(
            is_truncated=False
        )
        self.assertTrue(translation.has_ended)
        for line in out.decode().split("\n\n")[:-2]:
            strict_json(line[6:])

    @given(CHUNKS, st.sampled_from([chat("search"), chat(), completion()]))
    def test_responses(self, chunk: Any, request: Any) -> None:
        for function in (translate_response, response_as_stream):
            try:
                function(json.dumps(chunk).encode(), request, TranslationOptions(reasoning="split"))
            except ApiError as error:
                self.assertEqual(error.status, 502)
