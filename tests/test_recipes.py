"""The recipes: one page for each server and client of the matrix; links and options exist."""

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


class RecipeTests(SynchronousTestCase):
    def test_each_server_and_each_client_has_a_page(self) -> None:
        titles = {page.splitlines()[0].removeprefix("# ") for page in PAGES.values()}
        servers = {backend.name.partition(",")[0] for backend in REAL_BACKENDS}
        clients = {client.name.partition(",")[0] for client in CLIENTS}
        clients = {re.sub(r" \((\w+)\)", r" for \1", name) for name in clients}
        self.assertEqual((servers | clients) - titles, set())

    def test_each_page_is_in_the_index(self) -> None:
        linked = set(re.findall(r"\]\(([a-z-]+)\.md\)", PAGES["README"]))
        self.assertEqual(linked, set(PAGES) - {"README"})

    def test_link_targets_exist(self) -> None:
        for name, text in PAGES.items():
            links = re.findall(r"\]\(([^)#:]+)\)", text)
            missing = [link for link in links if not (RECIPES / link).exists()]
            self.assertEqual(missing, [], name)

    def test_options_of_blockops_exist(self) -> None:
        options = {f"--{setting.option}" for setting in TABLE}
        for name, text in PAGES.items():
            for command in re.findall(r"twistd -n blockops([^\n`]*)", text):
                mentioned = set(re.findall(r"--[a-z-]+", command))
                self.assertEqual(mentioned - options, set(), name)

    def test_recipes_that_were_not_run_are_marked(self) -> None:
        for name in ("sglang", "ollama"):
            self.assertIn("*Read*, not run.", PAGES[name])
