"""Dialects of other packages are found; the example in the documentation works."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import twisted.plugins
from blockops import plugins
from blockops.toolcalls.dialect import Dialect, Opener
from blockops.toolcalls.dialects import BUILT_IN
from blockops.toolcalls.options import TranslationOptions
from tests.toolcalls.near_misses import CALLS
from tests.toolcalls.reading import TOOLS, Call, ParserTestCase, parse_pieces

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLE = DOCS / "example_format"

CALL = (
    "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
)


class NamedDialect:
    """A dialect with a name and an opener, but no reader."""

    def __init__(self, name: str, opener: str) -> None:
        self.name = name
        self.openers = (Opener(opener),)


class KnownDialectsTests(SynchronousTestCase):
    def known_dialects(self, *dialects: NamedDialect) -> tuple[Dialect, ...]:
        self.patch(plugins, "getPlugins", lambda _: list(dialects))
        return plugins.known_dialects()

    def test_built_in_dialects_precede_plugins_sorted_by_name(self) -> None:
        zebra, ant = NamedDialect("zebra", "z"), NamedDialect("ant", "a")
        self.assertEqual((*BUILT_IN, ant, zebra), self.known_dialects(zebra, ant))

    def test_names_are_unique(self) -> None:
        error = self.assertRaises(ValueError, self.known_dialects, NamedDialect("xml", "x"))
        self.assertIn("two tool-call dialects have the name 'xml'", str(error))

    def test_openers_are_validated(self) -> None:
        for opener in ("", "x" * 65, "a\nb", "`x"):
            error = self.assertRaises(ValueError, self.known_dialects, NamedDialect("odd", opener))
            self.assertIn("tool-call dialect 'odd': the opener", str(error))
        self.assertEqual(4, len(self.known_dialects(NamedDialect("even", "x" * 64))))


class ExampleTests(ParserTestCase):
    """Installs the package in `docs/example_format` where Twisted looks for plugins."""

    def setUp(self) -> None:
        self.addCleanup(sys.modules.pop, "glm_format", None)
        self.addCleanup(sys.modules.pop, "twisted.plugins.glm_format_plugin", None)
        folder = Path(self.mktemp()).absolute()
        shutil.copytree(EXAMPLE, folder)
        self.patch(sys, "path", [str(folder), *sys.path])
        paths = [*twisted.plugins.__path__, str(folder / "twisted" / "plugins")]
        self.patch(twisted.plugins, "__path__", paths)
        self.options = TranslationOptions(dialects=plugins.known_dialects())

    def test_the_dialect_is_found(self) -> None:
        self.assertEqual("glm", self.options.dialects[-1].name)

    def test_calls_are_read(self) -> None:
        arguments = '{"city": "Oslo", "days": 3}'
        self.assert_call(CALL, "weather", arguments, options=self.options)
        self.assert_call(CALL[:-13], "weather", arguments, options=self.options)
        self.assert_call("<tool_call>now</tool_call>", "now", "{}", options=self.options)
        output = self.parse(f"A {CALL} B", options=self.options)
        self.assertEqual("A B", output.content)

    def test_without_the_package_they_are_text(self) -> None:
        self.assert_text(CALL)

    def test_not_a_call(self) -> None:
        for text in ("<tool_call>now", "<tool_call>now x", "<tool_call>!", "<tool_call> now <b>"):
            self.assert_text(text, options=self.options)
        self.assert_text(
            f"`{CALL.replace('weather', 'nope')}`".replace("\n", ""), options=self.options
        )
        fenced_calls = TranslationOptions(dialects=self.options.dialects, fenced_calls=True)
        self.assert_text(f"```\n{CALL.replace('weather', 'nope')}\n```", options=fenced_calls)

    def test_truncated_calls(self) -> None:
        for text in (CALL[:-13], CALL[:60]):
            output = self.parse(text, options=self.options, reason="length")
            self.assertEqual([Call("weather", "")], output.calls)
        self.assertFalse(self.parse(CALL[:60], options=self.options).calls[0].is_finished)

    def test_other_dialects_read_the_same(self) -> None:
        for call in CALLS:
            self.assertEqual(
                parse_pieces([call], TOOLS)[0], parse_pieces([call], TOOLS, self.options)[0]
            )

    def test_the_page_links_to_the_files(self) -> None:
        page = (DOCS / "formats.md").read_text()
        files = [path for path in EXAMPLE.rglob("*.*") if "__pycache__" not in path.parts]
        self.assertEqual(3, len(files))
        for path in files:
            self.assertIn(f"]({path.relative_to(DOCS)})", page)
