"""What README.md names exists. That its settings are all of them is told in `test_settings`."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from blockops.settings.table import TABLE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


class ReadmeTests(SynchronousTestCase):
    def test_options_in_the_text_exist(self):
        ours = {f"--{setting.option}" for setting in TABLE} | {"--config", "--help"}
        theirs = {"--port", "--model-path", "--tool-call-parser", "--enable-auto-tool-choice"}
        theirs |= {"--continuous-batching", "--jinja", "--model", "--now", "--no-"}
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README))
        self.assertEqual(named - ours - theirs, set())

    def test_links_lead_somewhere(self):
        links = re.findall(r"\]\(([^)#]+)\)", README)
        self.assertGreater(len(links), 2)
        self.assertEqual([link for link in links if not (ROOT / link).exists()], [])

    def test_commands_that_are_files_exist(self):
        for path in ("tests/live/run", ".ci/run", "blockops.service"):
            self.assertIn(path, README)
            self.assertTrue((ROOT / path).exists(), path)
