"""
The same rules once more, slow and simple: the text at once, character by character.

Written independently of the parser, for comparison with it. It decides well-formed calls only, and
raises `Undecided` where repairs, missing tags or broken JSON would have to be judged.
"""

from __future__ import annotations

import json
import re
from typing import Any

WHITESPACE = " \t\r\n\f\v"
OPENERS = ("<tool_call>", "TOOL_CALL:", "<function")
ARGUMENTS = ("arguments", "args", "parameters", "input")
SPACE = re.compile(r"[ \t\r\n]*")
PARAMETER = r"<parameter=(\w+)>([^<]*)</parameter>[ \t\r\n]*"
FUNCTION = re.compile(rf"<function=(\w+)>[ \t\r\n]*((?:{PARAMETER})*)</function>")
CLOSED = re.compile(r"[ \t\r\n]*</tool_call>")

Call = tuple[str, dict[str, Any]]


class Undecided(Exception):
    """The text needs rules that this parser does not have."""


def parse(text: str, offered: set[str]) -> tuple[str, list[Call]]:
    """Return the content and the calls of a complete answer."""
    parts = [""]
    calls: list[Call] = []
    line = ""
    pos = 0
    while pos < len(text):
        end, found = step(text, pos, line, offered)
        if found:
            calls += found
            parts.append("")
            line = ""
        else:
            parts[-1] += text[pos:end]
            line = "" if text[pos:end].endswith("</think>") else line + text[pos:end]
            line = line.rpartition("\n")[2]
        pos = end
    return joined_content(parts), calls


def joined_content(parts: list[str]) -> str:
    """Join the texts around calls."""
    content = ""
    for index, part in enumerate(parts):
        is_last = index == len(parts) - 1
        text = part if is_last else part.rstrip(WHITESPACE)
        if index and not content:
            text = text.lstrip(WHITESPACE)
        if index and is_last and not part.strip(WHITESPACE):
            text = ""
        content += text
    return content


def step(text: str, pos: int, line: str, offered: set[str]) -> tuple[int, list[Call]]:
    """Return the end of the next part, and its calls; `line` is the line's text before `pos`."""
    if text[pos] in "`~":
        return code_end(text, pos, line), []
    if text.startswith("<think>", pos):
        end = text.find("</think>", pos)
        return (end + len("</think>") if end >= 0 else len(text)), []
    for opener in OPENERS:
        if text.startswith(opener, pos) and (opener[1] == "t" or not line.strip(" \t")):
            end, calls = call_at(text, pos, opener, offered)
            return (end, calls) if calls else (pos + len(opener), [])
    return pos + 1, []


def code_end(text: str, pos: int, line: str) -> int:
    """Return the end of the code that starts at `pos`."""
    mark = text[pos]
    size = len(re.match(re.escape(mark) + "+", text[pos:]).group())  # type: ignore[union-attr]
    run_end = pos + size
    line_end = text.find("\n", pos)
    rest = text[run_end:] if line_end < 0 else text[run_end:line_end]
    opens = re.fullmatch(r"[ \t>*+.)0-9-]*", line) and size >= 3
    if opens and (mark == "~" or "`" not in rest):
        if line_end < 0:
            return len(text)
        closing = re.compile(rf"^[ \t>]*{re.escape(mark)}{{{size},}}[ \t\r]*$", re.MULTILINE)
        closed = closing.search(text, line_end + 1)
        return closed.end() if closed else len(text)
    if mark == "~":
        return run_end
    for run in re.finditer("`+", rest):
        if len(run.group()) == size:
            return run_end + run.end()
    return run_end + len(rest)


def call_at(text: str, pos: int, opener: str, offered: set[str]) -> tuple[int, list[Call]]:
    """Return the end of the calls after an opener, and the calls; empty if it opens none."""
    start = pos + len(opener)
    inner = SPACE.match(text, start).end()  # type: ignore[union-attr]
    if opener == "<function":
        return functions(text, pos, offered, is_tagged=False)
    if opener == "<tool_call>" and re.compile(r"<function[ \t\r\n=]").match(text, inner):
        return functions(text, inner, offered, is_tagged=True)
    if text[inner : inner + 1] != "{":
        if text[inner : inner + 1] == "[" and opener == "<tool_call>":
            raise Undecided
        return start, []
    try:
        value, end = json.JSONDecoder(object_pairs_hook=unique_keys).raw_decode(text, inner)
    except (ValueError, RecursionError) as error:
        raise Undecided from error
    call = as_call(value)
    if call is None or opener == "TOOL_CALL:":
        return end, [call] if call else []
    return tag_end(text, end), [call]


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; undecided if a key is repeated."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise Undecided
    return dict(pairs)


def as_call(value: dict[str, Any]) -> Call | None:
    """Return the call that a JSON object is, or None if it is not a call."""
    name = value.get("name")
    values = [value[key] for key in ARGUMENTS if key in value]
    if len(values) > 1:
        raise Undecided
    arguments = values[0] if values else {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}", object_pairs_hook=unique_keys)
        except ValueError as error:
            raise Undecided from error
    if arguments is None or arguments == []:
        arguments = {}
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    if any("\ud800" <= char <= "\udfff" for char in name):
        # A lone surrogate cannot be sent.
        return None
    return name, arguments


def tag_end(text: str, end: int) -> int:
    """Return the end of the tag around a call that ends at `end`."""
    if closed := CLOSED.match(text, end):
        return closed.end()
    if text[end:].strip(WHITESPACE):
        raise Undecided
    return len(text)


def functions(text: str, pos: int, offered: set[str], *, is_tagged: bool) -> tuple[int, list[Call]]:
    """Return the end of the function at `pos`, and its call."""
    found = FUNCTION.match(text, pos)
    if not found:
        raise Undecided
    if found[1] not in offered and not is_tagged:
        return pos, []
    arguments: dict[str, Any] = {}
    for key, value in re.findall(PARAMETER, found[2]):
        arguments[key] = typed_value(key, without_framing(value))
    call = found[1], arguments
    if is_tagged:
        return tag_end(text, found.end()), [call]
    closed = CLOSED.match(text, found.end())
    if "</tool_call>".startswith(text[found.end() :].strip(WHITESPACE)):
        raise Undecided
    return (closed.end() if closed else found.end()), [call]


def without_framing(value: str) -> str:
    """Return a value without the line ends that frame it."""
    line_end = next((each for each in ("\r\n", "\n") if value.startswith(each)), "")
    return value[len(line_end) :].removesuffix(line_end) if line_end else value


def typed_value(key: str, value: str) -> Any:
    """Return a value with the type that the schemas of the tests declare."""
    if key == "days" and re.fullmatch(r"\s*[1-9][0-9]*\s*", value):
        return int(value)
    if key in {"city", "a"}:
        return value
    raise Undecided
