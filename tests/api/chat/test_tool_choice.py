"""What a request demands of calls, in all the shapes that clients send."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.api.chat.tool_choice import ToolChoice, name_of

SEARCH = {"type": "function", "function": {"name": "search"}}


def chosen(tool_choice: Any = None, function_call: Any = None) -> ToolChoice:
    return ToolChoice.of(tool_choice, function_call)


def allowed(tools: Any, mode: Any = "auto") -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


class Words(SynchronousTestCase):
    def test_words(self) -> None:
        for word in ("none", "auto", "required"):
            self.assertEqual(chosen(word), ToolChoice(word))
            self.assertEqual(chosen(None, word), ToolChoice(word))

    def test_the_newer_field_counts(self) -> None:
        self.assertEqual(chosen("auto", "none"), ToolChoice("auto"))

    def test_what_says_nothing(self) -> None:
        says_nothing: list[Any] = [None, 7, [], {}, {"type": "function"}, {"function": "search"}]
        for odd in says_nothing:
            self.assertEqual(chosen(odd), ToolChoice("auto"), odd)


class Names(SynchronousTestCase):
    def test_one_of_all(self) -> None:
        for named in (
            SEARCH,
            {"type": "function", "name": "search"},
            {"type": "custom", "custom": {"name": "search"}},
        ):
            self.assertEqual(chosen(named), ToolChoice("function", "search"))
        self.assertEqual(chosen(None, {"name": "search"}), ToolChoice("function", "search"))

    def test_of_tools(self) -> None:
        self.assertEqual(name_of(SEARCH), "search")
        nameless: list[Any] = [None, 1, {}, {"function": None}, {"function": {"name": 1}}]
        for odd in nameless:
            self.assertIsNone(name_of(odd))


class Allowed(SynchronousTestCase):
    def test_both_shapes(self) -> None:
        flat = {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "search"}]}
        for choice in (allowed([SEARCH]), flat):
            self.assertEqual(chosen(choice), ToolChoice("auto", allowed=frozenset({"search"})))

    def test_required(self) -> None:
        self.assertEqual(chosen(allowed([SEARCH], "required")).mode, "required")
        self.assertEqual(chosen(allowed([SEARCH], None)).mode, "auto")

    def test_no_list_allows_all(self) -> None:
        for odd in (allowed(None), allowed("x"), {"type": "allowed_tools", "allowed_tools": 1}):
            self.assertEqual(chosen(odd), ToolChoice("auto"))

    def test_who_is_allowed(self) -> None:
        delete = {"type": "function", "function": {"name": "delete"}}
        tools = [SEARCH, delete, {"type": "web_search"}, 1]
        self.assertEqual(chosen(allowed([SEARCH, {}, 1])).allowed_of(tools), [SEARCH])
        self.assertEqual(chosen("auto").allowed_of(tools), tools)
        self.assertEqual(chosen(allowed([])).allowed_of(tools), [])
