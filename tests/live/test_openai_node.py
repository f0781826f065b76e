"""The official `openai` package for Node receives calls through blockops, and none without it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.live.harness import HERE, INSTALLS, skip_without, start_daemon, start_llama
from tests.live.tiny_model import CALL_TEXTS, DIALECTS, PLAIN_TEXTS, TOOLS, messages

NODE_FOLDER = Path(INSTALLS) / "node"
WAYS = ("non_streaming", "deltas", "helper")

SKIP_REASON = skip_without("xllamacpp")
if not SKIP_REASON and not (
    shutil.which("node") and (NODE_FOLDER / "node_modules" / "openai").is_dir()
):
    SKIP_REASON = "node or its `openai` package is not installed: see `bash tests/live/run`"

NODE_CALL_TEXTS = [
    text for text in CALL_TEXTS if not text.key.endswith(("-sh", "-bash", "-exec", "-cmd"))
]


def run_node_client(url: str, keys: list[str], run: str = "", retries: int = 0) -> dict[str, Any]:
    """Return the results of the Node client by key."""
    questions = [{"key": key, "messages": messages(key), "run": run} for key in keys]
    done = subprocess.run(
        ["node", str(HERE / "node_client.mjs"), str(NODE_FOLDER)],
        input=json.dumps({"url": url, "retries": retries, "tools": TOOLS, "questions": questions}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise AssertionError(done.stderr)
    return {result["key"]: result for result in map(json.loads, done.stdout.splitlines())}


class WithBlockopsTests(SynchronousTestCase):
    skip = SKIP_REASON

    def setUp(self) -> None:
        self.daemon = start_daemon(self, "--backend", start_llama(self))

    def test_calls(self) -> None:
        results = run_node_client(self.daemon.url, [text.key for text in NODE_CALL_TEXTS])
        for expected in NODE_CALL_TEXTS:
            for way in WAYS:
                with self.subTest(key=expected.key, way=way):
                    result = results[expected.key][way]
                    self.assertEqual(result["calls"], [list(call) for call in expected.calls])
                    self.assertEqual(result["text"], expected.content)
                    self.assertEqual(result["reason"], "tool_calls")

    def test_text_stays_text(self) -> None:
        results = run_node_client(self.daemon.url, [text.key for text in PLAIN_TEXTS])
        for expected in PLAIN_TEXTS:
            for way in WAYS:
                self.assertEqual(
                    results[expected.key][way],
                    {"text": expected.answer, "calls": [], "reason": "stop"},
                )

    def test_a_complete_agent_loop(self) -> None:
        keys = [f"{mark}-add" for mark in DIALECTS]
        for key, result in run_node_client(self.daemon.url, keys, run="agent").items():
            expected = {"text": "The tool answered. All done.", "results": [42]}
            self.assertEqual(result["agent"], expected, key)


class WithoutBlockopsTests(SynchronousTestCase):
    """The control: without blockops the same client receives no call from the same backend."""

    skip = SKIP_REASON

    def test_no_calls(self) -> None:
        # Retries: llama.cpp may close a connection after a response that announced keep-alive.
        results = run_node_client(
            start_llama(self), [text.key for text in NODE_CALL_TEXTS], retries=9
        )
        for expected in NODE_CALL_TEXTS:
            for way in WAYS:
                self.assertEqual(
                    results[expected.key][way],
                    {"text": expected.answer, "calls": [], "reason": "stop"},
                )
