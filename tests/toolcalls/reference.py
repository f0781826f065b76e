"""
The rules once more, slowly and simply: the whole text at once, character by character.

Written apart from the parser, to compare with it. It is sure of well-formed calls only, and says
`Unsure` where mending, forgotten tags or broken JSON would have to be judged.
"""

from __future__ import annotations

import json
import re
from typing import Any

WHITE = " \t\r\n\f\v"
OPENERS = ("<tool_call>", "TOOL_CALL:", "<function")
ARGUMENTS = ("arguments", "args", "parameters", "input")
SPACE = re.compile(r"[ \t\r\n]*")
PARAMETER = r"<parameter=(\w+)>([^<]*)</parameter>[ \t\r\n]*"
FUNCTION = re.compile(rf"<function=(\w+)>[ \t\r\n]*((?:{PARAMETER})*)</function>")
CLOSED = re.compile(r"[ \t\r\n]*</tool_call>")

Call = tuple[str, dict[str, Any]]


class Unsure(Exception):
    """Others than this reader must judge."""


def read(text: str, offered: set[str]) -> tuple[str, list[Call]]:
    """Return the content and the calls of an answer that ended by itself."""
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
    return content(parts), calls


def content(parts: list[str]) -> str:
    """Join what stands around calls."""
    joined = ""
    for at, part in enumerate(parts):
        last = at == len(parts) - 1
        kept = part if last else part.rstrip(WHITE)
        if at and not joined:
            kept = kept.lstrip(WHITE)
        if at and last and not part.strip(WHITE):
            kept = ""
        joined += kept
    return joined


def step(text: str, pos: int, line: str, offered: set[str]) -> tuple[int, list[Call]]:
    """Return where the next part ends, and the calls that it is."""
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
    """Return where the code that begins at `pos` ends."""
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
    """Return the calls behind an opener, and where they end; no calls if it opens none."""
    start = pos + len(opener)
    inner = SPACE.match(text, start).end()  # type: ignore[union-attr]
    if opener == "<function":
        return functions(text, pos, offered, tagged=False)
    if opener == "<tool_call>" and re.compile(r"<function[ \t\r\n=]").match(text, inner):
        return functions(text, inner, offered, tagged=True)
    if text[inner : inner + 1] != "{":
        if text[inner : inner + 1] == "[" and opener == "<tool_call>":
            raise Unsure
        return start, []
    try:
        meant, end = json.JSONDecoder(object_pairs_hook=once).raw_decode(text, inner)
    except (ValueError, RecursionError) as error:
        raise Unsure from error
    call = as_call(meant)
    if call is None or opener == "TOOL_CALL:":
        return end, [call] if call else []
    return tag_end(text, end), [call]


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object whose keys stand once each."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise Unsure
    return dict(pairs)


def as_call(meant: dict[str, Any]) -> Call | None:
    """Return what an object calls, None if nothing."""
    name = meant.get("name")
    values = [meant[key] for key in ARGUMENTS if key in meant]
    if len(values) > 1:
        raise Unsure
    arguments = values[0] if values else {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}", object_pairs_hook=once)
        except ValueError as error:
            raise Unsure from error
    if arguments is None or arguments == []:
        arguments = {}
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    if any("\ud800" <= char <= "\udfff" for char in name):
        # Half a character cannot be sent.
        return None
    return name, arguments


def tag_end(text: str, end: int) -> int:
    """Return where the tag ends whose call ended at `end`."""
    if closed := CLOSED.match(text, end):
        return closed.end()
    if text[end:].strip(WHITE):
        raise Unsure
    return len(text)


def functions(text: str, pos: int, offered: set[str], *, tagged: bool) -> tuple[int, list[Call]]:
    """Return the function at `pos`."""
    found = FUNCTION.match(text, pos)
    if not found:
        raise Unsure
    if found[1] not in offered and not tagged:
        return pos, []
    arguments: dict[str, Any] = {}
    for key, value in re.findall(PARAMETER, found[2]):
        arguments[key] = typed(key, framed(value))
    call = found[1], arguments
    if tagged:
        return tag_end(text, found.end()), [call]
    closed = CLOSED.match(text, found.end())
    if "</tool_call>".startswith(text[found.end() :].strip(WHITE)):
        raise Unsure
    return (closed.end() if closed else found.end()), [call]


def framed(value: str) -> str:
    """Return a value without its framing."""
    kind = next((each for each in ("\r\n", "\n") if value.startswith(each)), "")
    return value[len(kind) :].removesuffix(kind) if kind else value


def typed(key: str, value: str) -> Any:
    """Return what the schema of the tests makes of a value."""
    if key == "days" and re.fullmatch(r"\s*[1-9][0-9]*\s*", value):
        return int(value)
    if key in {"city", "a"}:
        return value
    raise Unsure
