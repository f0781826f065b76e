"""What README.md says is true, as far as that can be read off."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from blockops.settings import TABLE, Setting

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def row(setting: Setting) -> str:
    """Return the row of `setting` in the table of settings."""
    option, environ = f"`--{setting.option}`", f"`{setting.environ}`"
    if setting.secret:
        option, environ = f"`{setting.option}`, file only", f"{environ} or `{setting.environ}_FILE`"
    told = setting.help.replace("<think>", "`<think>`")
    return f"| {option} | {environ} | {setting.shown or 'none'} | {told} |"


class ReadmeTests(SynchronousTestCase):
    def test_every_setting_is_in_the_table(self):
        """If this fails: the rows of the table are exactly those that `row` makes."""
        for setting in TABLE:
            self.assertIn(row(setting), README)

    def test_no_other_setting_is_in_the_table(self):
        table = README.partition("## Settings")[2].partition("## What")[0]
        rows = [line for line in table.splitlines() if line.startswith("| `")]
        self.assertEqual(rows, [row(setting) for setting in TABLE])

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
