"""The official `openai` package for Node: it gets calls through blockops, and none without."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.live.harness import HERE, INSTALLS, needs, start_daemon, start_llama
from tests.live.tools import CALLING, FORMATS, PLAIN, TOOLS, messages

_FOLDER = Path(INSTALLS) / "node"
_WAYS = ("whole", "deltas", "helper")

_MISSING = needs("xllamacpp")
if not _MISSING and not (shutil.which("node") and (_FOLDER / "node_modules" / "openai").is_dir()):
    _MISSING = "no node, or no `openai` for it: `bash tests/live/run` tells which"

_CALLING = [text for text in CALLING if not text.key.endswith(("-sh", "-bash", "-exec", "-cmd"))]


def ask_in_node(url: str, keys: list[str], run: str = "", retries: int = 0) -> dict[str, Any]:
    """Return what the Node client got, by key."""
    questions = [{"key": key, "messages": messages(key), "run": run} for key in keys]
    done = subprocess.run(
        ["node", str(HERE / "node_client.mjs"), str(_FOLDER)],
        input=json.dumps({"url": url, "retries": retries, "tools": TOOLS, "questions": questions}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise AssertionError(done.stderr)
    return {answer["key"]: answer for answer in map(json.loads, done.stdout.splitlines())}


class WithBlockops(SynchronousTestCase):
    skip = _MISSING

    def setUp(self) -> None:
        self.daemon = start_daemon(self, "--backend", start_llama(self))

    def test_calls(self) -> None:
        heard = ask_in_node(self.daemon.url, [text.key for text in _CALLING])
        for expected in _CALLING:
            for way in _WAYS:
                with self.subTest(key=expected.key, way=way):
                    answer = heard[expected.key][way]
                    self.assertEqual(answer["calls"], [list(call) for call in expected.calls])
                    self.assertEqual(answer["text"], expected.content)
                    self.assertEqual(answer["reason"], "tool_calls")

    def test_text_stays_text(self) -> None:
        heard = ask_in_node(self.daemon.url, [text.key for text in PLAIN])
        for expected in PLAIN:
            for way in _WAYS:
                self.assertEqual(
                    heard[expected.key][way],
                    {"text": expected.reply, "calls": [], "reason": "stop"},
                )

    def test_an_agent_from_question_to_answer(self) -> None:
        keys = [f"{mark}-add" for mark in FORMATS]
        for key, answer in ask_in_node(self.daemon.url, keys, run="agent").items():
            expected = {"text": "The tool answered. All done.", "results": [42]}
            self.assertEqual(answer["agent"], expected, key)


class WithoutBlockops(SynchronousTestCase):
    """The control: the same client, the same backend, the same questions, and no call."""

    skip = _MISSING

    def test_no_calls(self) -> None:
        # llama.cpp hangs up behind an answer after it has promised to keep the connection.
        heard = ask_in_node(start_llama(self), [text.key for text in _CALLING], retries=9)
        for expected in _CALLING:
            for way in _WAYS:
                self.assertEqual(
                    heard[expected.key][way],
                    {"text": expected.reply, "calls": [], "reason": "stop"},
                )
