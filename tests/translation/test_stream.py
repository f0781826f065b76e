"""The core's door: whatever the backend sends, the client gets a stream that its SDK takes."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.errors import ApiError
from blockops.toolcalls.options import Rules
from blockops.translation.stream import PassThrough, random_id, whole, whole_as_stream
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
    transcode,
    transcoder,
)
from tests.api.strict import Answer, read_strictly, strict_json

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
SEARCH = ("search", {"query": "x"})
STRUCTURED = {
    "index": 0,
    "id": "call_b",
    "type": "function",
    "function": {"name": "get_weather", "arguments": "{}"},
}


def read(stream: bytes) -> Answer:
    return read_strictly(stream, bare=True)


def events(stream: bytes) -> list[Any]:
    """Return the JSON of each event of a stream, `[DONE]` left out."""
    return [json.loads(e[6:]) for e in stream.decode().split("\n\n")[:-1] if e[6:] != "[DONE]"]


def deltas(stream: bytes) -> list[Any]:
    return [choice["delta"] for value in events(stream) for choice in value["choices"]]


class PassingTests(SynchronousTestCase):
    """What needs no change leaves as the bytes that came."""

    def test_plain_stream(self) -> None:
        stream = ROLE + text("Hello") + text(" you") + STOP + event({"choices": [], "usage": USAGE})
        self.assertEqual(transcode(stream + DONE), stream + DONE)

    def test_spelling_survives(self) -> None:
        odd = (
            b'data: {"choices": [{"index": 0,"delta":{"content":"\\u0041"}}], "x":1.50, "x":2}\n\n'
        )
        self.assertEqual(transcode(ROLE + odd + STOP + DONE), ROLE + odd + STOP + DONE)

    def test_one_value_for_many_events(self) -> None:
        stream = transcoder()
        packet = ROLE + text("a") + text("b")
        self.assertEqual(stream.receive_data(packet), packet)
        self.assertEqual(stream.receive_data(text("c")[:-1]), b"")
        self.assertEqual(stream.receive_data(b"\n"), text("c"))

    def test_comments_are_dropped(self) -> None:
        stream = (
            b": ping\n\n" + ROLE + b":\n\n:\n\n: keepalive 8/9\n\n" + STOP + b": bye\n\n" + DONE
        )
        self.assertEqual(transcode(stream), ROLE + STOP + DONE)

    def test_other_line_ends(self) -> None:
        stream = ROLE + text("a") + STOP + DONE
        self.assertEqual(transcode(stream.replace(b"\n", b"\r\n")), stream)

    def test_reasoning_passes(self) -> None:
        stream = ROLE + delta(reasoning_content=CALL) + delta(reasoning=CALL) + STOP + DONE
        self.assertEqual(transcode(stream), stream)

    def test_without_tools_nothing_is_translated(self) -> None:
        stream = ROLE + text(CALL) + STOP + DONE
        self.assertEqual(transcode(stream, chat()), stream)
        self.assertEqual(transcode(stream, chat("search", tool_choice="none")), stream)

    def test_empty_choices(self) -> None:
        """The first chunk of some and the usage of all belong to no choice."""
        stream = event({"choices": [], "prompt_filter_results": []}) + ROLE + STOP
        stream += event({"choices": [], "usage": USAGE}) * 2 + DONE
        self.assertEqual(transcode(stream), stream)

    def test_usage_is_reported(self) -> None:
        stream = transcoder()
        stream.receive_data(ROLE + delta(_finish="stop", _beside={"usage": USAGE}) + DONE)
        self.assertEqual(stream.report.usage, USAGE)
        self.assertEqual(stream.report.chunks, 2)


class TranslationTests(SynchronousTestCase):
    """Text becomes calls; everything else of a chunk stays with it."""

    def test_call(self) -> None:
        out = transcode(ROLE + text("Look: ") + text(CALL) + STOP + DONE)
        said = read(out).said
        self.assertEqual((said.content, said.pairs()), ("Look:", [SEARCH]))
        self.assertEqual(said.finish_reason, "tool_calls")

    def test_every_cut_of_the_text(self) -> None:
        for cut in range(1, len(CALL)):
            said = read(transcode(ROLE + text(CALL[:cut]) + text(CALL[cut:]) + STOP + DONE)).said
            self.assertEqual((said.content, said.pairs()), ("", [SEARCH]))

    def test_first_delta_of_a_call(self) -> None:
        out = transcode(ROLE + text(CALL) + STOP + DONE)
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
        stream = transcoder()
        stream.receive_data(ROLE + text('<tool_call>{"name":"search","arguments":{"query":"'))
        for part in ("a", "b", "c"):
            (made,) = deltas(stream.receive_data(text(part)))
            self.assertEqual(made, {"tool_calls": [{"index": 0, "function": {"arguments": part}}]})

    def test_everything_else_is_carried_once(self) -> None:
        """A chunk that becomes several says what it says besides only once."""
        logprobs = b'{"content":[{"token":"x","logprob":-1.50}]}'
        chunk = (
            b'data: {"id":"i","object":"o","created":1.0,"model":"m","system_fingerprint":"f",'
            b'"choices":[{"index":0,"delta":{"content":%s,"extra":1.50},"logprobs":%s,'
            b'"token_ids":null,"finish_reason":"stop","stop_reason":7}],'
            b'"usage":{"total_tokens":1},"timings":{"ms":0.10},"nothing":null}\n\n'
        ) % (json.dumps("a" + CALL).encode(), logprobs)
        out = transcode(ROLE + chunk + DONE).removeprefix(ROLE).removesuffix(DONE)
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

    def test_held_delta_leaves_nothing(self) -> None:
        stream = transcoder()
        stream.receive_data(ROLE)
        beside = {"usage": None, "system_fingerprint": "f", "service_tier": "x"}
        self.assertEqual(stream.receive_data(delta(content="<tool_", _beside=beside)), b"")

    def test_held_delta_leaves_what_it_says_besides(self) -> None:
        held = b'{"index":0,"delta":{"content":"<tool_"},"logprobs":{"content":[]}}'
        stream = transcoder()
        stream.receive_data(ROLE)
        (chunk,) = events(stream.receive_data(b'data: {"choices":[%s]}\n\n' % held))
        self.assertEqual(chunk["choices"][0]["delta"], {})
        self.assertEqual(chunk["choices"][0]["logprobs"], {"content": []})
        (chunk,) = events(stream.receive_data(delta(content="call", _beside={"usage": USAGE})))
        self.assertEqual(chunk, {"id": "c", "choices": [], "usage": USAGE})
        (chunk,) = events(stream.receive_data(delta(content=">", reasoning_content="hm")))
        self.assertEqual(chunk["choices"][0]["delta"], {"reasoning_content": "hm"})

    def test_reasoning_split(self) -> None:
        out = transcode(
            ROLE + text("<think>hm</think>ok") + STOP + DONE, rules=Rules(reasoning="split")
        )
        self.assertEqual((read(out).said.reasoning, read(out).said.content), ("hm", "ok"))

    def test_reasoning_of_both(self) -> None:
        """The backend's own reasoning and ours in one delta: none of them is lost."""
        both = delta(content="<think>b</think>c", reasoning_content="a")
        out = transcode(ROLE + both + STOP + DONE, rules=Rules(reasoning="split"))
        self.assertEqual((read(out).said.reasoning, read(out).said.content), ("ab", "c"))

    def test_ids_are_random(self) -> None:
        self.assertTrue(re.fullmatch("call_[0-9a-zA-Z]{24}", random_id()))
        self.assertEqual(len({random_id() for _ in range(1000)}), 1000)

    def test_structured_behind_ours(self) -> None:
        out = transcode(
            ROLE + text(CALL) + delta(tool_calls=[STRUCTURED]) + delta(_finish="tool_calls") + DONE
        )
        said = read(out).said
        self.assertEqual(said.pairs(), [SEARCH, ("get_weather", {})])
        self.assertEqual(said.calls[1]["id"], "call_b")

    def test_structured_and_ours_in_one_delta(self) -> None:
        both = delta(content=CALL, tool_calls=[STRUCTURED], _finish="stop")
        out = transcode(ROLE + both + DONE)
        self.assertEqual(read(out).said.pairs(), [SEARCH, ("get_weather", {})])

    def test_structured_without_index_behind_ours(self) -> None:
        call = {key: value for key, value in STRUCTURED.items() if key != "index"}
        out = transcode(ROLE + text(CALL) + delta(tool_calls=[call]) + STOP + DONE)
        self.assertEqual(read(out).said.pairs(), [SEARCH, ("get_weather", {})])

    def test_leaked_tag(self) -> None:
        stream = ROLE + text("Hi.\n\n") + text("<tool_call") + delta(tool_calls=[STRUCTURED])
        said = read(transcode(stream + delta(_finish="tool_calls") + DONE)).said
        self.assertEqual((said.content, said.pairs()), ("Hi.", [("get_weather", {})]))

    def test_function_call(self) -> None:
        stream = ROLE + delta(function_call={"name": "f", "arguments": ""})
        stream += delta(function_call={"arguments": "{}"}) + delta(_finish="function_call") + DONE
        self.assertEqual(transcode(stream), stream)
        self.assertEqual(read(stream).said.function_call, {"name": "f", "arguments": "{}"})


