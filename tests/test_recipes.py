"""The recipes: a page for each server and client of the matrix, whose links and options exist."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from blockops.settings.table import TABLE
from tests.live.acceptance.clients import CLIENTS
from tests.live.real_backends import REAL_BACKENDS

DOCS = Path(__file__).parent.parent / "docs"
RECIPES = DOCS / "recipes"
PAGES = {page.stem: page.read_text("utf-8") for page in RECIPES.glob("*.md")}


class RecipesTests(SynchronousTestCase):
    def test_each_server_and_each_client_has_a_page(self) -> None:
        titles = {page.splitlines()[0].removeprefix("# ") for page in PAGES.values()}
        servers = {backend.name.partition(",")[0] for backend in REAL_BACKENDS}
        clients = {client.name.partition(",")[0] for client in CLIENTS}
        clients = {re.sub(r" \((\w+)\)", r" for \1", name) for name in clients}
        self.assertEqual((servers | clients) - titles, set())

    def test_each_page_is_in_the_index(self) -> None:
        linked = set(re.findall(r"\]\(([a-z-]+)\.md\)", PAGES["README"]))
        self.assertEqual(linked, set(PAGES) - {"README"})

    def test_links_lead_somewhere(self) -> None:
        for name, text in PAGES.items():
            links = re.findall(r"\]\(([^)#:]+)\)", text)
            lost = [link for link in links if not (RECIPES / link).exists()]
            self.assertEqual(lost, [], name)

    def test_blockops_is_started_with_options_that_it_has(self) -> None:
        ours = {f"--{setting.option}" for setting in TABLE}
        for name, text in PAGES.items():
            for command in re.findall(r"twistd -n blockops([^\n`]*)", text):
                named = set(re.findall(r"--[a-z-]+", command))
                self.assertEqual(named - ours, set(), name)

    def test_what_was_only_read_is_marked(self) -> None:
        for name in ("sglang", "ollama"):
            self.assertIn("*Read*, not run.", PAGES[name])
