"""
The benchmark of blockops as a whole: its figures, and that it detects wrong streams.

The mock backend runs in a thread and the load generator in this one, over loopback. The measured
times are not checked.
"""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import coroutine
from typing import Any
from unittest import skipUnless

from twisted.trial.unittest import SynchronousTestCase

from benchmarks import captures, figures, proxy, walk
from benchmarks.bounds import Bound, bounds
from benchmarks.figures import Range, Rounds
from benchmarks.load import (
    ChunkedDecoder,
    LoadError,
    LoadGenerator,
    LoadPlan,
    Outcome,
    Response,
    timed_events,
)
from benchmarks.mock_backend import MockBackend, SendTimes
from benchmarks.recorded import SERVERS, read_streams
from benchmarks.scenarios import BATCHED, BY_SHAPE, REPLAY, select_scenarios
from benchmarks.shapes import SHAPES, shape_events
from benchmarks.streams import (
    DIALECTS,
    FAST,
    FAULTS,
    IDLE,
    NON_STREAMING,
    PLAIN,
    Script,
    StreamResult,
    completion_body,
    find_body_error,
    find_stream_error,
    frames,
    model_text,
    request_body,
    text_ends,
)
from benchmarks.texts import ARGUMENTS, CHINESE, PROSE, TEXTS, THINK, token_text
from benchmarks.translators import NO_TOOLS, TOOLS, find_error, translator_factory
from benchmarks.usage import Usage, cpu_usage, memory_usage, process_tree
from blockops.settings.table import TABLE
from blockops.toolcalls.deltas import CallArguments, CallStarted, TextDelta
from blockops.toolcalls.parser import ToolCallParser
from blockops.toolcalls.tools import OfferedTools

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
PROGRAMS = ("proxy.py", "captures.py", "walk.py")


def untranslated(script: Script) -> StreamResult:
    """Return the stream of `script` as a client reads it directly from the backend."""
    result = StreamResult()
    for frame in frames(script, usage=True):
        event = frame.removesuffix(b"0\r\n\r\n").partition(b"\r\n")[2].strip()
        result.add_event(event)
    return result