class ChoicesTests(SynchronousTestCase):
    """Several choices, each with a state of its own."""

    def test_interleaved(self) -> None:
        stream = delta(0, role="assistant") + delta(1, role="assistant")
        for a, b in zip(CALL, CALL.replace("x", "y"), strict=True):
            stream += text(a, 0) + text(b, 1)
        stream += delta(1, "stop") + delta(0, "stop")
        answer = read(transcode(stream + DONE))
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
        out = transcode(
            unchanged + both({"content": CALL}, {"content": "d"}) + both({}, {}, "stop") + DONE
        )
        self.assertTrue(out.startswith(unchanged))
        answer = read(out)
        self.assertEqual(answer.choices[0].pairs(), [SEARCH])
        self.assertEqual((answer.choices[0].content, answer.choices[1].content), ("ab", "cd"))
        self.assertEqual([s.finish_reason for s in answer.choices.values()], ["tool_calls", "stop"])
        self.assertEqual(out.count(b'"more":1'), 4)

    def test_one_ends_early(self) -> None:
        """What comes behind the end of a choice goes, the rest of its chunk stays."""
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
        answer = read(transcode(stream + delta(1, "length") + delta(0, "stop") + DONE))
        self.assertEqual((answer.choices[0].content, answer.choices[1].content), ("", "y"))

    def test_usage_behind_the_end(self) -> None:
        stream = ROLE + STOP
        late = delta(_beside={"usage": USAGE})
        out = transcode(stream + late + delta(content="") + DONE)
        self.assertEqual(out, stream + event({"id": "c", "choices": [], "usage": USAGE}) + DONE)

    def test_too_many(self) -> None:
        stream = b"".join(delta(index, role="assistant") for index in range(5000))
        answer = read(transcode(stream + DONE))
        assert answer.error is not None
        self.assertIn("4096 choices", answer.error["message"])
        self.assertEqual(len(answer.choices), 4096)


