"""
A parameter's text to a JSON value, by the JSON schema that the request declares for it.

What a schema allows is gathered from `type` (a name or a list), `enum`, `const`, `nullable`, the
members of `anyOf`, `oneOf` and `allOf`, and `$ref` to somewhere in the same schema; `properties`
and `items` without a type mean an object and an array. A schema that says nothing allows a string.

The text is read as JSON (with what `JsonValue` mends), then as a Python literal. What comes of it
is taken if the schema allows it and it is no string; otherwise the text itself is the value, a
string. Numbers keep their spelling, but a whole number in an integer's place loses its empty
fraction.

A value may be long, and a string may stream: as soon as nothing that the schema allows can begin
like the text that came, it is certain to be a string.
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

from blockops.toolcalls.grammar.json_stream import JsonValue, Standing

MAX_LITERAL = 1_024
"""Characters that are read as a Python literal: Python's parser takes a millisecond for them."""

MAX_EXPONENT_DIGITS = 2
"""Digits of an exponent with which a number is still written out as an integer."""

_LOOK = 64
"""Characters at the beginning of a value that tell what it may be."""

_OF_LISTED = ("name", "required")
_UNIONS = ("anyOf", "oneOf", "allOf")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_SCALAR = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")
_EXPONENT = re.compile(r"[eE][+-]?([0-9]+)")
_PYTHON_SCALAR = re.compile(r"[-+]?[0-9.][\w.+-]*|True|False|None")
_NUMBER_BEGUN = re.compile(r"[-+]?(?:[0-9.][\w.+-]*)?\s*")
_WORDS = {"boolean": ("true", "false", "True", "False"), "null": ("null", "None")}
_OPENED = {"{": "object", "[": "array", "(": "array"}
_NAMES: dict[type, str] = {
    bool: "boolean",
    int: "number",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}
_BRACKETS: dict[type, str] = {list: "[", tuple: "(", dict: "{"}
_BY_FIRST = {
    "{": "object",
    "[": "array",
    "t": "boolean",
    "f": "boolean",
    "n": "null",
}
_IMPLIED = {
    "properties": "object",
    "additionalProperties": "object",
    "items": "array",
    "prefixItems": "array",
}


def of_parameters(declared: Any) -> Any:
    """
    Return the schema of a function's parameters.

    Qwen-Agent declares them in a list, each with its name: such a list becomes an object's schema.
    """
    if not declared or not isinstance(declared, list):
        return declared or {}
    listed = [one for one in declared if isinstance(one, dict) and isinstance(one.get("name"), str)]
    return {
        "type": "object",
        "properties": {
            one["name"]: {key: value for key, value in one.items() if key not in _OF_LISTED}
            for one in listed
        },
        "required": [one["name"] for one in listed if one.get("required") is True],
    }


class Parameters:
    """
    The parameters of one function.

    :param schema: the function's `parameters`, of any shape: what makes no sense is ignored
    """

    def __init__(self, schema: Any) -> None:
        self._schema = schema

    @cached_property
    def declared(self) -> Mapping[str, Any]:
        """The schemas of the parameters, by name."""
        return {
            name: each
            for part in _parts(self._schema, self._schema)
            if isinstance(properties := part.get("properties"), dict)
            for name, each in properties.items()
        }

    def kind(self, name: str) -> Kind:
        """Return what the parameter `name` may be: a string, where it is not declared."""
        allowed: set[str] = set()
        values: list[Any] = []
        for part in _parts(self.declared.get(name), self._schema):
            allowed.update(_types(part))
            values.extend(_constants(part))
        return Kind(frozenset(allowed), tuple(values))


@dataclass(frozen=True)
class Kind:
    """
    What a parameter may be.

    :param types: the names of JSON schema's types
    :param values: constants, apart from strings
    """

    types: frozenset[str] = frozenset()
    values: tuple[Any, ...] = ()

    @property
    def is_string(self) -> bool:
        """Whether it can only be a string, which needs no reading."""
        return not self.values and self.types <= {"string"}

    def may_begin(self, head: str) -> bool:
        """Whether a value that begins with `head` may be anything but a string."""
        allowed = {*self.types, *(_NAMES[type(value)] for value in self.values)}
        if head[0] in _OPENED:
            return _OPENED[head[0]] in allowed
        if allowed & {"integer", "number"} and _NUMBER_BEGUN.fullmatch(head):
            return True
        word = head.rstrip()
        return any(each.startswith(word) for name in allowed for each in _WORDS.get(name, ()))

    def written(self, text: str) -> str:
        """Return the JSON of the value that `text` means."""
        value = Value(self)
        value.add(text)
        return value.written()

    def fitting(self, candidate: str) -> str | None:
        """Return a JSON text that is no string as it may be written here, None if it may not."""
        name = _type_of(candidate)
        if name in self.types or (name == "number" and "integer" in self.types):
            if name == "number" and "number" not in self.types:
                return _integer(candidate)
            return candidate
        if name == "integer" and "number" in self.types:
            return candidate
        if self.values and _is_among(candidate, self.values):
            return candidate
        return None


