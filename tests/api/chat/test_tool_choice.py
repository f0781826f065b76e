"""`tool_choice` in all shapes that clients send."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.api.chat.tool_choice import ToolChoice, tool_name

SEARCH = {"type": "function", "function": {"name": "search"}}


def parse(tool_choice: Any = None, function_call: Any = None) -> ToolChoice:
    return ToolChoice.parse(tool_choice, function_call)


def allowed(tools: Any, mode: Any = "auto") -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


class ModeTests(SynchronousTestCase):
    def test_modes(self) -> None:
        for mode in ("none", "auto", "required"):
            self.assertEqual(parse(mode), ToolChoice(mode))
            self.assertEqual(parse(None, mode), ToolChoice(mode))

    def test_newer_field_wins(self) -> None:
        self.assertEqual(parse("auto", "none"), ToolChoice("auto"))

    def test_not_understood(self) -> None:
        invalid: list[Any] = [None, 7, [], {}, {"type": "function"}, {"function": "search"}]
        for odd in invalid:
            self.assertEqual(parse(odd), ToolChoice("auto"), odd)


class NameTests(SynchronousTestCase):
    def test_one_function(self) -> None:
        for choice in (
            SEARCH,
            {"type": "function", "name": "search"},
            {"type": "custom", "custom": {"name": "search"}},
        ):
            self.assertEqual(parse(choice), ToolChoice("function", "search"))
        self.assertEqual(parse(None, {"name": "search"}), ToolChoice("function", "search"))

    def test_of_tools(self) -> None:
        self.assertEqual(tool_name(SEARCH), "search")
        nameless: list[Any] = [None, 1, {}, {"function": None}, {"function": {"name": 1}}]
        for odd in nameless:
            self.assertIsNone(tool_name(odd))


class AllowedToolsTests(SynchronousTestCase):
    def test_both_shapes(self) -> None:
        flat = {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "search"}]}
        for choice in (allowed([SEARCH]), flat):
            self.assertEqual(parse(choice), ToolChoice("auto", allowed_names=frozenset({"search"})))

    def test_required(self) -> None:
        self.assertEqual(parse(allowed([SEARCH], "required")).mode, "required")
        self.assertEqual(parse(allowed([SEARCH], None)).mode, "auto")

    def test_no_list_allows_all(self) -> None:
        for odd in (allowed(None), allowed("x"), {"type": "allowed_tools", "allowed_tools": 1}):
            self.assertEqual(parse(odd), ToolChoice("auto"))

    def test_filter_tools(self) -> None:
        delete = {"type": "function", "function": {"name": "delete"}}
        tools = [SEARCH, delete, {"type": "web_search"}, 1]
        self.assertEqual(parse(allowed([SEARCH, {}, 1])).filter_tools(tools), [SEARCH])
        self.assertEqual(parse("auto").filter_tools(tools), tools)
        self.assertEqual(parse(allowed([])).filter_tools(tools), [])
