"""The matrix judges rightly: what lacks, what came too often, what works although it should not."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.live.acceptance.cells import Between, Cell, Outcome
from tests.live.acceptance.clients import CLIENTS, FINAL, Told, alone_at_work
from tests.live.acceptance.known import KNOWN, LOST
from tests.live.acceptance.matrix import (
    BLOCKOPS,
    NOTHING,
    ORACLE,
    PROMPT,
    Matrix,
    Row,
    Wanted,
    judge_cell,
    judge_oracle,
)
from tests.live.acceptance.matrix import (
    lost as lost_texts,
)
from tests.live.acceptance.oracle import Judged, Said, expected, known_texts, lost_by_server
from tests.live.acceptance.table import page, summary
from tests.live.real_backends import (
    LLAMA_CPP,
    LLAMA_CPP_TOOLS,
    MLX_LM_TOOLS,
    REAL_BACKENDS,
    VLLM_MLX,
)
from tests.live.tools import TEXTS

OPENAI = next(one for one in CLIENTS if one.name == "openai (Python)")
TEXT_MODE = next(one for one in CLIENTS if one.name == "qwen-agent, calls in text")
AGENT = next(one for one in CLIENTS if one.name == "opencode")


@dataclass
class Heard:
    asked: Any = b""
    answered: Any = b""


def told(keys: str, *, good: bool = True) -> list[Told]:
    return [Told(key, "stream", good, FINAL if good else "TOOL_CALL: ...") for key in keys.split()]


class Cells(SynchronousTestCase):
    def test_all_formats_worked(self) -> None:
        cell = Cell(LLAMA_CPP, OPENAI, BLOCKOPS)
        self.assertEqual(judge_cell(cell, Outcome(told("j-add l-add x-add"))), "")

    def test_one_way_of_one_format_did_not(self) -> None:
        outcome = Outcome(told("j-add l-add x-add") + told("x-add", good=False))
        self.assertIn("x-add stream", judge_cell(Cell(LLAMA_CPP, OPENAI, BLOCKOPS), outcome))
        self.assertEqual(outcome.worked, ["j", "l"])

    def test_the_tool_ran_but_its_result_was_not_sent(self) -> None:
        cell = Cell(LLAMA_CPP, OPENAI, BLOCKOPS)
        told_all = told("j-add l-add x-add")
        sent = b'{"role": "tool", "content": "42"}'
        self.assertEqual(cell.check(told_all, Heard(sent * 3), Heard()), [])
        self.assertEqual(
            cell.check(told_all, Heard(sent), Heard()), ["3 tools ran, but 1 results went back"]
        )

    def test_heartbeats_have_to_be_there(self) -> None:
        beat = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":null}]}\n\n'
        for style, beats in (("chunk", beat), ("comment", b": heartbeat\n\n")):
            cell = Cell(LLAMA_CPP, OPENAI, Between(heartbeat_style=style))
            sent = b'{"content":"42"}'
            self.assertEqual(cell.check(told("j-add"), Heard(sent, beats), Heard()), [])
            self.assertEqual(
                cell.check(told("j-add"), Heard(sent), Heard()),
                ["0 heartbeats came in 1 conversations"],
            )

    def test_tools_have_to_be_in_the_prompt_and_nowhere_else(self) -> None:
        cell = Cell(LLAMA_CPP, OPENAI, PROMPT)
        self.assertEqual(cell.keys, ["j-add"])
        prompt = b'{"messages": [{"content": "<tools>..."}]'
        sent = Heard(b'{"content":"42"}')
        self.assertEqual(cell.check(told("j-add"), sent, Heard(prompt + b"}")), [])
        for wrong in (prompt + b', "tools": []}', b"{}"):
            self.assertEqual(len(cell.check(told("j-add"), sent, Heard(wrong))), 1, wrong)

    def test_nothing_was_told(self) -> None:
        self.assertTrue(judge_cell(Cell(LLAMA_CPP, OPENAI, BLOCKOPS), Outcome()))

    def test_an_error_is_a_failure(self) -> None:
        outcome = Outcome(told("j-add l-add x-add"), ["OSError: no"])
        self.assertEqual(judge_cell(Cell(LLAMA_CPP, OPENAI, BLOCKOPS), outcome), "OSError: no")

    def test_what_is_known_not_to_work(self) -> None:
        cell = Cell(MLX_LM_TOOLS, OPENAI, BLOCKOPS)
        lost = Outcome(told("j-add l-add") + told("x-add", good=False))
        self.assertEqual(judge_cell(cell, lost), "")

    def test_what_works_although_it_is_known_not_to(self) -> None:
        cell = Cell(MLX_LM_TOOLS, OPENAI, BLOCKOPS)
        found = judge_cell(cell, Outcome(told("j-add l-add x-add")))
        self.assertEqual(found, "works, although known.py says it cannot: ['x']")

    def test_without_blockops_nothing_may_work(self) -> None:
        cell = Cell(LLAMA_CPP, OPENAI, NOTHING)
        self.assertEqual(judge_cell(cell, Outcome(told("j-add l-add x-add", good=False))), "")
        self.assertIn("works", judge_cell(cell, Outcome(told("j-add l-add x-add"))))

    def test_but_some_read_calls_themselves(self) -> None:
        cell = Cell(LLAMA_CPP, TEXT_MODE, NOTHING)
        self.assertEqual(judge_cell(cell, Outcome(told("j-add"))), "")

    def test_one_format_where_a_grammar_allows_no_other(self) -> None:
        smol = next(one for one in CLIENTS if one.name == "smolagents")
        self.assertEqual(Cell(LLAMA_CPP_TOOLS, smol, BLOCKOPS).keys, ["j-smol"])
        self.assertEqual(len(Cell(LLAMA_CPP, smol, BLOCKOPS).keys), 3)

    def test_agents_take_long_so_they_try_all_formats_with_one_server_only(self) -> None:
        self.assertEqual(len(Cell(LLAMA_CPP, AGENT, BLOCKOPS).keys), 3)
        self.assertEqual(Cell(LLAMA_CPP_TOOLS, AGENT, BLOCKOPS).keys, ["l-oc-bash"])
        self.assertEqual(Cell(LLAMA_CPP, AGENT, NOTHING).keys, ["l-oc-bash"])

    def test_the_file_of_another_run_is_gone(self) -> None:
        file = Path(self.mktemp()) / "out.txt"
        file.parent.parent.mkdir(exist_ok=True)
        with alone_at_work(file):
            file.write_text("tiny-ok\n")
            with file.with_suffix(".lock").open("w") as lock, self.assertRaises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with alone_at_work(file):
            self.assertFalse(file.exists())


class Oracle(SynchronousTestCase):
    def test_what_is_lost_is_what_is_known_to_be(self) -> None:
        texts = {f"{text.key}#{text.turn}": text for text in TEXTS}
        known = lost_texts(LLAMA_CPP_TOOLS, BLOCKOPS)
        lost = [Judged(texts[name], ("stream",)) for name in known]
        fine = [Judged(texts["j-add#0"])]
        self.assertEqual(judge_oracle(known, lost + fine), "")
        self.assertIn("not lost", judge_oracle(known, fine))
        self.assertIn("does not say so", judge_oracle(set(), lost))

    def test_a_server_loses_nothing_that_it_does_not_know_to_be_a_call(self) -> None:
        self.assertEqual(lost_texts(VLLM_MLX, PROMPT), set())
        self.assertEqual(lost_texts(VLLM_MLX, BLOCKOPS), LOST[VLLM_MLX])

    def test_trouble_is_told(self) -> None:
        judged = [Judged(TEXTS[0], ("whole",), "whole: nothing came")]
        self.assertIn("nothing came", judge_oracle(set(), judged))

    def test_only_a_server_that_changed_the_text_can_have_lost_it(self) -> None:
        text = next(one for one in TEXTS if one.key == "x-add" and one.turn == 0)
        nothing = Said("", [], "tool_calls")
        untouched = Said(text.reply, [], "stop")
        call = Said("", [("add", {"a": 17, "b": 25})], "tool_calls")
        self.assertTrue(lost_by_server(text, nothing, nothing))
        self.assertFalse(lost_by_server(text, untouched, nothing))
        self.assertFalse(lost_by_server(text, call, nothing))

    def test_what_is_cut_off_is_not_taken_for_whole(self) -> None:
        text = next(one for one in TEXTS if one.key == "j-open" and one.turn == 0)
        self.assertEqual(expected(text).reason, "length")

    def test_every_text_is_asked_for(self) -> None:
        self.assertEqual(len(known_texts(LLAMA_CPP)), 144)
        self.assertEqual(len(known_texts(LLAMA_CPP_TOOLS)), 142)

    def test_lost_texts_exist(self) -> None:
        names = {f"{text.key}#{text.turn}" for text in TEXTS}
        self.assertEqual(set().union(*LOST.values()) - names, set())


class Page(SynchronousTestCase):
    def setUp(self) -> None:
        self.matrix = Matrix(Wanted([], ""), Path(self.mktemp()))

    def test_one_row(self) -> None:
        outcome = Outcome(told("j-add l-add") + told("x-add", good=False))
        self.matrix.rows.append(Row(MLX_LM_TOOLS, OPENAI.name, outcome=outcome))
        text = page(self.matrix)
        self.assertIn("J L ~~X~~ (1)", text)
        self.assertIn(f"1. {KNOWN[0].why}", text)
        self.assertEqual(summary(self.matrix), "PASSED (successes=1)")

    def test_a_failure_and_one_that_was_not_run(self) -> None:
        self.matrix.rows += [
            Row(LLAMA_CPP, OPENAI.name, trouble="it broke\nsomewhere"),
            Row(MLX_LM_TOOLS, OPENAI.name, skipped="not installed"),
        ]
        text = page(self.matrix)
        self.assertIn("**FAILED** (1)", text)
        self.assertIn("1. it broke\n", text)
        self.assertIn("not run (2)", text)
        self.assertEqual(summary(self.matrix), "FAILED (skips=1, failures=1)")

    def test_texts_are_counted(self) -> None:
        judged = [Judged(text) for text in known_texts(LLAMA_CPP)]
        self.matrix.rows.append(Row(LLAMA_CPP, ORACLE, judged=judged))
        self.assertIn("| each text that the model knows | 144 of 144 |", page(self.matrix))

    def test_without_blockops_stands_in_a_column_of_its_own(self) -> None:
        outcome = Outcome(told("j-add l-add x-add", good=False))
        self.matrix.rows.append(Row(LLAMA_CPP, OPENAI.name, NOTHING, outcome=outcome))
        text = page(self.matrix)
        self.assertIn("without blockops", text)
        self.assertIn("~~J~~ ~~L~~ ~~X~~ (1) |", text)


class Choosing(SynchronousTestCase):
    def test_all_unless_told(self) -> None:
        wanted = Wanted([], "")
        self.assertEqual(len(wanted.backends()), len(REAL_BACKENDS))
        self.assertEqual(len(wanted.clients()), len(CLIENTS))
        self.assertTrue(wanted.oracle())

    def test_one_server_with_one_client(self) -> None:
        wanted = Wanted(["mlx-lm", "llm"], "")
        self.assertEqual([one.name for one in wanted.backends()], ["mlx-lm"])
        self.assertEqual([one.name for one in wanted.clients()], ["llm"])
        self.assertFalse(wanted.oracle())

    def test_the_oracle_alone(self) -> None:
        wanted = Wanted([ORACLE], "")
        self.assertEqual(wanted.clients(), [])
        self.assertTrue(wanted.oracle())

    def test_slow_answers_are_not_for_the_oracle(self) -> None:
        self.assertFalse(Wanted([], "chunk").oracle())

    def test_a_name_that_is_not_there(self) -> None:
        with self.assertRaises(SystemExit):
            Matrix(Wanted(["gpt"], ""), Path(self.mktemp()))