class EndTests(SynchronousTestCase):
    """A stream ends with [DONE] or with an error, and with nothing behind it."""

    def test_done_is_added(self) -> None:
        for cut in (False, True):
            stream = transcoder()
            out = stream.receive_data(ROLE + text("a") + STOP)
            self.assertFalse(stream.ended)
            self.assertEqual(out + stream.end(cut=cut), ROLE + text("a") + STOP + DONE)
            self.assertTrue(stream.ended)

    def test_finish_reason_is_added(self) -> None:
        answer = read(transcode(ROLE + text("a") + DONE))
        self.assertEqual((answer.said.content, answer.said.finish_reason), ("a", "stop"))
        self.assertEqual(read(transcode(ROLE + text(CALL) + DONE)).said.finish_reason, "tool_calls")
        self.assertEqual(
            read(transcode(ROLE + text(CALL[:-20]) + DONE)).said.finish_reason, "length"
        )

    def test_added_chunks_look_like_the_others(self) -> None:
        fields = {"id": "i", "object": "o", "created": 5, "model": "m"}
        chunk = {**fields, "choices": [{"index": 0, "delta": {"content": "a"}}], "x": 1}
        *_, last = events(transcode(event(chunk) + DONE))
        self.assertEqual(
            last, {**fields, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        )

    def test_each_choice_is_finished(self) -> None:
        stream = delta(0, role="assistant") + delta(1, role="assistant") + delta(1, "length") + DONE
        answer = read(transcode(stream))
        self.assertEqual([s.finish_reason for s in answer.choices.values()], ["stop", "length"])

    def test_nothing_but_done(self) -> None:
        answer = read_strictly(transcode(DONE, chat(model="m")))
        self.assertEqual((answer.said.content, answer.said.finish_reason), ("", "stop"))
        self.assertEqual(answer.chunks[0]["model"], "m")

    def test_held_text_comes_before_done(self) -> None:
        self.assertEqual(read(transcode(ROLE + text("a <tool_") + DONE)).said.content, "a <tool_")

    def test_cut(self) -> None:
        for stream in (
            ROLE + text("a"),
            ROLE + text("a") + b"data: [DONE]\n",
            ROLE + text("a <tool_c"),
        ):
            for cut in (False, True):
                through = transcoder()
                answer = read(through.receive_data(stream) + through.end(cut=cut))
                assert answer.error is not None
                self.assertEqual(answer.error["code"], "backend_truncated")
                self.assertIn("in the middle", answer.error["message"])
                self.assertIn("broke" if cut else "closed", answer.error["message"])
                self.assertIsNone(answer.said.finish_reason)
                self.assertEqual(
                    answer.said.content, "".join(re.findall(r'"content":"(.*?)"', stream.decode()))
                )
                self.assertEqual(through.report.error, answer.error["message"])

    def test_call_cut_off(self) -> None:
        answer = read(transcode(ROLE + text(CALL[:-20])))
        self.assertIsNotNone(answer.error)
        self.assertIsNone(answer.said.finish_reason)
        self.assertEqual(answer.said.calls[0]["name"], "search")

    def test_one_choice_cut(self) -> None:
        answer = read(
            transcode(delta(0, role="assistant") + delta(1, role="assistant") + delta(1, "stop"))
        )
        self.assertIsNotNone(answer.error)

    def test_nothing_at_all(self) -> None:
        error = read(transcode(b"")).error
        assert error is not None
        self.assertIn("empty", error["message"])
        self.assertEqual(error["code"], "backend_empty_response")

    def test_no_stream_at_all(self) -> None:
        """What the backend said instead of events is in the message."""
        for garbage in (
            b'{"error": {"message": "out of memory"}}',
            b"<p>out of\n<b>memory</b></p>",
        ):
            error = read(transcode(garbage)).error
            assert error is not None
            self.assertIn("out of memory", error["message"])

    def test_nothing_behind_done(self) -> None:
        stream = transcoder()
        self.assertEqual(
            stream.receive_data(ROLE + STOP + DONE + text("late") + DONE), ROLE + STOP + DONE
        )
        self.assertEqual(stream.receive_data(text("later") + DONE), b"")
        self.assertEqual(stream.heartbeat(), b"")
        self.assertEqual(stream.end(cut=True), b"")
        self.assertEqual(stream.fail(ApiError(500, "no")), b"")
        self.assertIsNone(stream.report.error)

    def test_done_with_white_space(self) -> None:
        self.assertEqual(transcode(ROLE + STOP + b"data:  [DONE] \n\n"), ROLE + STOP + DONE)

    def test_second_finish_reason(self) -> None:
        self.assertEqual(transcode(ROLE + STOP + STOP + LENGTH + DONE), ROLE + STOP + DONE)


class ErrorTests(SynchronousTestCase):
    """Errors in mid-stream, the backend's and ours."""

    def error(self, stream: bytes, **options: Any) -> dict[str, Any]:
        answer = read(transcode(ROLE + text("a <tool_") + stream + DONE, **options))
        self.assertEqual(answer.said.content, "a <tool_")
        self.assertIsNone(answer.said.finish_reason)
        assert answer.error is not None
        return answer.error

    def test_of_the_backend(self) -> None:
        error = {"message": "out of memory", "type": "BadRequestError", "param": None, "code": 400}
        for stream in (
            event({"error": error}),
            event({"error": error, "choices": [], "id": "c"}),
            b"event: error\n" + event({"error": error}),
            b'data: {"error":\ndata: %s}\n\n' % json.dumps(error).encode(),
            b"error: " + json.dumps({"error": error}).encode() + b"\n\n",
        ):
            self.assertEqual(self.error(stream), error)

    def test_texts_of_the_backend(self) -> None:
        for stream in (
            event({"error": "out of memory"}),
            b"event: error\ndata: out of memory\n\n",
            b'event: error\ndata: {"message": "out of memory"}\n\n',
            b'data: {"error": "out of\nmemory"}\n\n',
            b'event: error\ndata: {"error": "out of\nmemory"}\n\n',
            b'error: {"message": "out of memory"}\n\n',
        ):
            self.assertEqual(self.error(stream)["message"], "out of memory", stream)

    def test_first_thing_said(self) -> None:
        for stream in (event({"error": {"message": "no"}}), b"event: error\ndata: no\n\n"):
            through = transcoder()
            self.assertEqual(read(through.receive_data(stream)).error["message"], "no")  # type: ignore[index]
            self.assertTrue(through.ended)
            self.assertEqual(through.report.error, "no")

    def test_no_error(self) -> None:
        stream = event(
            {"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant"}}], "error": None}
        )
        self.assertEqual(transcode(stream + STOP + DONE), stream + STOP + DONE)

    def test_garbage(self) -> None:
        for data in (
            b"out of memory",
            b'{"choices": [{"delta": {"content": "out of memory',
            b'"out of memory"',
        ):
            error = self.error(b"data: " + data + b"\n\n")
            self.assertEqual(error["code"], "backend_invalid_response")
            self.assertIn("out of memory", error["message"])

    def test_other_garbage(self) -> None:
        for data in (
            b"[]",
            b"7",
            b"null",
            b'{"choices":[7]}',
            b"[" * 100_000,
            b'{"choices":["x"]}',
        ):
            self.assertEqual(self.error(b"data: " + data + b"\n\n")["code"], "backend_invalid_response")

    def test_too_long(self) -> None:
        long = text("x" * 1000)
        self.assertEqual(self.error(long, max_event=1000)["code"], "backend_event_too_large")
        self.assertIn("1000 bytes", self.error(long[:-2], max_event=1000)["message"])
        self.assertEqual(self.error(b":" * 2000, max_event=1000)["code"], "backend_event_too_large")

    def test_of_ours(self) -> None:
        through = transcoder()
        out = through.receive_data(ROLE + text("a <tool_"))
        out += through.fail(ApiError(504, "too slow", type="timeout", code="t"))
        answer = read(out)
        self.assertEqual(answer.said.content, "a <tool_")
        self.assertEqual(
            answer.error, {"message": "too slow", "type": "timeout", "param": None, "code": "t"}
        )
        self.assertTrue(through.ended)
        self.assertEqual(through.report.error, "too slow")
        self.assertEqual(through.fail(ApiError(500, "again")), b"")

    def test_of_ours_first(self) -> None:
        self.assertEqual(read(transcoder().fail(ApiError(504, "no"))).choices, {})


