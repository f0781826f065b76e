"""
The benchmark of the whole path: what it counts, and that a wrong stream is noticed.

The mock backend runs in a thread, the load generator here, over loopback; what they measure is not
looked at.
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
from dataclasses import asdict, replace
from pathlib import Path
from unittest import skipUnless

from twisted.trial.unittest import SynchronousTestCase

from benchmarks import figures, proxy
from benchmarks.figures import Must, Range, Rounds
from benchmarks.load import Answer, Failed, Load, Order, Outcome, Unchunked, events
from benchmarks.mock_backend import Backend, Times
from benchmarks.scenarios import PAIRS
from benchmarks.streams import (
    FAST,
    FAULTS,
    FORMATS,
    IDLE,
    PLAIN,
    WHOLE,
    Heard,
    Script,
    complaint,
    complaint_of_whole,
    frames,
    request,
    said,
    whole,
)
from benchmarks.usage import Used, family, memory, used
from blockops.settings.table import TABLE
from blockops.toolcalls.events import CallArguments, CallBegan, Text
from blockops.toolcalls.parser import ToolCallParser
from blockops.toolcalls.tools import Offer

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"


def heard(script: Script) -> Heard:
    """Return what a client makes of `script` when nothing stands before the backend."""
    found = Heard()
    for frame in frames(script.kind, script.cut, script.frames, script.fault, usage=True):
        event = frame.removesuffix(b"0\r\n\r\n").partition(b"\r\n")[2].strip()
        found.event(event)
    return found


class ScriptTests(SynchronousTestCase):
    def test_a_request_carries_its_script(self):
        script = Script("xml", 11, 30, 100, 7, "lost")
        for size in (0, 20_000, 400_000):
            self.assertEqual(Script.find(request(script, size)), script)

    def test_a_request_without_one_has_none(self):
        self.assertIsNone(Script.find(b'{"model": "bench"}'))

    def test_requests_have_their_size(self):
        for size in (20_000, 400_000):
            self.assertTrue(0.9 < len(request(Script(WHOLE), size)) / size < 1.1)

    def test_requests_of_a_session_begin_alike(self):
        one, other = (request(Script(WHOLE, slot=slot), 20_000) for slot in (1, 2))
        alike = next(n for n, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
        self.assertGreater(alike / len(one), 0.95)

    def test_texts_have_their_length(self):
        for kind in (PLAIN, *FORMATS):
            for length in (800, 4_000, 40_000):
                found = len(said(kind, length).text)
                self.assertTrue(0.8 < found / length < 1.2, f"{kind}, {length}: {found}")

    def test_no_line_comes_twice(self):
        text = said(PLAIN, 30_000).text
        lines = text.split(".")
        self.assertEqual(len(set(lines)), len(lines))

    def test_calls_are_what_blockops_reads(self):
        """The text of each format means the calls that are expected from it."""
        for kind in FORMATS:
            expected = said(kind, 5_000)
            parser = ToolCallParser(Offer({"write_file": {}}))
            deltas = [*parser.feed(expected.text), *parser.finish("stop")]
            names = [each.name for each in deltas if isinstance(each, CallBegan)]
            text = "".join(each.text for each in deltas if isinstance(each, Text))
            self.assertEqual(names, ["write_file"] * len(expected.calls))
            self.assertEqual(text, expected.content)
            self.assertGreater(len([e for e in deltas if isinstance(e, CallArguments)]), 0)


class ComplaintTests(SynchronousTestCase):
    """What is heard is compared with what was said."""

    def test_a_right_stream(self):
        for kind in (PLAIN, *FORMATS):
            for cut in (1, 4, 11):
                script = Script(kind, cut, 300)
                self.assertIsNone(complaint(script, heard(script), translated=False))

    def test_each_fault_is_noticed(self):
        for fault in FAULTS:
            for kind in FORMATS:
                script = Script(kind, 4, 300, fault=fault)
                found = complaint(script, heard(script), translated=False)
                self.assertIsNotNone(found, f"{fault}, {kind}")

    def test_calls_that_stayed_text(self):
        script = Script("hermes", 4, 300)
        self.assertIsNotNone(complaint(script, heard(script), translated=True))

    def translated(self, script: Script) -> Heard:
        """Return what is heard where all is right."""
        expected = said(script.kind, script.cut * script.frames)
        found = Heard(content=expected.content, finish_reasons=["tool_calls"], done=True)
        for index, (name, arguments) in enumerate(expected.calls):
            found.names[index] = name
            found.arguments[index] = json.dumps(arguments)
        return found

    def test_calls_that_came_as_calls(self):
        for kind in FORMATS:
            script = Script(kind, 4, 2_000)
            self.assertIsNone(complaint(script, self.translated(script), translated=True))

    def test_calls_of_another_name_or_argument(self):
        script = Script("line", 4, 2_000)
        for change in ("name", "argument", "json", "order", "missing"):
            found = self.translated(script)
            if change == "name":
                found.names[1] = "wrote_file"
            elif change == "argument":
                found.arguments[1] = found.arguments[1].replace("limit", "limits", 1)
            elif change == "json":
                found.arguments[1] = found.arguments[1][:-1]
            elif change == "order":
                found.arguments[0], found.arguments[1] = found.arguments[1], found.arguments[0]
            else:
                del found.names[1]
            self.assertIsNotNone(complaint(script, found, translated=True), change)

    def test_what_comes_behind_the_end(self):
        script = Script(PLAIN)
        found = heard(script)
        found.event(b'data: {"choices": []}')
        self.assertEqual(complaint(script, found, translated=False), "something behind [DONE]")

    def test_an_error_event(self):
        found = Heard()
        found.event(b'data: {"error": {"message": "broken"}}')
        self.assertIn("broken", complaint(Script(PLAIN), found, translated=False) or "")

    def test_heartbeats_are_none_of_it(self):
        script = Script(PLAIN)
        found = Heard()
        found.event(b": heartbeat")
        self.assertEqual(found, Heard())
        self.assertIsNone(complaint(script, heard(script), translated=False))

    def test_whole_answers(self):
        script = Script(WHOLE, 4, 15)
        body = whole(4, 15)
        self.assertIsNone(complaint_of_whole(script, body))
        self.assertIsNotNone(complaint_of_whole(script, body.replace(b"fox", b"cat")))
        self.assertIsNotNone(complaint_of_whole(script, body[:-1]))
        self.assertIsNotNone(complaint_of_whole(script, b'{"choices": []}'))


class FramingTests(SynchronousTestCase):
    BODY = b"5\r\nhello\r\n1;x=y\r\n \r\nb\r\nworld, yes!\r\n0\r\n\r\n"

    def test_chunks_at_every_cut(self):
        for cut in range(len(self.BODY) + 1):
            unchunked = Unchunked()
            found = unchunked.feed(self.BODY[:cut]) + unchunked.feed(self.BODY[cut:])
            self.assertEqual(found, b"hello world, yes!")

    def test_byte_by_byte(self):
        unchunked = Unchunked()
        found = b"".join(unchunked.feed(self.BODY[n : n + 1]) for n in range(len(self.BODY)))
        self.assertEqual(found, b"hello world, yes!")

    def test_no_chunk(self):
        self.assertRaises(Failed, Unchunked().feed, b"data: x\r\n")

    def answer(self, *pieces: bytes) -> Answer:
        found = Answer(Script(PLAIN), 0.0)
        for at, piece in enumerate(pieces):
            found.feed(float(at), piece)
        return found

    def test_events_have_the_time_of_their_last_byte(self):
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        found = self.answer(
            head + b"9\r\ndata: 1\n", b"\n\r\n", b"9\r\ndata: 2\n\n\r\n", b"0\r\n\r\n"
        )
        self.assertTrue(found.ended)
        self.assertEqual(list(events(found)), [(1.0, b"data: 1"), (2.0, b"data: 2")])

    def test_an_end_in_pieces(self):
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        found = self.answer(head + b"9\r\ndata: 1\n\n\r\n0", b"\r", b"\n\r")
        self.assertFalse(found.ended)
        found.feed(9.0, b"\n")
        self.assertTrue(found.ended)

    def test_a_head_in_pieces(self):
        found = self.answer(b"HTTP/1.1 200 OK\r\nContent-Le", b"ngth: 2\r\n\r", b"\nhe")
        self.assertTrue(found.ended)
        self.assertEqual(list(found.body()), [(2.0, b"he")])

    def test_half_an_event(self):
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"
        self.assertRaises(Failed, list, events(self.answer(head + b"data: 1")))

    def test_another_status(self):
        found = self.answer(b"HTTP/1.1 429 Too Many\r\nContent-Length: 2\r\n\r\nno")
        self.assertRaises(Failed, list, found.body())


@skipUnless(hasattr(select, "epoll"), "the mock backend and the load generator need epoll")
class LoopbackTests(SynchronousTestCase):
    """The real backend and the real load generator, with next to nothing to do."""

    def setUp(self):
        self.times = Times()
        self.backend = Backend(0, self.times)
        thread = threading.Thread(target=self.backend.run, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 10)
        self.addCleanup(self.backend.stop)

    def put(self, mode: str, script: Script, connections: int = 2, **more) -> Outcome:
        order = Order(
            port=self.backend.port,
            mode=mode,
            script=script,
            connections=connections,
            seconds=0.05,
            patience=20,
            **more,
        )
        return Load(order, self.times).run()

    def test_streams_of_every_kind(self):
        for kind in (PLAIN, *FORMATS):
            outcome = self.put("loop", Script(kind, 4, 200, FAST))
            self.assertEqual((outcome.wrong, outcome.complaints), (0, []), kind)
            self.assertGreaterEqual(outcome.checked, 4)
            self.assertEqual(outcome.frames, outcome.responses * 200)
            self.assertIsNotNone(outcome.first)

    def test_paced_streams_know_when_each_frame_was_sent(self):
        outcome = self.put("paced", Script(PLAIN, 4, 30, 200), 5)
        self.assertEqual((outcome.wrong, outcome.checked), (0, 5))
        self.assertGreater(outcome.frames, 0)
        assert outcome.late is not None
        self.assertTrue(0 < outcome.late[0] <= outcome.late[1] < 20, outcome.late)

    def test_every_fault_is_caught(self):
        for fault in FAULTS:
            outcome = self.put("loop", Script("xml", 4, 200, FAST, 0, fault), 1)
            self.assertEqual(outcome.wrong, outcome.checked, fault)
            self.assertTrue(outcome.complaints, fault)

    def test_a_paced_stream_that_lacks_something_is_caught(self):
        for fault in ("lost", "swapped", "undone"):
            outcome = self.put("paced", Script(PLAIN, 4, 30, 500, 0, fault), 1)
            self.assertEqual((outcome.wrong, outcome.checked), (1, 1), fault)

    def test_calls_that_nobody_translated_are_caught(self):
        outcome = self.put("loop", Script("hermes", 4, 200, FAST), 1, translated=True)
        self.assertEqual(outcome.wrong, outcome.checked)

    def test_whole_answers_of_requests_of_any_size(self):
        for size in (0, 20_000, 400_000):
            outcome = self.put("loop", Script(WHOLE, 4, 15), size=size)
            self.assertEqual((outcome.wrong, outcome.complaints), (0, []))
            self.assertGreaterEqual(outcome.responses, 2)

    def test_idle_streams_stay(self):
        outcome = self.put("idle", Script(PLAIN, 4, 15, IDLE), 7, proxy=[os.getpid()])
        self.assertEqual((outcome.responses, outcome.wrong), (7, 0))
        self.assertGreater(outcome.memory_before, 0)

    def test_idle_streams_that_end_are_wrong(self):
        outcome = self.put("idle", Script(PLAIN, 4, 15, 1000), 3)
        self.assertEqual(outcome.wrong, 3)

    def test_a_load_without_an_end_is_given_up(self):
        order = Order(self.backend.port, "loop", Script(PLAIN, 4, 15, IDLE), patience=0.05)
        self.assertRaises(Failed, Load(order, self.times).run)


class UsageTests(SynchronousTestCase):
    def test_a_process_that_computes(self):
        before = used([os.getpid()])
        while used([os.getpid()]).cpu - before.cpu < 0.002:
            pass
        self.assertLess((used([os.getpid()]) - before).cpu, 10)

    def test_processes_that_are_gone(self):
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        self.assertEqual(family(process.pid), [])
        self.assertEqual((used([process.pid]), memory([process.pid])), (Used(), 0))

    def test_children_belong_to_the_family(self):
        waiting = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        process = subprocess.Popen(waiting, stdin=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.assertIn(process.pid, family(os.getpid()))


class FigureTests(SynchronousTestCase):
    def rounds(self, *pairs: tuple[float, float]) -> Rounds:
        """Return rounds in which nginx and blockops took so many seconds for 1000 chunks."""
        found = Rounds()
        for turn, (nginx, ours) in enumerate(pairs):
            found.add("paced", "nginx", turn, Outcome(frames=1000, proxy=Used(nginx)))
            found.add("paced", "blockops", turn, Outcome(frames=1000, proxy=Used(ours)))
        return found

    def test_ratios_are_taken_within_a_round(self):
        found = self.rounds((0.01, 0.02), (0.1, 0.2), (0.02, 0.06))
        ratio = found.ratio("paced", "blockops", "nginx", figures.cpu_per_frame)
        self.assertEqual(ratio, Range(2.0, 2.0, 3.0))

    def test_a_round_that_failed_is_not_compared(self):
        found = self.rounds((0.01, 0.02))
        found.add("paced", "blockops", 7, Outcome(frames=1000, proxy=Used(9.0)))
        ratio = found.ratio("paced", "blockops", "nginx", figures.cpu_per_frame)
        self.assertEqual(ratio, Range(2.0, 2.0, 2.0))

    def test_what_was_not_measured_is_not_met(self):
        every = figures.musts(self.rounds((0.01, 0.02)), PAIRS)
        met = {each.what: each.met for each in every}
        self.assertFalse(met["CPU per paced chunk, x nginx"])
        self.assertTrue(met["wrong streams"])
        self.assertEqual([each for each in met.values() if each is None], [None] * 9)

    def test_what_has_to_be_much(self):
        much = Must("", 15.0, 22.0, Range(16.0, 1.0, 20.0), at_least=True)
        self.assertTrue(much.met)
        self.assertFalse(replace(much, measured=Range(14.0, 1.0, 20.0)).met)

    def test_the_worst_format_counts(self):
        found = self.rounds()
        for kind, cpu in (("plain", 0.01), ("xml", 0.012), ("line", 0.02)):
            outcome = Outcome(frames=1000, proxy=Used(cpu))
            found.add(f"fast-{kind}-4", "blockops", 0, outcome)
        every = {each.what: each.measured for each in figures.musts(found, PAIRS)}
        worst = every["tool-call formats against plain text, fast, worst"]
        self.assertEqual(worst, Range(2.0, 2.0, 2.0))

    def test_a_wrong_stream_is_no_success(self):
        found = Rounds()
        found.add("paced", "nginx", 0, Outcome(wrong=1))
        self.assertFalse(figures.musts(found, ())[-1].met)

    def test_latency_is_what_is_added(self):
        found = Rounds()
        found.add("paced", "direct", 0, Outcome(late=(0.001, 0.002)))
        found.add("paced", "blockops", 0, Outcome(late=(0.002, 0.005)))
        added = found.added("paced", "blockops", figures.late_high)
        assert added is not None
        self.assertAlmostEqual(added.middle, 3.0)

    def test_tables(self):
        rows = [["a", "1"], ["long", "23"]]
        self.assertEqual(
            figures.table(["what", "n"], rows, markdown=True),
            "| what | n |\n| --- | --- |\n| a | 1 |\n| long | 23 |",
        )
        self.assertEqual(
            figures.table(["what", "n"], rows, markdown=False), "what   n\na      1\nlong  23"
        )


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/proxy.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@skipUnless(hasattr(select, "epoll"), "the mock backend and the load generator need epoll")
class ProgramTests(SynchronousTestCase):
    def test_a_short_run_of_the_backend_alone(self):
        done = run(*shlex.split("--targets direct --only small --rounds 1 --seconds 0.05"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"small, direct .* 0 / \d+\n")
        self.assertRegex(done.stdout, r"\n0 wrong of \d+ answers\n")

    def test_orders_survive_the_pipe(self):
        """What is told to the load generator's process arrives as it was meant."""
        order = Order(1, "loop", Script(PLAIN), proxy=[1])
        self.assertEqual(Script(*asdict(order)["script"]), Script(PLAIN))

    def test_an_unknown_scenario(self):
        done = run("--only", "nothing")
        self.assertEqual(done.returncode, 1)
        self.assertIn("there are main, formats, paced,", done.stderr)


class PageTests(SynchronousTestCase):
    """What docs/performance.md tells to type exists."""

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
                chosen = proxy.parsed(options)
                self.assertTrue(proxy.scenarios(chosen))

    def test_options_in_the_text(self):
        known = set(re.findall(r"--[a-z-]+", run("--help").stdout))
        known |= {f"--{each.option}" for each in TABLE}
        for option in re.findall(r"`(--[a-z-]+)", self.text):
            self.assertIn(option, known)

    def test_every_line_of_what_has_to_be_reached(self):
        for each in figures.musts(Rounds(), ()):
            self.assertIn(f"| {each.what} |", self.text)

    def test_modules_that_are_named(self):
        for path in re.findall(r"`((?:blockops|benchmarks|tests)/[\w/.]+)`", self.text):
            self.assertTrue((ROOT / path).exists(), path)
