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

    def _join(self, choice: Any) -> None:
        if not isinstance(choice, dict):
            return
        index = _place(choice, 0)
        for field in ("delta", "text"):
            if field in choice:
                choice[field] = self._joined(choice[field], (index, field))

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