class OddChunkTests(SynchronousTestCase):
    """Chunks that are not as the API has them, and that clients would trip over."""

    def test_role_is_added(self) -> None:
        out = transcode(text("a") + STOP + DONE)
        self.assertEqual(read(out).said.content, "a")

    def test_missing_delta(self) -> None:
        stream = ROLE + event(
            {"id": "c", "choices": [{"index": 0, "finish_reason": "stop", "x": 1}]}
        )
        answer = read(transcode(stream + DONE))
        self.assertEqual(answer.said.finish_reason, "stop")
        self.assertEqual(answer.chunks[-1]["choices"][0]["x"], 1)

    def test_missing_choices(self) -> None:
        for odd in ({"usage": USAGE}, {"usage": USAGE, "choices": None}):
            answer = read(transcode(ROLE + STOP + event(odd) + DONE))
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
                transcode(empty + ROLE + empty + STOP + empty + DONE), ROLE + STOP + DONE
            )

    def test_foreign_events_are_dropped(self) -> None:
        through = transcoder()
        foreign = b'event: ping\ndata: {"type":"ping"}\n\nevent: x\ndata: pong\n\n'
        self.assertEqual(through.receive_data(foreign + ROLE), ROLE)
        self.assertEqual(through.report.tally["foreign_event"], 2)

    def test_a_role_in_a_choice_without_an_index(self) -> None:
        first = event({"id": "c", "choices": [{"delta": {"role": "assistant", "content": "a"}}]})
        (choice, *_) = [
            c for value in events(transcode(first + STOP + DONE)) for c in value["choices"]
        ]
        self.assertEqual(choice["index"], 0)
        self.assertEqual(choice["delta"], {"role": "assistant", "content": "a"})

    def test_named_message(self) -> None:
        stream = b"event: message\nid: 5\n" + text(CALL)
        self.assertEqual(read(transcode(ROLE + stream + STOP + DONE)).said.pairs(), [SEARCH])

    def test_each_event_is_one_line_of_data(self) -> None:
        """However the backend framed it: many clients look for `data: ` line by line."""
        plain = text("a")
        for odd in (
            b"event: message\n" + plain,
            b"id: 5\nretry: 3\n" + plain,
            plain.replace(b"data: ", b"data:"),
            plain.replace(b"\n\n", b"\n}\nx: y\n\n"),
            plain.replace(b"data: {", b"data: {\ndata: "),
            plain.replace(b"\n", b"\r\n"),
        ):
            with self.subTest(odd):
                self.assertEqual(transcode(ROLE + odd + STOP + DONE), ROLE + plain + STOP + DONE)

    def test_whole_answer_in_the_stream(self) -> None:
        message = {"role": "assistant", "content": CALL}
        chunk = event(
            {"id": "c", "choices": [{"message": message, "delta": None, "finish_reason": "stop"}]}
        )
        self.assertEqual(read(transcode(chunk + DONE)).said.pairs(), [SEARCH])

    def test_several_data_lines(self) -> None:
        pretty = json.dumps(json.loads(text(CALL)[6:]), indent=1).replace("\n", "\ndata: ")
        out = transcode(ROLE + b"data: " + pretty.encode() + b"\n\n" + STOP + DONE)
        self.assertEqual(read(out).said.pairs(), [SEARCH])

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
        self.assertEqual(transcode(stream + STOP + DONE), stream + STOP + DONE)

    def test_missing_index(self) -> None:
        cases: list[dict[str, Any]] = [{}, {"index": None}, {"index": "0"}]
        for odd in cases:
            chunk = event({"id": "c", "choices": [{**odd, "delta": {"content": "a"}, "k": 1}]})
            answer = read(transcode(ROLE + chunk + STOP + DONE))
            self.assertEqual((answer.said.content, answer.chunks[1]["choices"][0]["k"]), ("a", 1))

    def test_content_of_another_type_is_not_lost(self) -> None:
        parts = [{"type": "text", "text": "a"}]
        (first, *_) = deltas(transcode(delta(content=parts) + STOP + DONE))
        self.assertEqual(first, {"role": "assistant", "content": parts})

    def test_no_strict_json(self) -> None:
        """The client's reader is strict, whatever the backend's writer was."""
        choice = b'{"index":0,"delta":{"content":"a\\ud83d"},"logprobs":NaN}'
        chunk = b'{"id":"c","choices":[%s],"n":1e400,"k":"\n\xff"}' % choice
        stream = ROLE + b"data: " + chunk + b"\n\n" + text("\ude42") + text(CALL) + STOP + DONE
        out = transcode(stream)
        for line in out.decode().split("\n\n")[:-2]:
            strict_json(line[6:])
        self.assertEqual(read(out).said.content, "a🙂")
        self.assertEqual(read(out).said.pairs(), [SEARCH])

    def test_bytes_that_are_no_text(self) -> None:
        for place in (b'"delta":{"content":"a%s"}', b'"delta":{"content":"a"},"x":"%s"'):
            chunk = b'{"id":"c","choices":[{"index":0,%s}]}' % (place % b"\xe2\x82")
            out = transcode(ROLE + b"data: " + chunk + b"\n\n" + STOP + DONE)
            self.assertEqual(read(out).said.content.rstrip("\ufffd"), "a")
            self.assertIn("\ufffd", out.decode())

    def test_half_a_pair_then_something_else(self) -> None:
        out = transcode(ROLE + text("a\ud83d") + text("b") + text("\ud83d") + STOP + DONE)
        self.assertEqual(read(out).said.content, "a\ufffdb\ufffd")

    def test_half_a_pair_and_nothing_else(self) -> None:
        """However the answer ends, and in each choice of it."""
        stop = delta(_finish="stop", content=None)
        for end in (STOP + DONE, stop + DONE, DONE, STOP, event({"error": {"message": "x"}}), b""):
            out = transcode(ROLE + text("a") + text("b\ud83d") + end)
            self.assertEqual(read(out).said.content, "ab\ufffd", end)
        said = read(transcode(ROLE + delta(_finish="length", content="a\ud83d") + DONE)).said
        self.assertEqual((said.content, said.finish_reason), ("a\ufffd", "length"))
        one = ROLE + text("\ud83d") + text("\ud83d", 1) + delta(1, "stop") + text("\ude00")
        choices = read(transcode(one + STOP + DONE)).choices
        self.assertEqual([choices[0].content, choices[1].content], ["\U0001f600", "\ufffd"])

    def test_half_a_pair_within_a_call(self) -> None:
        """It is cut off, like the call."""
        half = {**STRUCTURED, "function": {"name": "f", "arguments": '{"a": "\ud83d'}}
        out = transcode(ROLE + delta(tool_calls=[half]) + LENGTH + DONE)
        self.assertEqual(read(out).said.finish_reason, "length")
        self.assertNotIn("\ufffd", out.decode())

    def test_half_a_pair_of_a_choice_whose_index_is_none(self) -> None:
        odd = {"choices": [{"index": 1.5, "delta": {"content": "a\ud83d"}}]}
        self.assertEqual(read(transcode(event(odd) + DONE)).said.content, "a\ufffd")