class ScriptTests(SynchronousTestCase):
    def test_a_request_contains_its_script(self):
        script = Script("xml", 11, 30, 100, 7, "lost", "vllm", 0, 1)
        for size in (0, 20_000, 400_000):
            self.assertEqual(Script.find(request_body(script, size)), script)

    def test_a_request_without_a_script(self):
        self.assertIsNone(Script.find(b'{"model": "bench"}'))

    def test_a_tool_is_offered_unless_the_script_has_none(self):
        for script, names in (
            (Script(PROSE, shape="vllm"), ["write_file"]),
            (Script(ARGUMENTS, shape="vllm"), ["add_events"]),
            (Script(PROSE, shape="vllm", tools=0), []),
        ):
            tools = json.loads(request_body(script)).get("tools", [])
            self.assertEqual([tool["function"]["name"] for tool in tools], names)

    def test_requests_have_their_size(self):
        for size in (20_000, 400_000):
            self.assertTrue(0.9 < len(request_body(Script(NON_STREAMING), size)) / size < 1.1)

    def test_requests_of_a_session_begin_with_the_same_messages(self):
        one, other = (request_body(Script(NON_STREAMING, slot=slot), 20_000) for slot in (1, 2))
        common = next(n for n, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
        self.assertGreater(common / len(one), 0.95)

    def test_texts_have_their_length(self):
        for kind in (PLAIN, *DIALECTS):
            for length in (800, 4_000, 40_000):
                actual = len(model_text(kind, length).text)
                self.assertTrue(0.8 < actual / length < 1.2, f"{kind}, {length}: {actual}")

    def test_every_line_is_unique(self):
        text = model_text(PLAIN, 30_000).text
        lines = text.split(".")
        self.assertEqual(len(set(lines)), len(lines))

    def test_blockops_reads_the_expected_calls(self):
        """The text of each dialect translates to `ModelText.calls`."""
        for kind in DIALECTS:
            expected = model_text(kind, 5_000)
            parser = ToolCallParser(OfferedTools({"write_file": {}}))
            deltas = [*parser.feed(expected.text), *parser.finish("stop")]
            names = [each.name for each in deltas if isinstance(each, CallStarted)]
            text = "".join(each.text for each in deltas if isinstance(each, TextDelta))
            self.assertEqual(names, ["write_file"] * len(expected.calls))
            self.assertEqual(text, expected.content)
            self.assertGreater(len([e for e in deltas if isinstance(e, CallArguments)]), 0)


class TextTests(SynchronousTestCase):
    """Texts in tokens."""

    def test_texts_have_their_length(self):
        for kind in TEXTS:
            for length in (150, 1_000):
                actual = len(token_text(kind, length).tokens)
                self.assertTrue(0.8 < actual / length < 1.2, f"{kind}, {length}: {actual}")

    def test_a_missing_or_repeated_token_changes_the_text(self):
        for kind in TEXTS:
            tokens = token_text(kind, 400).tokens
            self.assertNotIn("", tokens)
            for at in (1, 150, 300):
                self.assertNotEqual(tokens[:at] + tokens[at + 1 :], tokens)
                self.assertNotEqual("".join(tokens[:100]), "".join(tokens[200:300]))

    def test_chinese_tokens_are_short(self):
        self.assertLess(max(map(len, token_text(CHINESE, 300).tokens)), 4)

    def test_blockops_reads_the_expected_calls(self):
        for kind in TEXTS:
            expected = Script(kind, frames=400, shape="vllm").text()
            parser = ToolCallParser(OfferedTools({"write_file": {}, "add_events": {}}))
            deltas = [delta for token in expected.deltas for delta in parser.feed(token)]
            deltas += parser.finish("stop")
            names = [each.name for each in deltas if isinstance(each, CallStarted)]
            text = "".join(each.text for each in deltas if isinstance(each, TextDelta))
            self.assertEqual(names, [name for name, _ in expected.calls], kind)
            self.assertEqual(text, expected.content)


class ShapeTests(SynchronousTestCase):
    """Streams with the envelopes of real servers."""

    def test_a_recorded_stream_is_reproduced(self):
        """With the tokens of its own, the events are those of the capture, byte for byte."""
        streams = {stream.name: stream for stream in read_streams()}
        for name, shape in SHAPES.items():
            if shape.change is None and not shape.has_reasoning:
                events = streams[shape.capture].events
                chunks = [json.loads(event[6:]) for event in events[:-1]]
                deltas = [each["choices"][0]["delta"] for each in chunks if each["choices"]]
                tokens = [delta["content"] for delta in deltas if delta.get("content")]
                replayed = shape_events(shape, tokens, usage=True)
                data = [event for event in replayed if event.startswith(b"data:")]
                # Some servers' chunks have the time.
                actual, expected = (
                    re.sub(rb'"created": ?\d+', b"", b"".join(each)) for each in (data, events)
                )
                self.assertEqual(actual, expected, name)

    def test_untranslated_streams_are_correct(self):
        for shape in SHAPES:
            for kind in TEXTS:
                script = Script(kind, frames=150, shape=shape)
                error = find_stream_error(script, untranslated(script), is_translated=False)
                self.assertIsNone(error, f"{shape}, {kind}: {error}")

    def test_every_fault_is_found(self):
        for fault in FAULTS:
            for shape in SHAPES:
                script = Script(PROSE, frames=150, fault=fault, shape=shape)
                error = find_stream_error(script, untranslated(script), is_translated=False)
                if fault != "wrong_name":  # there is no call
                    self.assertIsNotNone(error, f"{fault}, {shape}")

    def events(self, shape: str) -> list[dict[str, Any]]:
        tokens = token_text(PROSE, 120).tokens
        events = shape_events(SHAPES[shape], tokens, usage=True)
        return [json.loads(event[6:]) for event in events if event.startswith(b"data: {")]

    def test_changing_fields(self):
        usage = [event["usage"]["completion_tokens"] for event in self.events("usage")]
        self.assertEqual(usage[:122], list(range(122)))
        timings = [event["timings"]["predicted_n"] for event in self.events("timings")[1:]]
        self.assertEqual(timings[:121], list(range(1, 122)))
        ids = [event["id"] for event in self.events("ids")]
        self.assertEqual(len(set(ids)), len(ids))
        for shape in ("ids", "transformers"):
            created = [event["created"] for event in self.events(shape)]
            self.assertEqual(created[110] - created[90], 1)

    def test_usage_is_left_out(self):
        tokens = token_text(PROSE, 9).tokens
        for name, shape in SHAPES.items():
            chunks = b"".join(shape_events(shape, tokens, usage=False))
            self.assertIsNone(re.search(rb'"choices": ?\[\]', chunks), name)

    def test_the_end_of_each_frames_text(self):
        self.assertEqual(text_ends(PLAIN, 4, 3, "own"), [0, 4, 8, 12])
        self.assertEqual(text_ends(PLAIN, 5, 3, "own"), [0, 4, 10, 15])  # " the ", "big r", "ed fo"
        ends = text_ends(PROSE, 4, 5, "mlx")  # two comments, no chunk with the role
        self.assertEqual(ends, [0, 0, 3, 9, 12, 16, 23])
        ends = text_ends(PROSE, 4, 5, "vllm-reasoning")
        self.assertEqual(ends, [0, 3, 9, 12, 16, 23])
        ends = text_ends(PROSE, 4, 8, "vllm")  # "The ferry to the island leaves at", and a space
        self.assertEqual(ends[-3:], [30, 33, 33])

    def test_reasoning_is_checked(self):
        script = Script(PROSE, frames=150, shape="vllm-reasoning")
        result = untranslated(script)
        self.assertTrue(result.reasoning and result.content)
        result.content, result.reasoning = result.reasoning + result.content, ""
        self.assertIsNotNone(find_stream_error(script, result, is_translated=True))


class StreamErrorTests(SynchronousTestCase):
    """The received stream is compared with the text of the script."""

    def test_a_correct_stream(self):
        for kind in (PLAIN, *DIALECTS):
            for delta_size in (1, 4, 11):
                script = Script(kind, delta_size, 300)
                self.assertIsNone(
                    find_stream_error(script, untranslated(script), is_translated=False)
                )

    def test_every_fault_is_found(self):
        for fault in FAULTS:
            for kind in DIALECTS:
                script = Script(kind, 4, 300, fault=fault)
                error = find_stream_error(script, untranslated(script), is_translated=False)
                self.assertIsNotNone(error, f"{fault}, {kind}")

    def test_calls_that_were_not_translated(self):
        script = Script("hermes", 4, 300)
        self.assertIsNotNone(find_stream_error(script, untranslated(script), is_translated=True))

    def translated(self, script: Script) -> StreamResult:
        """Return the stream of `script` as a correct translation has it."""
        expected = model_text(script.kind, script.delta_size * script.frames)
        result = StreamResult(content=expected.content, finish_reasons=["tool_calls"], is_done=True)
        for index, (name, arguments) in enumerate(expected.calls):
            result.names[index] = name
            result.arguments[index] = json.dumps(arguments)
        return result

    def test_translated_calls(self):
        for kind in DIALECTS:
            script = Script(kind, 4, 2_000)
            self.assertIsNone(
                find_stream_error(script, self.translated(script), is_translated=True)
            )

    def test_wrong_calls(self):
        script = Script("line", 4, 2_000)
        for change in ("name", "argument", "json", "order", "missing"):
            result = self.translated(script)
            if change == "name":
                result.names[1] = "wrote_file"
            elif change == "argument":
                result.arguments[1] = result.arguments[1].replace("limit", "limits", 1)
            elif change == "json":
                result.arguments[1] = result.arguments[1][:-1]
            elif change == "order":
                result.arguments[0], result.arguments[1] = result.arguments[1], result.arguments[0]
            else:
                del result.names[1]
            self.assertIsNotNone(find_stream_error(script, result, is_translated=True), change)

    def test_an_event_after_the_end(self):
        script = Script(PLAIN)
        result = untranslated(script)
        result.add_event(b'data: {"choices": []}')
        self.assertEqual(
            find_stream_error(script, result, is_translated=False), "an event after [DONE]"
        )

    def test_an_error_event(self):
        result = StreamResult()
        result.add_event(b'data: {"error": {"message": "broken"}}')
        self.assertIn("broken", find_stream_error(Script(PLAIN), result, is_translated=False) or "")

    def test_heartbeats_are_ignored(self):
        script = Script(PLAIN)
        result = StreamResult()
        result.add_event(b": heartbeat")
        self.assertEqual(result, StreamResult())
        self.assertIsNone(find_stream_error(script, untranslated(script), is_translated=False))

    def test_non_streaming_responses(self):
        script = Script(NON_STREAMING, 4, 15)
        body = completion_body(4, 15)
        self.assertIsNone(find_body_error(script, body))
        self.assertIsNotNone(find_body_error(script, body.replace(b"fox", b"cat")))
        self.assertIsNotNone(find_body_error(script, body[:-1]))
        self.assertIsNotNone(find_body_error(script, b'{"choices": []}'))


class FramingTests(SynchronousTestCase):
    BODY = b"5\r\nhello\r\n1;x=y\r\n \r\nb\r\nworld, yes!\r\n0\r\n\r\n"

    def test_chunks_split_anywhere(self):
        for position in range(len(self.BODY) + 1):
            decoder = ChunkedDecoder()
            decoded = decoder.feed(self.BODY[:position]) + decoder.feed(self.BODY[position:])
            self.assertEqual(decoded, b"hello world, yes!")

    def test_byte_by_byte(self):
        decoder = ChunkedDecoder()
        decoded = b"".join(decoder.feed(self.BODY[n : n + 1]) for n in range(len(self.BODY)))
        self.assertEqual(decoded, b"hello world, yes!")

    def test_an_invalid_chunk_size(self):
        self.assertRaises(LoadError, ChunkedDecoder().feed, b"data: x\r\n")

    def response(self, *reads: bytes) -> Response:
        """Return a response whose reads are one second apart."""
        response = Response(Script(PLAIN), 0.0)
        for second, data in enumerate(reads):
            response.feed(float(second), data)
        return response

    def test_events_have_the_time_of_their_last_byte(self):
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        response = self.response(
            head + b"9\r\ndata: 1\n", b"\n\r\n", b"9\r\ndata: 2\n\n\r\n", b"0\r\n\r\n"
        )
        self.assertTrue(response.is_complete)
        self.assertEqual(list(timed_events(response)), [(1.0, b"data: 1"), (2.0, b"data: 2")])

    def test_an_end_split_over_several_reads(self):
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        response = self.response(head + b"9\r\ndata: 1\n\n\r\n0", b"\r", b"\n\r")
        self.assertFalse(response.is_complete)
        response.feed(9.0, b"\n")
        self.assertTrue(response.is_complete)

    def test_a_head_split_over_several_reads(self):
        response = self.response(b"HTTP/1.1 200 OK\r\nContent-Le", b"ngth: 2\r\n\r", b"\nhe")
        self.assertTrue(response.is_complete)
        self.assertEqual(list(response.body()), [(2.0, b"he")])

    def test_an_incomplete_event(self):
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"
        self.assertRaises(LoadError, list, timed_events(self.response(head + b"data: 1")))

    def test_another_status(self):
        response = self.response(b"HTTP/1.1 429 Too Many\r\nContent-Length: 2\r\n\r\nno")
        self.assertRaises(LoadError, list, response.body())


@skipUnless(hasattr(select, "epoll"), "the mock backend and the load generator need epoll")
class LoopbackTests(SynchronousTestCase):
    """The mock backend and the load generator, with little load."""

    def setUp(self):
        self.send_times = SendTimes()
        self.backend = MockBackend(0, self.send_times)
        thread = threading.Thread(target=self.backend.run, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 10)
        self.addCleanup(self.backend.stop)

    def run_load(self, mode: str, script: Script, connections: int = 2, **more) -> Outcome:
        plan = LoadPlan(
            port=self.backend.port,
            mode=mode,
            script=script,
            connections=connections,
            seconds=0.05,
            timeout=20,
            **more,
        )
        return LoadGenerator(plan, self.send_times).run()

    def test_streams_of_every_kind(self):
        for kind in (PLAIN, *DIALECTS):
            outcome = self.run_load("loop", Script(kind, 4, 200, FAST))
            self.assertEqual((outcome.wrong, outcome.errors), (0, []), kind)
            self.assertGreaterEqual(outcome.checked, 4)
            self.assertEqual(outcome.frames, outcome.responses * 200)
            self.assertIsNotNone(outcome.first_token)

    def test_streams_of_every_shape_and_text(self):
        scripts = [Script(PROSE, frames=120, shape=shape) for shape in SHAPES]
        scripts += [Script(kind, frames=120, shape="vllm") for kind in TEXTS]
        scripts.append(Script(THINK, frames=120, shape="vllm", tools=0))
        for script in scripts:
            outcome = self.run_load("loop", script, 1)
            self.assertEqual((outcome.wrong, outcome.errors), (0, []), script)
            self.assertIsNotNone(outcome.first_token)

    def test_latency_of_paced_streams(self):
        for script in (
            Script(PLAIN, 4, 30, 200),
            Script(PROSE, frames=30, pace=200, shape="mlx"),
            Script(PROSE, frames=30, pace=200, shape="vllm-reasoning", batched=1),
        ):
            outcome = self.run_load("paced", script, 5)
            self.assertEqual((outcome.wrong, outcome.checked), (0, 5))
            self.assertGreater(outcome.frames, 0)
            assert outcome.latency is not None
            self.assertTrue(0 < outcome.latency[0] <= outcome.latency[1] < 20, outcome.latency)

    def test_the_whole_life_of_paced_streams(self):
        script = Script(PROSE, frames=30, pace=500, shape="vllm")
        outcome = self.run_load("paced", script, 5, start_interval=0.01, proxy_pids=[os.getpid()])
        # The role, the text, the finish reason and [DONE] of each stream.
        self.assertEqual(outcome.life_frames, 5 * 33)
        self.assertLess(outcome.frames, outcome.life_frames)
        self.assertGreater(outcome.life.cpu, outcome.proxy.cpu)
        self.assertIsNotNone(outcome.life_latency)

    def test_every_fault_is_found(self):
        for fault in FAULTS:
            outcome = self.run_load("loop", Script("xml", 4, 200, FAST, 0, fault), 1)
            self.assertEqual(outcome.wrong, outcome.checked, fault)
            self.assertTrue(outcome.errors, fault)

    def test_faults_of_a_paced_stream_are_found(self):
        for fault in ("lost", "swapped", "no_done"):
            outcome = self.run_load("paced", Script(PLAIN, 4, 30, 500, 0, fault), 1)
            self.assertEqual((outcome.wrong, outcome.checked), (1, 1), fault)

    def test_calls_that_were_not_translated_are_found(self):
        outcome = self.run_load("loop", Script("hermes", 4, 200, FAST), 1, is_translated=True)
        self.assertEqual(outcome.wrong, outcome.checked)

    def test_non_streaming_responses_to_requests_of_any_size(self):
        for size in (0, 20_000, 400_000):
            outcome = self.run_load("loop", Script(NON_STREAMING, 4, 15), request_size=size)
            self.assertEqual((outcome.wrong, outcome.errors), (0, []))
            self.assertGreaterEqual(outcome.responses, 2)

    def test_idle_streams_stay_open(self):
        outcome = self.run_load("idle", Script(PLAIN, 4, 15, IDLE), 7, proxy_pids=[os.getpid()])
        self.assertEqual((outcome.responses, outcome.wrong), (7, 0))
        self.assertGreater(outcome.memory_before, 0)

    def test_idle_streams_that_end_are_wrong(self):
        outcome = self.run_load("idle", Script(PLAIN, 4, 15, 1000), 3)
        self.assertEqual(outcome.wrong, 3)

    def test_a_run_that_does_not_end_times_out(self):
        plan = LoadPlan(self.backend.port, "loop", Script(PLAIN, 4, 15, IDLE), timeout=0.05)
        self.assertRaises(LoadError, LoadGenerator(plan, self.send_times).run)


class UsageTests(SynchronousTestCase):
    def test_cpu_time_grows(self):
        before = cpu_usage([os.getpid()])
        while cpu_usage([os.getpid()]).cpu - before.cpu < 0.002:
            pass
        self.assertLess((cpu_usage([os.getpid()]) - before).cpu, 10)

    def test_processes_that_have_ended(self):
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        self.assertEqual(process_tree(process.pid), [])
        self.assertEqual((cpu_usage([process.pid]), memory_usage([process.pid])), (Usage(), 0))

    def test_children_belong_to_the_tree(self):
        waiting = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        process = subprocess.Popen(waiting, stdin=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.assertIn(process.pid, process_tree(os.getpid()))


class FigureTests(SynchronousTestCase):
    def rounds(self, *pairs: tuple[float, float]) -> Rounds:
        """
        Return rounds of 1000 paced chunks.

        :param pairs: the CPU seconds of nginx and of blockops in each round
        """
        rounds = Rounds()
        for number, (nginx, blockops) in enumerate(pairs):
            rounds.add("paced", "nginx", number, Outcome(frames=1000, proxy=Usage(nginx)))
            rounds.add("paced", "blockops", number, Outcome(frames=1000, proxy=Usage(blockops)))
        return rounds

    def test_ratios_are_computed_within_a_round(self):
        rounds = self.rounds((0.01, 0.02), (0.1, 0.2), (0.02, 0.06))
        ratio = rounds.ratio("paced", "blockops", "nginx", figures.cpu_per_frame)
        self.assertEqual(ratio, Range(2.0, 2.0, 3.0))

    def test_a_round_that_failed_is_not_compared(self):
        rounds = self.rounds((0.01, 0.02))
        rounds.add("paced", "blockops", 7, Outcome(frames=1000, proxy=Usage(9.0)))
        ratio = rounds.ratio("paced", "blockops", "nginx", figures.cpu_per_frame)
        self.assertEqual(ratio, Range(2.0, 2.0, 2.0))

    def test_a_bound_that_was_not_measured_is_not_met(self):
        is_met = {bound.name: bound.is_met for bound in bounds(self.rounds((0.01, 0.02)))}
        self.assertFalse(is_met["CPU per paced chunk, own shape, x nginx"])
        self.assertTrue(is_met["wrong streams"])
        self.assertEqual(sum(value is None for value in is_met.values()), len(is_met) - 2)

    def test_a_lower_bound(self):
        bound = Bound("", 15.0, 22.0, Range(16.0, 1.0, 20.0), is_minimum=True)
        self.assertTrue(bound.is_met)
        self.assertFalse(replace(bound, measured=Range(14.0, 1.0, 20.0)).is_met)

    def test_the_worst_dialect_counts(self):
        rounds = self.rounds()
        for kind, cpu in (("plain", 0.01), ("xml", 0.012), ("line", 0.02)):
            outcome = Outcome(frames=1000, proxy=Usage(cpu))
            rounds.add(f"fast-{kind}-4", "blockops", 0, outcome)
        measured = {bound.name: bound.measured for bound in bounds(rounds)}
        worst = measured["dialects against plain text, fast, worst"]
        self.assertEqual(worst, Range(2.0, 2.0, 2.0))

    def test_a_wrong_stream_misses_its_bound(self):
        rounds = Rounds()
        rounds.add("paced", "nginx", 0, Outcome(wrong=1))
        self.assertFalse(bounds(rounds)[-1].is_met)

    def replayed(self, **seconds: float) -> dict[str, Bound]:
        """
        Return the bounds after a round of paced streams of 1000 chunks.

        :param seconds: CPU of blockops over the life of the streams, by the scenario's name with
            `_` for `-`; nginx takes 0.01
        """
        rounds = Rounds()
        for name, cpu in seconds.items():
            for target, used in (("nginx", 0.01), ("blockops", cpu)):
                outcome = Outcome(life_frames=1000, life=Usage(used))
                rounds.add(f"paced-{name.replace('_', '-')}", target, 0, outcome)
        return {bound.name: bound for bound in bounds(rounds)}

    def assert_measured(self, bound: Bound, expected: float, *, is_met: bool) -> None:
        assert bound.measured is not None
        self.assertAlmostEqual(bound.measured.median, expected)
        self.assertEqual(bound.is_met, is_met)

    def test_the_worst_shape_counts(self):
        measured = self.replayed(vllm=0.018, mlx=0.021, llamacpp=0.017)
        worst = measured["CPU per paced chunk, worst replayed shape, x nginx"]
        self.assert_measured(worst, 2.1, is_met=False)
        to_cheapest = measured["paced, worst shape, x the cheapest shape"]
        self.assert_measured(to_cheapest, 21 / 17, is_met=True)

    def test_the_worst_text_counts(self):
        measured = self.replayed(vllm=0.02, code=0.024, chinese=0.026)
        self.assert_measured(measured["paced, worst text, x prose"], 1.3, is_met=False)

    def test_chats_without_tools(self):
        measured = self.replayed(
            vllm=0.02, prose_no_tools=0.022, code=0.02, code_no_tools=0.02, think=0.02
        )
        self.assert_measured(measured["paced, no tools, x with tools"], 1.05, is_met=True)

    def test_latency_is_relative_to_a_run_without_a_proxy(self):
        rounds = Rounds()
        rounds.add("paced", "direct", 0, Outcome(latency=(0.001, 0.002)))
        rounds.add("paced", "blockops", 0, Outcome(latency=(0.002, 0.005)))
        overhead = rounds.overhead("paced", "blockops", figures.latency_p99)
        assert overhead is not None
        self.assertAlmostEqual(overhead.median, 3.0)

    def test_tables(self):
        rows = [["a", "1"], ["long", "23"]]
        self.assertEqual(
            figures.table(["name", "n"], rows, markdown=True),
            "| name | n |\n| --- | --- |\n| a | 1 |\n| long | 23 |",
        )
        self.assertEqual(
            figures.table(["name", "n"], rows, markdown=False), "name   n\na      1\nlong  23"
        )


def run(*arguments: str, program: str = "proxy.py") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"benchmarks/{program}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@skipUnless(hasattr(select, "epoll"), "the mock backend and the load generator need epoll")
class ProgramTests(SynchronousTestCase):
    def test_a_short_run_of_the_backend_alone(self):
        process = run(*shlex.split("--targets direct --only small --rounds 1 --seconds 0.05"))
        self.assertEqual(process.returncode, 0, process.stderr)
        self.assertRegex(process.stdout, r"small, direct .* 0 / \d+\n")
        self.assertRegex(process.stdout, r"\n0 wrong of \d+ responses\n")

    def test_plans_survive_the_pipe(self):
        """The fields that the load generator's process receives have the script."""
        plan = LoadPlan(1, "loop", Script(PLAIN), proxy_pids=[1])
        self.assertEqual(Script(*asdict(plan)["script"]), Script(PLAIN))

    def test_an_unknown_scenario(self):
        process = run("--only", "nothing")
        self.assertEqual(process.returncode, 1)
        self.assertIn("there are main, replay, formats, paced,", process.stderr)

    def test_a_short_replay_of_the_backend_alone(self):
        process = run(*shlex.split("--targets direct --only paced-vllm --rounds 1 --seconds 0.3"))
        self.assertEqual(process.returncode, 0, process.stderr)
        self.assertIn("replayed, with starts and ends, p99", process.stdout)
        self.assertRegex(process.stdout, r"\n0 wrong of 50 responses\n")

    def test_replays_stand_beside_the_own_shape(self):
        names = [scenario.name for scenario in select_scenarios("replay", quick=False)]
        self.assertEqual(names[:2], ["paced", "fast"])
        self.assertEqual(set(names[2:]), {scenario.name for scenario in REPLAY})
        self.assertIn(BATCHED.name, names)
        for paced, fast in BY_SHAPE.values():
            self.assertTrue({"nginx", "blockops"} <= {*paced.targets} & {*fast.targets})


class CapturesTests(SynchronousTestCase):
    """The benchmark of the recorded streams."""

    def setUp(self):
        self.streams = {stream.name: stream for stream in read_streams()}

    def measure(self, name: str, *, is_one_read: bool = False) -> list[captures.Measurement]:
        runner = captures.Captures([self.streams[name]], repeat=1, is_one_read=is_one_read)
        runner.run_round()
        return runner.measurements

    def test_only_answered_streams_are_read(self):
        self.assertIn("transformers-think", self.streams)
        self.assertIn("mlx-overflow-s", self.streams)
        for name in ("llamacpp-nostream", "vllm-required", "transformers-err-max0"):
            self.assertNotIn(name, self.streams)

    def test_every_server_has_streams(self):
        servers = {stream.server for stream in self.streams.values()}
        self.assertEqual(servers, set(SERVERS))

    def test_synthetic_streams_have_the_text_of_their_source(self):
        source = b"".join(self.streams["vllm-plain"].events)
        for name in ("reasoning_content", "reasoning"):
            stream = b"".join(self.streams[f"vllm-{name}-synthetic"].events)
            self.assertEqual(stream.count(f'"{name}":'.encode()), 11)
            self.assertEqual(stream.replace(f'"{name}":'.encode(), b'"content":'), source)

    def test_translators_know_the_tools(self):
        events = self.streams["vllm-json"].events
        for variant, expected in ((TOOLS, ["search"]), (NO_TOOLS, [])):
            translator = translator_factory(variant)()
            for event in events:
                translator.receive_data(event)
            self.assertEqual(translator.report.tool_names, expected)

    def test_both_variants_of_one_stream(self):
        for is_one_read in (False, True):
            tools, no_tools = self.measure("vllm-json", is_one_read=is_one_read)
            self.assertEqual((tools.variant, no_tools.variant), (TOOLS, NO_TOOLS))
            self.assertEqual((tools.errors, no_tools.errors), ([], []))
            self.assertTrue(0 < tools.passed < no_tools.passed <= 1)
            self.assertTrue(tools.cost > 0 < tools.bare_cost)

    def test_wrong_streams_are_found(self):
        events = self.streams["vllm-plain"].events
        self.assertIsNone(find_error(b"".join(events)))
        error = b'data: {"error": {"message": "broken"}}\n\n'
        for wrong in (events[:-1], events[1:], (*events, events[-1]), (events[0], error)):
            self.assertIsNotNone(find_error(b"".join(wrong)), wrong)

    def test_bounds(self):
        figures = [
            captures.Measurement(name, "vllm", variant, 9, 1.0, [cost, 99.0], [1.0])
            for name, variant, cost in (("a", TOOLS, 2.0), ("b", TOOLS, 5.5), ("a", NO_TOOLS, 1.0))
        ]
        self.assertEqual(
            list(captures.find_violations(figures, captures.MAX_COST)),
            ["b, tools: 2.75 x the cheapest, more than 2.5"],
        )
        figures[1].rounds.append(5.0)
        self.assertEqual(
            list(captures.find_violations(figures, 4.0)),
            ["b, tools: 5.00 us per event, more than 4"],
        )

    def test_the_start_is_not_a_part_of_an_events_cost(self):
        tools, _ = self.measure("vllm-json")
        self.assertEqual(len(tools.start_rounds), 1)
        self.assertGreater(tools.start_cost, 0)

    def run_program(self, arguments: str) -> subprocess.CompletedProcess[str]:
        common = shlex.split("--only vllm-plain --rounds 1 --repeat 1")
        return run(*common, *shlex.split(arguments), program="captures.py")

    def test_a_short_run(self):
        process = self.run_program("--markdown")
        self.assertEqual(process.returncode, 0, process.stderr)
        self.assertIn("\n| vllm-plain | 26 | ", process.stdout)
        self.assertIn("\n0 wrong of 2 streams\n", process.stdout)

    def test_an_absurd_bound_fails_the_check(self):
        process = self.run_program("--check --bound 0.001 --json")
        self.assertEqual(process.returncode, 1, process.stderr)
        self.assertIn("more than 0.001", json.loads(process.stdout)["violations"][0])

    def test_an_unknown_stream(self):
        process = self.run_program("--only nothing")
        self.assertEqual(process.returncode, 1)
        self.assertIn("there are llamacpp-tooltmpl-json,", process.stderr)


class WalkTests(SynchronousTestCase):
    """The recorded walk."""

    def test_the_walk_of_a_request_ends_at_the_connect(self):
        steps = walk.request_walk().steps
        self.assertTrue(steps[0].file.startswith("server/"), steps[0])
        self.assertEqual(steps[0].depth, 0)
        # It ends on its way out: nothing sends a response.
        files = [step.file for step in steps]
        self.assertTrue(any(file.startswith("upstream/") for file in files))
        self.assertNotIn("net/writer.py", files)

    def test_the_walk_of_a_chunk_leads_to_the_client(self):
        for before, recorded in walk.CHUNKS.values():
            steps = walk.chunk_walk(before, recorded).steps
            self.assertTrue(steps[0].file.startswith("upstream/"), steps[0])
        steps = walk.chunk_walk(*walk.CHUNKS[walk.PROSE]).steps
        self.assertEqual(steps[-1].file, "net/writer.py")

    def test_a_stream_that_fails_is_no_walk(self):
        error = 'data: {"error": {"message": "broken"}}\n\n'
        self.assertRaises(walk.WalkError, walk.chunk_walk, (), error)

    def steps(self, *places: tuple[str, str]) -> walk.Walk:
        return walk.Walk([walk.Step(file, function, 0) for file, function in places])

    def test_numbers(self):
        recorded = self.steps(("a", "f"), ("a", "g"), ("b", "f"), ("a", "f"))
        numbers = (recorded.functions, recorded.distinct, recorded.file_changes, recorded.files)
        self.assertEqual(numbers, (4, 3, 2, 2))

    def test_resumed_coroutines_and_comprehensions_are_not_counted(self):
        self.patch(walk, "_PACKAGE", f"{ROOT / 'tests'}/")

        @coroutine
        def pause() -> Iterator[None]:
            yield

        async def twice() -> set[int]:
            await pause()
            await pause()
            return {2 * number for number in range(3)}

        task = twice()
        with walk.Recorder() as recorded:
            self.assertEqual(list(task.__await__()), [None, None])
        names = [step.function.rpartition(".")[2] for step in recorded.steps]
        self.assertEqual(names, ["twice", "pause", "pause"])

    def test_bounds(self):
        request = self.steps(*(("a", "f"), ("b", "f")) * 80)
        prose = self.steps(*[("a", "f")] * 11)
        self.assertEqual(
            list(walk.find_violations({walk.REQUEST: request, walk.PROSE: prose})),
            [
                "request, to the connect: 160 functions, not under 160",
                "request, to the connect: 159 file changes, not under 60",
                "chunk of prose: 11 functions, more than 10",
            ],
        )
        request, prose = self.steps(("a", "f")), self.steps(*[("a", "f")] * 10)
        self.assertEqual(list(walk.find_violations({walk.REQUEST: request, walk.PROSE: prose})), [])

    def test_a_run(self):
        process = run("--verbose", program="walk.py")
        self.assertEqual(process.returncode, 0, process.stderr)
        self.assertRegex(process.stdout, r"\nchunk of prose +\d+ +\d+ +\d+ +\d+\n")
        self.assertRegex(process.stdout, r"\n  server/\S+ +\w+")


class PageTests(SynchronousTestCase):
    """The commands, options, bounds and modules in docs/performance.md exist."""

    def setUp(self):
        self.text = PAGE.read_text("utf-8")

    def commands(self) -> list[list[str]]:
        lines = re.findall(r"^(?:[A-Z_]+=\S+ )*python (benchmarks/.*)$", self.text, re.MULTILINE)
        return [shlex.split(line, comments=True) for line in lines]

    def test_programs_and_options(self):
        self.assertGreater(len(self.commands()), 2)
        for program, *options in self.commands():
            self.assertTrue((ROOT / program).is_file(), program)
            if program == "benchmarks/proxy.py":
                self.assertTrue(proxy.scenarios_of(proxy.parse_arguments(options)))
            if program == "benchmarks/captures.py":
                self.assertTrue(captures.selected_streams(captures.parse_arguments(options)))

    def test_options_in_the_text(self):
        helps = [run("--help", program=program).stdout for program in PROGRAMS]
        known = set(re.findall(r"--[a-z-]+", "".join(helps)))
        known |= {f"--{each.option}" for each in TABLE}
        for option in re.findall(r"`(--[a-z-]+)", self.text):
            self.assertIn(option, known)

    def test_every_bound(self):
        for bound in bounds(Rounds()):
            self.assertIn(f"| {bound.name} |", self.text)

    def test_modules_in_the_text(self):
        for path in re.findall(r"`((?:blockops|benchmarks|tests)/[\w/.]+)`", self.text):
            self.assertTrue((ROOT / path).exists(), path)
