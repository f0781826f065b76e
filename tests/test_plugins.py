"""Formats of other packages are found; the example in the documentation is one, and works."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import twisted.plugins
from blockops import plugins as formats
from blockops.toolcalls.dialects.registry import BUILT_IN
from blockops.toolcalls.options import Rules
from blockops.toolcalls.reader import Opener, ToolCallFormat
from tests.toolcalls.near_misses import CALLS
from tests.toolcalls.reading import OFFER, Call, ReadCase, say

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLE = DOCS / "example_format"

CALL = (
    "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
)


class Named:
    """A format with this name and opener, which is never read."""

    def __init__(self, name: str, opener: str) -> None:
        self.name = name
        self.openers = (Opener(opener),)


class KnownFormatsTests(SynchronousTestCase):
    def found(self, *plugins: Named) -> tuple[ToolCallFormat, ...]:
        self.patch(formats, "getPlugins", lambda _: list(plugins))
        return formats.known_formats()

    def test_our_own_come_first_then_plugins_by_name(self) -> None:
        zebra, ant = Named("zebra", "z"), Named("ant", "a")
        self.assertEqual((*BUILT_IN, ant, zebra), self.found(zebra, ant))

    def test_a_name_stands_once(self) -> None:
        error = self.assertRaises(ValueError, self.found, Named("xml", "x"))
        self.assertIn("two tool-call formats are called 'xml'", str(error))

    def test_openers_are_checked(self) -> None:
        for opener in ("", "x" * 65, "a\nb", "`x"):
            error = self.assertRaises(ValueError, self.found, Named("odd", opener))
            self.assertIn("tool-call format 'odd': the opener", str(error))
        self.assertEqual(4, len(self.found(Named("even", "x" * 64))))


class ExampleTests(ReadCase):
    """The package in `docs/example_format`, installed where Twisted looks for plugins."""

    def setUp(self) -> None:
        self.addCleanup(sys.modules.pop, "glm_format", None)
        self.addCleanup(sys.modules.pop, "twisted.plugins.glm_format_plugin", None)
        place = Path(self.mktemp()).absolute()
        shutil.copytree(EXAMPLE, place)
        self.patch(sys, "path", [str(place), *sys.path])
        plugins = [*twisted.plugins.__path__, str(place / "twisted" / "plugins")]
        self.patch(twisted.plugins, "__path__", plugins)
        self.rules = Rules(formats=formats.known_formats())

    def test_is_found(self) -> None:
        self.assertEqual("glm", self.rules.formats[-1].name)

    def test_calls(self) -> None:
        arguments = '{"city": "Oslo", "days": 3}'
        self.assert_call(CALL, "weather", arguments, rules=self.rules)
        self.assert_call(CALL[:-13], "weather", arguments, rules=self.rules)
        self.assert_call("<tool_call>now</tool_call>", "now", "{}", rules=self.rules)
        joined = self.read(f"A {CALL} B", rules=self.rules)
        self.assertEqual("A B", joined.content)

    def test_without_it_they_are_text(self) -> None:
        self.assert_text(CALL)

    def test_what_is_no_call(self) -> None:
        for text in ("<tool_call>now", "<tool_call>now x", "<tool_call>!", "<tool_call> now <b>"):
            self.assert_text(text, rules=self.rules)
        self.assert_text(f"`{CALL.replace('weather', 'nope')}`".replace("\n", ""), rules=self.rules)
        fenced = Rules(formats=self.rules.formats, fenced_calls=True)
        self.assert_text(f"```\n{CALL.replace('weather', 'nope')}\n```", rules=fenced)

    def test_cut_off(self) -> None:
        for text in (CALL[:-13], CALL[:60]):
            joined = self.read(text, rules=self.rules, reason="length")
            self.assertEqual([Call("weather", "")], joined.calls)
        self.assertFalse(self.read(CALL[:60], rules=self.rules).calls[0].ended)

    def test_the_others_still_read_theirs(self) -> None:
        for call in CALLS:
            self.assertEqual(say([call], OFFER)[0], say([call], OFFER, self.rules)[0])

    def test_the_page_shows_the_module(self) -> None:
        page = (DOCS / "formats.md").read_text()
        for part in (
            "glm_format/__init__.py",
            "twisted/plugins/glm_format_plugin.py",
            "pyproject.toml",
        ):
            self.assertIn((EXAMPLE / part).read_text(), page)