class HeartbeatTests(SynchronousTestCase):
    """Signs of life, at any moment."""

    def test_comment(self) -> None:
        through = transcoder()
        beat = through.heartbeat()
        self.assertEqual(beat, b": heartbeat\n\n")
        out = beat + through.receive_data(ROLE + text("<tool_")[:-1]) + through.heartbeat()
        out += (
            through.receive_data(b"\n" + text("x") + STOP)
            + through.heartbeat()
            + through.end(cut=False)
        )
        self.assertEqual(read(out).said.content, "<tool_x")

    def test_chunks_at_every_moment(self) -> None:
        moments = [ROLE, text("a"), text(CALL[:40]), text(CALL[40:]), STOP, event({"choices": []})]
        through = transcoder(chat("search", model="m"), heartbeat_style="chunk")
        out = through.heartbeat()
        for moment in moments:
            out += through.receive_data(moment) + through.heartbeat()
        out += through.receive_data(DONE)
        answer = read_strictly(out, bare=True)
        self.assertEqual((answer.said.content, answer.said.pairs()), ("a", [SEARCH]))
        self.assertEqual(through.heartbeat(), b"")

    def test_first_has_the_role_and_an_id(self) -> None:
        through = transcoder(chat(model="m"), heartbeat_style="chunk")
        first, second = events(through.heartbeat() + through.heartbeat())
        self.assertTrue(first["id"].startswith("chatcmpl-"))
        self.assertEqual((first["model"], second["id"]), ("m", first["id"]))
        self.assertEqual(first["choices"][0]["delta"], {"role": "assistant"})
        self.assertEqual(second["choices"][0]["delta"], {})

    def test_role_is_not_added_twice(self) -> None:
        through = transcoder(heartbeat_style="chunk")
        through.heartbeat()
        self.assertEqual(through.receive_data(text("a")), text("a"))

    def test_the_backends_role_is_not_told_again(self) -> None:
        through = transcoder(heartbeat_style="chunk")
        out = through.heartbeat()
        for moment in (ROLE, delta(role="assistant", content="a"), ROLE, STOP, DONE):
            out += through.receive_data(moment)
        self.assertEqual(out.count(b'"role"'), 1)
        self.assertEqual(read(out).said.content, "a")

    def test_nor_where_it_stands_in_each_delta(self) -> None:
        one = delta(role="assistant", content="a")
        for piece in (1, len(one), 5 * len(one)):
            through = transcoder()
            stream = one * 20 + STOP + DONE
            out = b"".join(
                through.receive_data(stream[at : at + piece]) for at in range(0, len(stream), piece)
            )
            self.assertEqual((out.count(b'"role"'), read(out).said.content), (1, "a" * 20))

    def test_later_ones_look_like_the_others(self) -> None:
        through = transcoder(heartbeat_style="chunk")
        through.receive_data(ROLE)
        self.assertEqual(json.loads(through.heartbeat()[6:])["id"], "c")

    def test_nothing_came_but_heartbeats(self) -> None:
        through = transcoder(heartbeat_style="chunk")
        answer = read(through.heartbeat() + through.end(cut=False))
        self.assertIsNotNone(answer.error)
        through = transcoder(heartbeat_style="chunk")
        self.assertEqual(
            read(through.heartbeat() + through.receive_data(DONE)).said.finish_reason, "stop"
        )

    def test_completion(self) -> None:
        through = transcoder(completion(), heartbeat_style="chunk")
        out = through.heartbeat() + through.receive_data(DONE)
        self.assertEqual(read_strictly(out).said.text, "")