class Value:
    """
    A value that comes in pieces, and is not certain to be a string.

    Brackets are followed while they come, so that the end of a long value costs little.

    :param kind: what it may be
    :ivar length: of the text so far
    """

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._pieces: list[str] = []
        self._json = JsonValue()
        self._written: list[str] = []
        # Whether more than white space stands behind the JSON.
        self._more = False
        self._head = ""
        self._looking = True
        # From the first character that is no white space to the last one.
        self._solid = 0
        self._blanks = 0
        self.length = 0

    def add(self, piece: str) -> None:
        """Take the next piece of the text."""
        self._pieces.append(piece)
        self.length += len(piece)
        if self._solid <= MAX_LITERAL:
            self._measure(piece)
        end = 0
        if self._json.standing is Standing.OPEN:
            end = self._json.feed(piece, 0, self._written)
        if end < len(piece) and piece[end:].strip():
            self._more = True

    def _measure(self, piece: str) -> None:
        if len(self._head) < _LOOK:
            self._head = (self._head + piece).lstrip()[:_LOOK]
        if not self._solid:
            piece = piece.lstrip()
        solid = len(piece.rstrip())
        if solid:
            self._solid += self._blanks + solid
            self._blanks = 0
        self._blanks += len(piece) - solid

    @property
    def is_string(self) -> bool:
        """Whether it is certain to be a string, whatever may follow."""
        if self._looking:
            if not self._head:
                return False
            if not self._kind.may_begin(self._head):
                return True
            self._looking = len(self._head) < _LOOK
        return self._solid > MAX_LITERAL and self._head[0] in _OPENED and self._is_broken()

    def _is_broken(self) -> bool:
        """Whether the text is no JSON in brackets."""
        brackets = self._json
        return brackets.standing is Standing.BROKEN or brackets.flaws > 0 or self._more

    def text(self) -> str:
        """Return the text as it came."""
        return "".join(self._pieces)

    def written(self) -> str:
        """Return the JSON of what the text means."""
        text = self.text()
        for reading in self._readings(text.strip()):
            if (fitting := self._kind.fitting(reading)) is not None:
                return fitting
        return encode_basestring(text)

    def _readings(self, text: str) -> Iterator[str]:
        """Yield what `text` may mean, as JSON."""
        brackets = self._json
        if brackets.closing and not brackets.flaws and not self._more:
            yield "".join((*self._written, brackets.closing))
        elif _SCALAR.fullmatch(text):
            yield text
        elif literal := _literal(text):
            yield literal


def _parts(schema: Any, root: Any) -> Iterator[dict[str, Any]]:
    """Go through a schema, and all that it refers to and is made of."""
    waiting = deque([schema])
    seen: set[int] = set()
    while waiting:
        part = waiting.popleft()
        if not isinstance(part, dict) or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        waiting.append(_referred(part.get("$ref"), root))
        for union in _UNIONS:
            members = part.get(union)
            if isinstance(members, list):
                waiting.extend(members)


def _referred(reference: Any, root: Any) -> Any:
    """Return what a reference into the same schema stands for, None if nothing."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    place = root
    for step in reference[1:].split("/")[1:]:
        if not isinstance(place, dict):
            return None
        place = place.get(step.replace("~1", "/").replace("~0", "~"))
    return place


def _types(part: dict[str, Any]) -> Iterator[str]:
    named = part.get("type")
    names = named if isinstance(named, list) else [named]
    yield from (name for name in names if isinstance(name, str))
    if named is None:
        yield from (name for key, name in _IMPLIED.items() if key in part)
    if part.get("nullable") is True:
        yield "null"


def _constants(part: dict[str, Any]) -> Iterator[Any]:
    listed = part.get("enum")
    values = [*listed] if isinstance(listed, list) else []
    if "const" in part:
        values.append(part["const"])
    return (value for value in values if not isinstance(value, str))


def _literal(text: str) -> str:
    """Return a Python literal as JSON, and "" for what is none."""
    if not 0 < len(text) <= MAX_LITERAL:
        return ""
    if text[0] not in _OPENED and not _PYTHON_SCALAR.fullmatch(text):
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = ast.literal_eval(text)
        # In "(1)" and "[1], 2" a reader of Python sees more than the model meant.
        if _BRACKETS.get(type(value)) != (text[0] if text[0] in "[({" else None):
            return ""
        return _dumped(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ""


def _dumped(value: Any) -> str:
    """Return a value as JSON that can be sent: half a character only as an escape."""
    written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        written.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return written


def _type_of(candidate: str) -> str:
    """Return the name of a JSON text's type."""
    if _INTEGER.fullmatch(candidate):
        return "integer"
    return _BY_FIRST.get(candidate[0], "number")


def _integer(candidate: str) -> str | None:
    """Return a number as an integer is written, None if it is not whole."""
    exponent = _EXPONENT.search(candidate)
    if exponent and len(exponent[1]) > MAX_EXPONENT_DIGITS:
        return None
    value = Decimal(candidate)
    whole = value.to_integral_value()
    return f"{whole:f}" if whole == value else None


def _is_among(candidate: str, values: tuple[Any, ...]) -> bool:
    """Whether a JSON text means one of `values`; 1.0 is 1, true is not."""
    try:
        meant = json.loads(candidate)
    except ValueError:
        return False
    name = _NAMES[type(meant)]
    return any(meant == value and name == _NAMES.get(type(value)) for value in values)
