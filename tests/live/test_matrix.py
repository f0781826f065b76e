"""The matrix detects failures, missing results, and known failures that work."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.live.acceptance.cells import Cell, Outcome, ProxySetup
from tests.live.acceptance.clients import CLIENTS, FINAL_ANSWER, ClientResult, exclusive_output_file
from tests.live.acceptance.known_failures import KNOWN_FAILURES, LOST_TEXTS
from tests.live.acceptance.matrix import (
    ORACLE,
    TOOLS_IN_PROMPT,
    WITH_BLOCKOPS,
    WITHOUT_BLOCKOPS,
    Matrix,
    Row,
    Selection,
    check_cell,
    check_oracle,
    lost_texts,
)
from tests.live.acceptance.oracle import (
    Answer,
    Verdict,
    expected_answer,
    is_lost_by_server,
    known_texts,
)
from tests.live.acceptance.table import page, summary
from tests.live.real_backends import (
    LLAMA_CPP,
    LLAMA_CPP_TOOLS,
    MLX_LM_TOOLS,
    REAL_BACKENDS,
    VLLM_MLX,
)
from tests.live.tiny_model import TEXTS

OPENAI = next(each for each in CLIENTS if each.name == "openai (Python)")
TEXT_MODE = next(each for each in CLIENTS if each.name == "qwen-agent, calls in text")
AGENT = next(each for each in CLIENTS if each.name == "opencode")


@dataclass
class Recording:
    request_bytes: Any = b""
    response_bytes: Any = b""


def make_results(keys: str, *, is_good: bool = True) -> list[ClientResult]:
    """Return the results for `keys`, separated by spaces."""
    return [
        ClientResult(key, "stream", is_good, FINAL_ANSWER if is_good else "TOOL_CALL: ...")
        for key in keys.split()
    ]


class CellTests(SynchronousTestCase):
    def test_all_dialects_work(self) -> None:
        cell = Cell(LLAMA_CPP, OPENAI, WITH_BLOCKOPS)
        self.assertEqual(check_cell(cell, Outcome(make_results("j-add l-add x-add"))), "")

    def test_one_way_of_one_dialect_fails(self) -> None:
        outcome = Outcome(make_results("j-add l-add x-add") + make_results("x-add", is_good=False))
        self.assertIn("x-add stream", check_cell(Cell(LLAMA_CPP, OPENAI, WITH_BLOCKOPS), outcome))
        self.assertEqual(outcome.working_dialects, ["j", "l"])

    def test_the_tool_ran_but_its_result_was_not_sent(self) -> None:
        cell = Cell(LLAMA_CPP, OPENAI, WITH_BLOCKOPS)
        three_results = make_results("j-add l-add x-add")
        request = b'{"role": "tool", "content": "42"}'
        self.assertEqual(cell.check(three_results, Recording(request * 3), Recording()), [])
        self.assertEqual(
            cell.check(three_results, Recording(request), Recording()),
            ["3 tools ran, but 1 results were sent"],
        )

    def test_heartbeats_are_required(self) -> None:
        beat = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":null}]}\n\n'
        for style, beats in (("chunk", beat), ("comment", b": heartbeat\n\n")):
            cell = Cell(LLAMA_CPP, OPENAI, ProxySetup(heartbeat_style=style))
            request = b'{"content":"42"}'
            self.assertEqual(
                cell.check(make_results("j-add"), Recording(request, beats), Recording()), []
            )
            self.assertEqual(
                cell.check(make_results("j-add"), Recording(request), Recording()),
                ["0 heartbeats in 1 conversations"],
            )

    def test_tools_must_be_in_the_prompt_only(self) -> None:
        cell = Cell(LLAMA_CPP, OPENAI, TOOLS_IN_PROMPT)
        self.assertEqual(cell.keys, ["j-add"])
        prompt = b'{"messages": [{"content": "<tools>..."}]'
        request = Recording(b'{"content":"42"}')
        self.assertEqual(cell.check(make_results("j-add"), request, Recording(prompt + b"}")), [])
        for wrong in (prompt + b', "tools": []}', b"{}"):
            self.assertEqual(
                len(cell.check(make_results("j-add"), request, Recording(wrong))), 1, wrong
            )

    def test_no_results(self) -> None:
        self.assertTrue(check_cell(Cell(LLAMA_CPP, OPENAI, WITH_BLOCKOPS), Outcome()))

    def test_an_error_is_a_failure(self) -> None:
        outcome = Outcome(make_results("j-add l-add x-add"), ["OSError: no"])
        self.assertEqual(check_cell(Cell(LLAMA_CPP, OPENAI, WITH_BLOCKOPS), outcome), "OSError: no")

    def test_a_known_failure(self) -> None:
        cell = Cell(MLX_LM_TOOLS, OPENAI, WITH_BLOCKOPS)
        lost = Outcome(make_results("j-add l-add") + make_results("x-add", is_good=False))
        self.assertEqual(check_cell(cell, lost), "")

    def test_a_known_failure_that_works(self) -> None:
        cell = Cell(MLX_LM_TOOLS, OPENAI, WITH_BLOCKOPS)
        problem = check_cell(cell, Outcome(make_results("j-add l-add x-add")))
        self.assertEqual(problem, "works, but is listed in known_failures.py: ['x']")

    def test_nothing_may_work_without_blockops(self) -> None:
        cell = Cell(LLAMA_CPP, OPENAI, WITHOUT_BLOCKOPS)
        self.assertEqual(
            check_cell(cell, Outcome(make_results("j-add l-add x-add", is_good=False))), ""
        )
        self.assertIn("works", check_cell(cell, Outcome(make_results("j-add l-add x-add"))))

    def test_a_client_that_parses_calls_itself(self) -> None:
        cell = Cell(LLAMA_CPP, TEXT_MODE, WITHOUT_BLOCKOPS)
        self.assertEqual(check_cell(cell, Outcome(make_results("j-add"))), "")

    def test_one_dialect_if_a_grammar_permits_no_other(self) -> None:
        smol = next(each for each in CLIENTS if each.name == "smolagents")
        self.assertEqual(Cell(LLAMA_CPP_TOOLS, smol, WITH_BLOCKOPS).keys, ["j-smol"])
        self.assertEqual(len(Cell(LLAMA_CPP, smol, WITH_BLOCKOPS).keys), 3)

    def test_agents_try_all_dialects_with_one_server_only(self) -> None:
        self.assertEqual(len(Cell(LLAMA_CPP, AGENT, WITH_BLOCKOPS).keys), 3)
        self.assertEqual(Cell(LLAMA_CPP_TOOLS, AGENT, WITH_BLOCKOPS).keys, ["l-oc-bash"])
        self.assertEqual(Cell(LLAMA_CPP, AGENT, WITHOUT_BLOCKOPS).keys, ["l-oc-bash"])

    def test_the_file_of_another_run_is_removed(self) -> None:
        file = Path(self.mktemp()) / "out.txt"
        file.parent.parent.mkdir(exist_ok=True)
        with exclusive_output_file(file):
            file.write_text("tiny-ok\n")
            with file.with_suffix(".lock").open("w") as lock, self.assertRaises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with exclusive_output_file(file):
            self.assertFalse(file.exists())


class OracleTests(SynchronousTestCase):
    def test_lost_texts_must_be_the_known_ones(self) -> None:
        texts = {f"{text.key}#{text.turn}": text for text in TEXTS}
        known = lost_texts(LLAMA_CPP_TOOLS, WITH_BLOCKOPS)
        lost = [Verdict(texts[name], ("stream",)) for name in known]
        complete = [Verdict(texts["j-add#0"])]
        self.assertEqual(check_oracle(known, lost + complete), "")
        self.assertIn("not lost", check_oracle(known, complete))
        self.assertIn("but not listed", check_oracle(set(), lost))

    def test_tools_in_the_prompt_lose_no_texts(self) -> None:
        self.assertEqual(lost_texts(VLLM_MLX, TOOLS_IN_PROMPT), set())
        self.assertEqual(lost_texts(VLLM_MLX, WITH_BLOCKOPS), LOST_TEXTS[VLLM_MLX])

    def test_problems_are_reported(self) -> None:
        verdicts = [Verdict(TEXTS[0], ("stream",), "stream: no response")]
        self.assertIn("no response", check_oracle(set(), verdicts))

    def test_only_a_server_that_changed_the_text_has_lost_it(self) -> None:
        text = next(each for each in TEXTS if each.key == "x-add" and each.turn == 0)
        empty = Answer("", [], "tool_calls")
        unchanged = Answer(text.answer, [], "stop")
        call = Answer("", [("add", {"a": 17, "b": 25})], "tool_calls")
        self.assertTrue(is_lost_by_server(text, empty, empty))
        self.assertFalse(is_lost_by_server(text, unchanged, empty))
        self.assertFalse(is_lost_by_server(text, call, empty))

    def test_a_truncated_call_is_not_complete(self) -> None:
        text = next(each for each in TEXTS if each.key == "j-open" and each.turn == 0)
        self.assertEqual(expected_answer(text).finish_reason, "length")

    def test_every_text_is_requested(self) -> None:
        self.assertEqual(len(known_texts(LLAMA_CPP)), 144)
        self.assertEqual(len(known_texts(LLAMA_CPP_TOOLS)), 142)

    def test_lost_texts_exist(self) -> None:
        names = {f"{text.key}#{text.turn}" for text in TEXTS}
        self.assertEqual(set().union(*LOST_TEXTS.values()) - names, set())


class PageTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.matrix = Matrix(Selection([], ""), Path(self.mktemp()))

    def test_one_row(self) -> None:
        outcome = Outcome(make_results("j-add l-add") + make_results("x-add", is_good=False))
        self.matrix.rows.append(Row(MLX_LM_TOOLS, OPENAI.name, outcome=outcome))
        text = page(self.matrix)
        self.assertIn("J L ~~X~~ (1)", text)
        self.assertIn(f"1. {KNOWN_FAILURES[0].reason}", text)
        self.assertEqual(summary(self.matrix), "PASSED (successes=1)")

    def test_a_failure_and_a_skipped_cell(self) -> None:
        self.matrix.rows += [
            Row(LLAMA_CPP, OPENAI.name, problem="it broke\nsomewhere"),
            Row(MLX_LM_TOOLS, OPENAI.name, skip_reason="not installed"),
        ]
        text = page(self.matrix)
        self.assertIn("**FAILED** (1)", text)
        self.assertIn("1. it broke\n", text)
        self.assertIn("not run (2)", text)
        self.assertEqual(summary(self.matrix), "FAILED (skips=1, failures=1)")

    def test_texts_are_counted(self) -> None:
        verdicts = [Verdict(text) for text in known_texts(LLAMA_CPP)]
        self.matrix.rows.append(Row(LLAMA_CPP, ORACLE, verdicts=verdicts))
        self.assertIn("| each memorized text | 144 of 144 |", page(self.matrix))

    def test_a_separate_column_without_blockops(self) -> None:
        outcome = Outcome(make_results("j-add l-add x-add", is_good=False))
        self.matrix.rows.append(Row(LLAMA_CPP, OPENAI.name, WITHOUT_BLOCKOPS, outcome=outcome))
        text = page(self.matrix)
        self.assertIn("without blockops", text)
        self.assertIn("~~J~~ ~~L~~ ~~X~~ (1) |", text)


class SelectionTests(SynchronousTestCase):
    def test_all_by_default(self) -> None:
        selection = Selection([], "")
        self.assertEqual(len(selection.backends()), len(REAL_BACKENDS))
        self.assertEqual(len(selection.clients()), len(CLIENTS))
        self.assertTrue(selection.includes_oracle())

    def test_one_server_with_one_client(self) -> None:
        selection = Selection(["mlx-lm", "llm"], "")
        self.assertEqual([each.name for each in selection.backends()], ["mlx-lm"])
        self.assertEqual([each.name for each in selection.clients()], ["llm"])
        self.assertFalse(selection.includes_oracle())

    def test_the_oracle_alone(self) -> None:
        selection = Selection([ORACLE], "")
        self.assertEqual(selection.clients(), [])
        self.assertTrue(selection.includes_oracle())

    def test_no_oracle_with_slow_responses(self) -> None:
        self.assertFalse(Selection([], "chunk").includes_oracle())

    def test_an_unknown_name(self) -> None:
        with self.assertRaises(SystemExit):
            Matrix(Selection(["gpt"], ""), Path(self.mktemp()))