class CompletionTests(SynchronousTestCase):
    """/v1/completions: no calls, but the same ends."""

    def part(self, text: str, finish: str | None = None, index: int = 0) -> bytes:
        return event(
            {"id": "c", "choices": [{"index": index, "text": text, "finish_reason": finish}]}
        )

    def test_passes(self) -> None:
        stream = (
            self.part(CALL) + self.part("", "stop") + event({"choices": [], "usage": USAGE}) + DONE
        )
        self.assertEqual(transcode(stream, completion()), stream)

    def test_completed(self) -> None:
        stream = self.part("a") + self.part("b", index=1) + self.part("", "length", index=1)
        answer = read(transcode(stream + DONE, completion()))
        self.assertEqual([s.finish_reason for s in answer.choices.values()], ["stop", "length"])
        stream = self.part("a", "stop")
        self.assertEqual(transcode(stream, completion()), stream + DONE)

    def test_cut(self) -> None:
        answer = read(transcode(self.part("a"), completion()))
        self.assertEqual(answer.said.text, "a")
        self.assertIsNotNone(answer.error)

    def test_nothing_behind_the_end(self) -> None:
        stream = self.part("a", "stop")
        self.assertEqual(transcode(stream + self.part("b") + DONE, completion()), stream + DONE)

    def test_surrogates(self) -> None:
        answer = read(transcode(self.part("\ud83d") + self.part("\ude42", "stop"), completion()))
        self.assertEqual(answer.said.text, "🙂")

    def test_whole(self) -> None:
        body = b'{"choices":[{"index":0,"text":"a","finish_reason":"stop"}],"object":"x"}'
        out, report = whole(body, completion(), Rules())
        self.assertEqual((out, report.finish_reasons), (body, {0: "stop"}))

    def test_whole_without_finish_reason(self) -> None:
        body = b'{"choices":[{"index":0,"text":"a"}]}'
        out, report = whole(body, completion(), Rules())
        self.assertEqual((out, report.finish_reasons), (body, {}))

    def test_whole_as_stream(self) -> None:
        choice = b'{"index":0,"text":"a","finish_reason":"stop"}'
        body = b'{\n"id":"c","choices":[%s],"usage":{"x":1}}' % choice
        out, _ = whole_as_stream(body, completion(), Rules())
        answer = read(out)
        self.assertEqual((answer.said.text, answer.usage), ("a", [{"x": 1}]))


class PassThroughTests(SynchronousTestCase):
    """Streams of other protocols."""

    def test_bytes_are_untouched(self) -> None:
        through = PassThrough()
        for data in (b": c\r\n", b"event: x\rdata: {}\n\n", b"\xff", b"data: [DONE]\n\n"):
            self.assertEqual(through.receive_data(data), data)
        self.assertFalse(through.ended)
        self.assertEqual(through.end(cut=False), b"")
        self.assertTrue(through.ended)
        self.assertEqual(through.receive_data(b"late"), b"")
        self.assertEqual(through.heartbeat(), b"")
        self.assertEqual(through.fail(ApiError(500, "x")), b"")

    def test_heartbeat_between_events_only(self) -> None:
        through = PassThrough()
        beat = b": heartbeat\n\n"
        self.assertEqual(through.heartbeat(), beat)
        for data, expected in {
            b"data: 1": b"",
            b"\n": b"",
            b"\r": b"",
            b"data: 1\n\n": beat,
            b"data: 1\r\n": b"",
            b"\r\n": beat,
            b"data: 1\r\r": beat,
            b"data: 1\r\n\r": b"",
        }.items():
            through.receive_data(data)
            self.assertEqual(through.heartbeat(), expected, data)

    def test_error(self) -> None:
        for data, between in ((b"data: 1\n\n", b""), (b"data: 1", b"\n\n"), (b"", b"")):
            through = PassThrough()
            through.receive_data(data)
            out = through.fail(ApiError(504, "slow", type="t", code="c"))
            self.assertTrue(out.startswith(between + b"event: error\ndata: {"))
            value = json.loads(out.split(b"data: ")[1])
            self.assertEqual(value["type"], "error")
            self.assertEqual(value["error"]["message"], "slow")
            self.assertEqual((through.report.error, through.ended), ("slow", True))

    def test_cut(self) -> None:
        through = PassThrough()
        self.assertIn(b"event: error", through.end(cut=True))
        self.assertEqual(through.end(cut=True), b"")


