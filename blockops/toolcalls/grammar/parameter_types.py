"""
Converts a parameter's text to a JSON value, by the JSON schema that the request declares for it.

The types that a schema allows come from `type` (a name or a list), `enum`, `const`, `nullable`, the
members of `anyOf`, `oneOf` and `allOf`, and `$ref` to a part of the same schema. `properties` and
`items` without a type imply an object and an array. A schema that names no type allows a string.

The text is interpreted as JSON (with the repairs of `StreamingJson`), then as a Python literal. An
interpretation is used if it is no string and the schema allows it; otherwise the value is the text
itself, as a string. Numbers keep their spelling, except that a parameter of type integer loses an
empty fraction: `140.0` becomes `140`.

A string can stream: as soon as no type that the schema allows can begin with the text so far, the
value is certain to be a string.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from json.encoder import encode_basestring
from typing import Any

from blockops.toolcalls.grammar.json_stream import StreamingJson

MAX_LITERAL = 1_024
"""Characters of a Python literal: Python's parser takes about a millisecond for that many."""

MAX_EXPONENT_DIGITS = 2
"""Digits of an exponent. A number with more is not written out as an integer."""

_HEAD_LENGTH = 64
"""Characters at the beginning of a value that are compared with the types it may have."""

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_SCALAR = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")
_EXPONENT = re.compile(r"[eE][+-]?([0-9]+)")
_PYTHON_SCALAR = re.compile(r"[-+]?[0-9.][\w.+-]*|True|False|None")
_PARTIAL_NUMBER = re.compile(r"[-+]?(?:[0-9.][\w.+-]*)?\s*")
_LITERALS = {"boolean": ("true", "false", "True", "False"), "null": ("null", "None")}
_BRACKETS = "{[("
_BRACKET_BY_CLASS: dict[type, str] = {list: "[", tuple: "(", dict: "{"}
_TYPE_BY_CLASS: dict[type, str] = {
    bool: "boolean",
    int: "number",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}
_TYPE_BY_FIRST_CHARACTER = {
    "{": "object",
    "[": "array",
    "(": "array",
    "t": "boolean",
    "f": "boolean",
    "n": "null",
}
_IMPLIED_TYPES = {
    "properties": "object",
    "additionalProperties": "object",
    "items": "array",
    "prefixItems": "array",
}


def normalize_schema(declared: Any) -> Any:
    """
    Return the JSON schema of a function's `parameters`; `{}` if there are none.

    Qwen-Agent declares them as a list of schemas with a `name` and a boolean `required` each.
    """
    if not declared or not isinstance(declared, list):
        return declared or {}
    named = (entry for entry in declared if isinstance(entry, dict))
    entries = [entry for entry in named if isinstance(entry.get("name"), str)]
    return {
        "type": "object",
        "properties": {
            entry["name"]: {key: entry[key] for key in entry if key not in ("name", "required")}
            for entry in entries
        },
        "required": [entry["name"] for entry in entries if entry.get("required") is True],
    }


