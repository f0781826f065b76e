"""
Templates of chunks: everything before and after the one text that differs between chunks.

Most chunks of a stream differ only in one delta's text. A template encodes the rest once.
"""

from __future__ import annotations

from typing import Any

import msgspec

from blockops.api.chat.decoder import EMPTY_LIST, is_empty
from blockops.api.chat.encoder import REPEATED_FIELDS, REPLACED_FIELDS
from blockops.api.json_fields import decode_fields, decode_objects

_PLACEHOLDER = msgspec.Raw(b"\0")  # occurs in no JSON text

_encode = msgspec.json.Encoder().encode


class ChunkTemplate(msgspec.Struct):
    """
    A chunk in parts: its JSON is `head`, a delta, `tail`.

    :ivar index: the choice's index
    :ivar rest: the delta's other fields, without the role; all of them are empty
    """

    index: int
    head: bytes
    tail: bytes
    rest: dict[str, Any]


def split_template(data: bytes, field: str, value: bytes) -> ChunkTemplate:
    """
    Return the template of a chunk whose only contents are `field` of its delta.

    :param value: the JSON text of that field
    :raises ValueError: the chunk has further contents, or the field has another value
    :raises LookupError: the chunk has no such field
    """
    chunk = decode_fields(data)
    (raw,) = decode_objects(chunk["choices"])
    rest = decode_fields(raw["delta"])
    rest.pop("role", None)
    index = msgspec.json.decode(raw["index"], type=int)
    extra = {key: raw[key] for key in raw if key not in REPLACED_FIELDS}
    more = [*extra.values(), raw.get("finish_reason", EMPTY_LIST)]
    more += [item for key, item in chunk.items() if key not in REPEATED_FIELDS]
    if rest.pop(field) != msgspec.Raw(value) or not all(map(is_empty, [*rest.values(), *more])):
        raise ValueError("the chunk has further contents")
    choice = {"index": index, "delta": _PLACEHOLDER, **extra, "finish_reason": None}
    head, _, tail = _encode({**chunk, "choices": [choice]}).partition(_PLACEHOLDER)
    return ChunkTemplate(index, head, tail, dict(rest))