class WholeTests(SynchronousTestCase):
    """Answers that are no streams."""

    def answer(self, *choices: Any, **fields: Any) -> bytes:
        made = [{"index": i, "finish_reason": "stop", **choice} for i, choice in enumerate(choices)]
        return json.dumps(
            {"id": "i", "object": "chat.completion", "choices": made, **fields}
        ).encode()

    def message(self, **fields: Any) -> dict[str, Any]:
        return {"message": {"role": "assistant", **fields}}

    def whole(self, body: bytes, asked: Any = None, **rules: Any) -> Any:
        out, self.report = whole(
            body, asked or chat("search"), Rules(**rules), new_id=counted_ids()
        )
        return json.loads(out)["choices"]

    def test_unchanged(self) -> None:
        for body in (
            self.answer(self.message(content="a\nb")),
            self.answer(self.message(content=None, tool_calls=[STRUCTURED])),
            self.answer(self.message(content="")),
            b'{\n "choices" : [ {"message":{"role":"x","content":"a"},"finish_reason":"stop"} ]}',
        ):
            self.assertEqual(whole(body, chat("search"), Rules())[0], body)

    def test_call(self) -> None:
        body = self.answer(self.message(content="a " + CALL, refusal=None), usage=USAGE)
        (choice,) = self.whole(body)
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
        self.assertEqual((self.report.usage, self.report.names), (USAGE, ["search"]))

    def test_only_calls(self) -> None:
        (choice,) = self.whole(self.answer(self.message(content=CALL)))
        self.assertIsNone(choice["message"]["content"])

    def test_everything_else_is_kept(self) -> None:
        body = (
            b'{"choices":[{"message":{"content":%s,"reasoning_content":"r","k":1.50},"logprobs":{"x":0.10},'
            b'"finish_reason":"stop"}],"n":1.0}'
        ) % json.dumps(CALL).encode()
        out, _ = whole(body, chat("search"), Rules())
        for kept in (b'"reasoning_content":"r"', b'"k":1.50', b'"logprobs":{"x":0.10}', b'"n":1.0'):
            self.assertIn(kept, out)
        self.assertEqual(json.loads(out)["choices"][0]["message"]["role"], "assistant")

    def test_several_choices(self) -> None:
        body = self.answer(
            self.message(content=CALL), self.message(content="b"), self.message(content=CALL)
        )
        a, b, c = self.whole(body)
        self.assertEqual(b["message"]["content"], "b")
        self.assertNotEqual(*(choice["message"]["tool_calls"][0]["id"] for choice in (a, c)))

    def test_reasoning_split(self) -> None:
        text = "<think>b</think>c"
        cases: list[tuple[dict[str, Any], str]] = [
            ({}, "b"),
            ({"reasoning_content": "a"}, "ab"),
            ({"reasoning_content": None}, "b"),
            ({"reasoning_content": ["odd"]}, "b"),
        ]
        for own, joined in cases:
            (choice,) = self.whole(
                self.answer(self.message(content=text, **own)), reasoning="split"
            )
            self.assertEqual(choice["message"]["reasoning_content"], joined)
            self.assertEqual(choice["message"]["content"], "c")

    def test_structured_behind_ours(self) -> None:
        call = {key: value for key, value in STRUCTURED.items() if key != "index"}
        (choice,) = self.whole(self.answer(self.message(content=CALL, tool_calls=[call])))
        names = [call["function"]["name"] for call in choice["message"]["tool_calls"]]
        self.assertEqual(names, ["search", "get_weather"])
        for own in (None, [], 5, [5]):
            (choice,) = self.whole(self.answer(self.message(content=CALL, tool_calls=own)))
            self.assertEqual(len(choice["message"]["tool_calls"]), 1)

    def test_missing_finish_reason(self) -> None:
        cases = ((None, "stop"), ("a", "stop"), (CALL, "tool_calls"), (CALL[:-20], "length"))
        for content, reason in cases:
            (choice,) = self.whole(
                self.answer({**self.message(content=content), "finish_reason": None})
            )
            self.assertEqual(choice["finish_reason"], reason)

    def test_length(self) -> None:
        (choice,) = self.whole(
            self.answer({**self.message(content=CALL[:-20]), "finish_reason": "length"})
        )
        self.assertEqual(choice["finish_reason"], "length")

    def test_no_strict_json(self) -> None:
        body = b'{"choices":[{"message":{"content":"a\\ud83d","x":NaN},"finish_reason":"stop"}]}'
        (choice,) = self.whole(body)
        self.assertEqual(choice["message"], {"role": "assistant", "content": "a\ufffd", "x": None})

    def test_no_answer(self) -> None:
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
            for make in (whole, whole_as_stream):
                error = self.assertRaises(ApiError, make, body, chat("search"), Rules())
                self.assertEqual(error.status, 502)
                self.assertTrue(error.message)

    def test_error_with_a_good_status(self) -> None:
        error = self.assertRaises(ApiError, whole, b'{"error":{"message":"no"}}', chat(), Rules())
        self.assertEqual((error.message, error.code), ("no", "backend_error"))


