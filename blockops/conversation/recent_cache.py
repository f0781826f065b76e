"""`RecentCache`: a bounded mapping that forgets the entries that were not used for longest."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

# Most caches never fill their newer generation. They share this empty mapping as the older one.
_EMPTY: Mapping[Any, Any] = MappingProxyType({})


class RecentCache(Generic[Key, Value]):
    """
    A mapping of two generations.

    An entry that is read or written moves into the newer generation. When that is full, it becomes
    the older one, and the entries of the previous older one are forgotten. Every operation takes
    constant time and needs no order of use.

    :param size: entries of one generation; the cache holds at least the `size` entries used last,
        and at most twice as many
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._newer: dict[Key, Value] = {}
        self._older: Mapping[Key, Value] = _EMPTY

    def __len__(self) -> int:
        return len(self._newer.keys() | self._older.keys())

    def get(self, key: Key) -> Value | None:
        """Return the value of `key`, or None if it is unknown or was forgotten."""
        value = self._newer.get(key)
        if value is None:
            value = self._older.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: Key, value: Value) -> None:
        """Store `value` for `key`."""
        if len(self._newer) >= self._size:
            self._older, self._newer = self._newer, {}
        self._newer[key] = value
