"""docs/doctor.md lists all topics and verdicts."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parents[3]
SOURCES = (ROOT / "blockops" / "cli" / "doctor").glob("*.py")


class PageTests(SynchronousTestCase):
    def test_topics_and_verdicts(self) -> None:
        page = (ROOT / "docs" / "doctor.md").read_text()
        rows = dict(re.findall(r"^\| (\w+) \| .* \| (.*) \|$", page, re.MULTILINE))
        code = "\n".join(path.read_text() for path in SOURCES)
        found = re.findall(r'topic="(\w+)",\s+verdict="([\w ]+)"', code)
        self.assertGreater(len(found), 15)
        for topic, verdict in found:
            self.assertIn(f"`{verdict}`", rows[topic], topic)
