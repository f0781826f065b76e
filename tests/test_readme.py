"""
Options, links and files in README.md exist.

`tests.settings.test_table` checks that its table has all settings.
"""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from blockops.settings.table import TABLE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


class ReadmeTests(SynchronousTestCase):
    def test_options_in_the_text_exist(self):
        options = {f"--{setting.option}" for setting in TABLE} | {"--config", "--help"}
        other_options = {
            "--port",
            "--model-path",
            "--tool-call-parser",
            "--enable-auto-tool-choice",
        }
        other_options |= {"--continuous-batching", "--jinja", "--model", "--now", "--no-"}
        mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README))
        self.assertEqual(mentioned - options - other_options, set())

    def test_link_targets_exist(self):
        links = re.findall(r"\]\(([^)#]+)\)", README)
        self.assertGreater(len(links), 2)
        self.assertEqual([link for link in links if not (ROOT / link).exists()], [])

    def test_mentioned_files_exist(self):
        for path in ("tests/live/run", ".ci/run", "blockops.service"):
            self.assertIn(path, README)
            self.assertTrue((ROOT / path).exists(), path)