class WholeAsStreamTests(WholeTests):
    """A whole answer for a client that asked for a stream."""

    def stream(self, body: bytes, asked: Any = None, **rules: Any) -> Answer:
        out, self.report = whole_as_stream(body, asked or chat("search"), Rules(**rules))
        return read(out)

    def test_text(self) -> None:
        answer = self.stream(self.answer(self.message(content="a\nb"), usage=USAGE, k=1))
        self.assertEqual((answer.said.content, answer.said.finish_reason), ("a\nb", "stop"))
        self.assertEqual((answer.usage, self.report.usage), ([USAGE], USAGE))
        self.assertEqual(answer.chunks[-1]["k"], 1)
        self.assertEqual({chunk["object"] for chunk in answer.chunks}, {"chat.completion.chunk"})

    def test_usage_on_request(self) -> None:
        """Who asked for usage gets it in a chunk of its own, as OpenAI sends it."""
        asked = chat("search", stream_options={"include_usage": True})
        answer = self.stream(self.answer(self.message(content=CALL), usage=USAGE), asked)
        self.assertEqual(answer.chunks[-1]["choices"], [])
        self.assertEqual(answer.usage, [USAGE])

    def test_calls(self) -> None:
        call = {key: value for key, value in STRUCTURED.items() if key != "index"}
        body = self.answer(
            self.message(content="a " + CALL, tool_calls=[call], reasoning_content="r")
        )
        said = self.stream(body).said
        self.assertEqual((said.content, said.reasoning), ("a", "r"))
        self.assertEqual(said.pairs(), [SEARCH, ("get_weather", {})])

    def test_thoughts_stand_in_front(self) -> None:
        """Also of thoughts that stood in the text, and of calls; the role in front of all."""
        said = {"reasoning_content": "a", "content": f"<think>b</think>c{CALL}"}
        body = self.answer(self.message(**said, tool_calls=[STRUCTURED]))
        out, _ = whole_as_stream(body, chat("search"), Rules(reasoning="split"))
        deltas = [made["choices"][0]["delta"] for made in events(out)]
        self.assertEqual(deltas[0], {"role": "assistant", "reasoning_content": "a"})
        self.assertEqual(deltas[1:3], [{"reasoning_content": "b"}, {"content": "c"}])
        self.assertTrue(all(delta.keys() <= {"tool_calls"} for delta in deltas[3:]))
        self.assertEqual(deltas[-1]["tool_calls"][0]["function"]["name"], "get_weather")

    def test_several_choices_of_a_stream(self) -> None:
        body = self.answer(self.message(content=CALL), self.message(content="b"))
        answer = self.stream(body)
        self.assertEqual((answer.choices[0].pairs(), answer.choices[1].content), ([SEARCH], "b"))

    def test_line_ends_between_the_fields(self) -> None:
        body = json.dumps(json.loads(self.answer(self.message(content="a\r\nb"))), indent=2)
        self.assertEqual(self.stream(body.encode()).said.content, "a\r\nb")
        self.assertEqual(self.stream(body.replace("\n", "\r\n").encode()).said.content, "a\r\nb")

    def test_missing_finish_reason_of_a_stream(self) -> None:
        body = self.answer({**self.message(content="a"), "finish_reason": None})
        self.assertEqual(self.stream(body).said.finish_reason, "stop")

    def test_long(self) -> None:
        content = "x" * 10_000_000
        self.assertEqual(
            self.stream(self.answer(self.message(content=content))).said.content, content
        )


PIECES = st.sampled_from(
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
    """Whatever comes, however it is cut."""

    @given(
        st.lists(PIECES, max_size=20), st.lists(st.integers(0, 2000), max_size=10), st.booleans()
    )
    def test_any_cut_is_the_whole(self, pieces: list[bytes], cuts: list[int], cut: bool) -> None:  # noqa: FBT001
        stream = b"".join(pieces)
        edges = [0, *sorted(min(at, len(stream)) for at in cuts), len(stream)]
        at_once, packets = transcoder(), transcoder()
        expected = at_once.receive_data(stream) + at_once.end(cut=cut)
        out = b"".join(packets.receive_data(stream[a:b]) for a, b in itertools.pairwise(edges))
        self.assertEqual(normal(out + packets.end(cut=cut)), normal(expected))
        self.assertTrue(packets.ended)

    @given(st.lists(PIECES, max_size=20), st.booleans())
    def test_any_stream_is_fit_for_a_strict_reader(self, pieces: list[bytes], chunks: bool) -> None:  # noqa: FBT001
        through = transcoder(heartbeat_style="chunk" if chunks else "comment")
        out = b"".join(through.heartbeat() + through.receive_data(piece) for piece in pieces)
        out += through.end(cut=False)
        if b"call_b" in out:
            return  # the backend's own calls pass untouched, however odd
        read(out)

    @given(st.lists(st.binary(max_size=60), max_size=6))
    def test_any_bytes(self, packets: list[bytes]) -> None:
        through = transcoder()
        out = b"".join(map(through.receive_data, packets)) + through.end(cut=True)
        read(out)

    @given(st.binary(max_size=60), st.sampled_from([b'"content":"%s"', b'"x":"%s"', b'"%s":1']))
    def test_any_string(self, data: bytes, place: bytes) -> None:
        # Calls of another type pass as untouched as any field of another type does.
        assume(data != b"tool_calls")
        chunk = b'{"choices":[{"index":0,"delta":{%s}}]}' % (place % data)
        read(transcode(ROLE + b"data: " + chunk + b"\n\n" + STOP + DONE))

    @given(st.binary(max_size=60))
    def test_any_data(self, data: bytes) -> None:
        through = transcoder()
        read(through.receive_data(ROLE + b"data: " + data + b"\n\n") + through.end(cut=True))


def normal(stream: bytes) -> bytes:
    """Return a stream without the ids that are made for an answer of which no chunk has come."""
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
SAYINGS = fields(
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
                delta=SAYINGS,
                message=SAYINGS,
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
    """Chunks with anything in any place: nothing is raised, and the end is an end."""

    @given(st.lists(CHUNKS, max_size=5), st.sampled_from([chat("search"), chat(), completion()]))
    def test_streams(self, chunks: list[Any], asked: Any) -> None:
        through = transcoder(asked, Rules(reasoning="split"))
        out = through.receive_data(b"".join(map(event, chunks))) + through.end(cut=False)
        self.assertTrue(through.ended)
        for made in out.decode().split("\n\n")[:-2]:
            strict_json(made[6:])

    @given(CHUNKS, st.sampled_from([chat("search"), chat(), completion()]))
    def test_whole(self, chunk: Any, asked: Any) -> None:
        for make in (whole, whole_as_stream):
            try:
                make(json.dumps(chunk).encode(), asked, Rules(reasoning="split"))
            except ApiError as error:
                self.assertEqual(error.status, 502)
