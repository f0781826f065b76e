"""
Repairs JSON of backends that strict parsers reject.

Backends send NaN among logprobs, halves of surrogate pairs (a token may be half an emoji), raw line
ends inside strings, and bytes that are not UTF-8. The first half of a pair is held back until a
later delta has the second half; a half that stays unpaired becomes U+FFFD.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import msgspec

from blockops.errors import REPLACEMENT_CHARACTER, replace_surrogates

_MAX_PENDING = 1024  # halves: OpenAI allows 128 choices, and each has only a few texts

#: The exceptions of msgspec, and of Python's parser, for bytes that are not JSON.
DECODE_ERRORS = (ValueError, RecursionError)

# The choice's index, then the keys of objects and of list items.
_Path = tuple[str, ...]


class JsonRepairer:
    """
    Repairs the chunks of one stream.

    :ivar pending: first halves of surrogate pairs, by their path within the chunk's choices
    """

    def __init__(self) -> None:
        self.pending: dict[_Path, str] = {}

    def repair(self, data: bytes) -> bytes:
        """
        Return the same value as strict JSON.

        :raises ValueError: `data` is not JSON, even if read leniently
        """
        value = loads(data)
        choices = value.get("choices") if isinstance(value, dict) else None
        try:
            for choice in choices if isinstance(choices, list) else ():
                self._join_choice(choice)
            return dumps(value)
        except RecursionError:
            raise ValueError("nested too deeply") from None

    def flush(self) -> list[dict[str, Any]]:
        """Forget the pending halves; return the choices of a chunk with U+FFFD for each."""
        choices: list[dict[str, Any]] = []
        for index, *path in self.pending:
            number = int(index) if index.isdigit() else 0
            choices.append({"index": number, "finish_reason": None})
            _put_replacement(choices[-1], path)
        self.pending.clear()
        return choices

    def _join_choice(self, choice: Any) -> None:
        """Join the pending halves to the choice's strings, or replace them if it is finished."""
        if not isinstance(choice, dict):
            return
        index = _item_key(choice, 0)
        for field in ("delta", "text"):
            if field in choice:
                choice[field] = self._join_value(choice[field], (index, field))
        if choice.get("finish_reason"):
            for path in [path for path in self.pending if path[0] == index]:
                del self.pending[path]
                _put_replacement(choice, path[1:])

    def _join_value(self, value: Any, path: _Path) -> Any:
        """Return `value` with the pending half of each string's path prepended to the string."""
        if isinstance(value, str):
            return self._join_text(value, path)
        if isinstance(value, dict):
            return {key: self._join_value(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [
                self._join_value(item, (*path, _item_key(item, position)))
                for position, item in enumerate(value)
            ]
        return value

    def _join_text(self, text: str, path: _Path) -> str:
        half = self.pending.pop(path, "")
        if half:
            text = (half + text).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        if text and "\ud800" <= text[-1] <= "\udbff" and len(self.pending) < _MAX_PENDING:
            self.pending[path] = text[-1]
            return text[:-1]
        return text


def is_strict(data: bytes) -> bool:
    """Return True if `data` is JSON that strict parsers accept."""
    try:
        msgspec.json.decode(data)
    except DECODE_ERRORS:
        return False
    return True


def loads(data: bytes) -> Any:
    """
    Parse JSON leniently. Numbers are `msgspec.Raw`, so that they keep their spelling.

    :raises ValueError: `data` is not JSON, even if read leniently
    """
    try:
        return _decoder.decode(data.decode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def dumps(value: Any) -> bytes:
    """Return a value of `loads` as strict JSON, with U+FFFD for each unpaired surrogate."""
    return msgspec.json.encode(_replace_surrogates(value))


def _replace_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, dict):
        return {replace_surrogates(key): _replace_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_surrogates(item) for item in value]
    return value


def _put_replacement(choice: dict[str, Any], path: Sequence[str]) -> None:
    """
    Append U+FFFD to the choice's text or to the field of its delta at `path`.

    A longer path is skipped: it leads into a tool call, which stays truncated where it is, or into
    a list of content parts.
    """
    match path:
        case [field]:
            parent = choice
        case ["delta", field]:
            parent = choice["delta"] if isinstance(choice.get("delta"), dict) else {}
            choice["delta"] = parent
        case _:
            return
    text = parent.get(field)
    parent[field] = (text if isinstance(text, str) else "") + REPLACEMENT_CHARACTER


def _item_key(item: Any, position: int) -> str:
    """Return the key that a list's item has in every chunk: its `index`, else its position."""
    index = item.get("index") if isinstance(item, dict) else None
    return str(index, "ascii") if isinstance(index, msgspec.Raw) else str(position)


def _parse_number(text: str) -> Any:
    return msgspec.Raw(text.encode()) if math.isfinite(float(text)) else None


_decoder = json.JSONDecoder(
    strict=False,
    parse_float=_parse_number,
    parse_int=_parse_number,
    parse_constant=lambda _: None,  # JSON has only null for NaN and the infinities
)