class Parameters:
    """A function's `parameters`, of any shape: invalid parts are ignored."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema

    @cached_property
    def properties(self) -> Mapping[str, Any]:
        """The declared parameters: name to schema."""
        return {
            name: schema
            for part in _subschemas(self._schema, self._schema)
            if isinstance(properties := part.get("properties"), dict)
            for name, schema in properties.items()
        }

    def type_of(self, name: str) -> ParameterType:
        """Return the type of the parameter `name`: a string if it is not declared."""
        types: set[str] = set()
        constants: list[Any] = []
        for part in _subschemas(self.properties.get(name), self._schema):
            types.update(_type_names(part))
            constants.extend(_constants(part))
        return ParameterType(frozenset(types), tuple(constants))


@dataclass(frozen=True)
class ParameterType:
    """The JSON values that a parameter may have; `constants` are those of `enum` and `const`."""

    types: frozenset[str] = frozenset()
    constants: tuple[Any, ...] = ()

    @cached_property
    def _names(self) -> frozenset[str]:
        return self.types.union(_TYPE_BY_CLASS[type(value)] for value in self.constants)

    @property
    def is_string(self) -> bool:
        """Return True if the value can only be a string: it needs no interpretation."""
        return self._names <= {"string"}

    def may_start_with(self, head: str) -> bool:
        """Return True if a value other than a string may start with `head` (not empty)."""
        allowed = self._names
        if head[0] in _BRACKETS:
            return _TYPE_BY_FIRST_CHARACTER[head[0]] in allowed
        if allowed & {"integer", "number"} and _PARTIAL_NUMBER.fullmatch(head):
            return True
        word = head.rstrip()
        literals = (literal for name in allowed for literal in _LITERALS.get(name, ()))
        return any(literal.startswith(word) for literal in literals)

    def coerce(self, candidate: str) -> str | None:
        """Return `candidate`, JSON of no string, as JSON of this type; None if not allowed."""
        name = _json_type(candidate)
        if name in self.types or (name == "integer" and "number" in self.types):
            return candidate
        if name == "number" and "integer" in self.types:
            return _as_integer(candidate)
        is_constant = bool(self.constants) and _is_constant(candidate, self.constants)
        return candidate if is_constant else None


class StreamingValue:
    """
    A value that arrives in pieces and may be something other than a string.

    JSON is read while it arrives, so that the end of a long value costs little. `is_string` becomes
    True once the value is certain to be a string, whatever text follows.
    """

    def __init__(self, parameter_type: ParameterType) -> None:
        self._type = parameter_type
        self._pieces: list[str] = []
        self._reader = StreamingJson()
        self._json: list[str] = []
        # True if anything but white space follows the JSON.
        self._has_trailing_text = False
        # The first characters after white space.
        self._head = ""
        self._leading_space = 0
        self._stripped_length = 0
        self.length = 0
        self.is_string = False

    def feed(self, piece: str) -> None:
        self._pieces.append(piece)
        if len(self._head) < _HEAD_LENGTH:
            self._read_head(piece)
        if stripped := piece.rstrip():
            self._stripped_length = self.length + len(stripped) - self._leading_space
        self.length += len(piece)
        end = 0
        if self._reader.status == "open":
            end = self._reader.feed(piece, 0, self._json)
        if end < len(piece) and piece[end:].strip():
            self._has_trailing_text = True
        if self._stripped_length > MAX_LITERAL and self._head[0] in _BRACKETS:
            is_invalid = self._reader.status == "broken" or self._reader.error_count > 0
            self.is_string |= is_invalid or self._has_trailing_text

    def _read_head(self, piece: str) -> None:
        if not self._head:
            self._leading_space += len(piece) - len(piece.lstrip())
        self._head = (self._head + piece).lstrip()[:_HEAD_LENGTH]
        self.is_string = bool(self._head) and not self._type.may_start_with(self._head)

    def text(self) -> str:
        return "".join(self._pieces)

    def to_json(self) -> str:
        """Return the JSON of the value that the text stands for."""
        text = self.text()
        interpretation = self._interpretation(text.strip())
        value = self._type.coerce(interpretation) if interpretation else None
        return encode_basestring(text) if value is None else value

    def _interpretation(self, text: str) -> str:
        reader = self._reader
        if reader.closing_bracket and not reader.error_count and not self._has_trailing_text:
            return "".join((*self._json, reader.closing_bracket))
        return text if _SCALAR.fullmatch(text) else _python_literal_to_json(text)


def _subschemas(schema: Any, root: Any) -> Iterator[dict[str, Any]]:
    """Yield a schema and all schemas that it refers to or combines, each once."""
    queue = deque([schema])
    visited: set[int] = set()
    while queue:
        part = queue.popleft()
        if not isinstance(part, dict) or id(part) in visited:
            continue
        visited.add(id(part))
        yield part
        queue.append(_resolve_reference(part.get("$ref"), root))
        for combinator in ("anyOf", "oneOf", "allOf"):
            members = part.get(combinator)
            if isinstance(members, list):
                queue.extend(members)


def _resolve_reference(reference: Any, root: Any) -> Any:
    """Return the part of `root` that a JSON pointer (RFC 6901) names, or None."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    target = root
    for step in reference[1:].split("/")[1:]:
        if not isinstance(target, dict):
            return None
        target = target.get(step.replace("~1", "/").replace("~0", "~"))
    return target


def _type_names(part: dict[str, Any]) -> Iterator[str]:
    declared = part.get("type")
    names = declared if isinstance(declared, list) else [declared]
    yield from (name for name in names if isinstance(name, str))
    if declared is None:
        yield from (name for key, name in _IMPLIED_TYPES.items() if key in part)
    if part.get("nullable") is True:
        yield "null"


def _constants(part: dict[str, Any]) -> Iterator[Any]:
    enum = part.get("enum")
    values = [*enum] if isinstance(enum, list) else []
    if "const" in part:
        values.append(part["const"])
    return (value for value in values if not isinstance(value, str))


def _python_literal_to_json(text: str) -> str:
    """Return the JSON of a Python literal, or "" if `text` is no literal or has no JSON."""
    if not 0 < len(text) <= MAX_LITERAL:
        return ""
    if text[0] not in _BRACKETS and not _PYTHON_SCALAR.fullmatch(text):
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = ast.literal_eval(text)
        # Python reads "(1)" as a number and "[1], 2" as a tuple: the model meant neither.
        if _BRACKET_BY_CLASS.get(type(value)) != (text[0] if text[0] in _BRACKETS else None):
            return ""
        return _dump(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ""


def _dump(value: Any) -> str:
    """Return `value` as JSON that can be encoded: a lone surrogate only as an escape."""
    dumped = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        dumped.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return dumped


def _json_type(candidate: str) -> str:
    if _INTEGER.fullmatch(candidate):
        return "integer"
    return _TYPE_BY_FIRST_CHARACTER.get(candidate[0], "number")


def _as_integer(candidate: str) -> str | None:
    """Return the JSON number `candidate` spelled as an integer, or None if it is not whole."""
    exponent = _EXPONENT.search(candidate)
    if exponent and len(exponent[1]) > MAX_EXPONENT_DIGITS:
        return None
    value = Decimal(candidate)
    rounded = value.to_integral_value()
    return f"{rounded:f}" if rounded == value else None


def _is_constant(candidate: str, constants: tuple[Any, ...]) -> bool:
    """Return True if a JSON text equals one of `constants`; 1.0 equals 1, true does not."""
    try:
        value = json.loads(candidate)
    except ValueError:
        return False
    name = _TYPE_BY_CLASS[type(value)]
    candidates = (each for each in constants if _TYPE_BY_CLASS.get(type(each)) == name)
    return any(value == constant for constant in candidates)
