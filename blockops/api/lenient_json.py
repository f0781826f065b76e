"""
JSON that backends send and strict readers refuse, made strict.

Met in practice: NaN among logprobs, halves of surrogate pairs (a tokenizer's token may be half an
emoji), raw newlines inside strings, bytes that are no UTF-8. Half a pair waits for its other half
in the next delta; what stays alone becomes U+FFFD.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec

_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\ufffd"
_MAX_PENDING = 1024  # halves: one for each choice, and then some

# What msgspec raises for bytes that are not strict JSON.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_Path = tuple[str | bytes, ...]


class Mender:
    """
    Mend the chunks of one stream.

    :ivar pending: first halves of pairs that wait, by where in their choice they stood
    """

    __slots__ = ("pending",)

    def __init__(self) -> None:
        self.pending: dict[_Path, str] = {}

    def mend(self, data: bytes) -> bytes:
        """
        Return the same JSON, strict.

        :raises ValueError: it is not JSON in any reading
        """
        value = loads(data)
        try:
            if isinstance(value, dict) and isinstance(value.get("choices"), list):
                for choice in value["choices"]:
                    self._join(choice)
            return dumps(value)
        except RecursionError:
            raise ValueError("nested too deeply") from None

    def alone(self) -> list[dict[str, Any]]:
        """Return choices that say U+FFFD for each half that nothing follows any more."""
        choices: list[dict[str, Any]] = []
        for index, *path in self.pending:
            number = int(index) if index.isdigit() else 0
            choices.append({"index": number, "finish_reason": None})
            _say_half(choices[-1], path)
        self.pending.clear()
        return choices

    def _join(self, choice: Any) -> None:
        if not isinstance(choice, dict):
            return
        index = _place(choice, 0)
        for field in ("delta", "text"):
            if field in choice:
                choice[field] = self._joined(choice[field], (index, field))
        if choice.get("finish_reason"):
            for path in [path for path in self.pending if path[0] == index]:
                del self.pending[path]
                _say_half(choice, path[1:])

    def _joined(self, value: Any, path: _Path) -> Any:
        """Return `value` with what waited for it put in front of its strings, by their paths."""
        if isinstance(value, str):
            return self._joined_text(value, path)
        if isinstance(value, dict):
            return {key: self._joined(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self._joined(item, (*path, _place(item, at))) for at, item in enumerate(value)]
        return value

    def _joined_text(self, text: str, path: _Path) -> str:
        half = self.pending.pop(path, "")
        if half:
            text = (half + text).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        if text and "\ud800" <= text[-1] <= "\udbff" and len(self.pending) < _MAX_PENDING:
            self.pending[path] = text[-1]
            return text[:-1]
        return text


def is_strict(data: bytes) -> bool:
    """Tell whether this is JSON that every reader takes."""
    try:
        msgspec.json.decode(data)
    except UNREADABLE:
        return False
    return True


def loads(data: bytes) -> Any:
    """
    Read JSON leniently; numbers keep their spelling, as `msgspec.Raw`.

    :raises ValueError: it is not JSON in any reading
    """
    try:
        return _decoder.decode(data.decode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def dumps(value: Any) -> bytes:
    """Write what `loads` has read; halves of surrogate pairs become U+FFFD."""
    return msgspec.json.encode(_clean(value))


def clean_text(text: str) -> str:
    """Return `text` with U+FFFD for each half of a surrogate pair."""
    return _SURROGATE.sub(_REPLACEMENT, text)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value


def _say_half(choice: dict[str, Any], path: Sequence[str | bytes]) -> None:
    """
    Let a choice say U+FFFD where a half was left, in its text or a field of its delta.

    Not within a call, which is cut off where it was.
    """
    *holders, field = [key for key in path if isinstance(key, str)]
    if len(path) > len(("delta", field)):
        return
    for holder in holders:
        if not isinstance(choice.get(holder), dict):
            choice[holder] = {}
        choice = choice[holder]
    said = choice.get(field)
    choice[field] = (said if isinstance(said, str) else "") + _REPLACEMENT


def _place(item: Any, at: int) -> bytes:
    """Return what tells an item of a list in one chunk from the same one in the next."""
    index = item.get("index") if isinstance(item, dict) else None
    return bytes(index) if isinstance(index, msgspec.Raw) else b"%d" % at


def _number(text: str) -> Any:
    return msgspec.Raw(text.encode()) if math.isfinite(float(text)) else None


def _nothing(_: str) -> None:
    """Return null, the only JSON for NaN and the infinities."""


_decoder = json.JSONDecoder(
    strict=False, parse_float=_number, parse_int=_number, parse_constant=_nothing
)
