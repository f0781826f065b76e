"""
`/v1/models`: the backend's list of models, its entries, and the aliases (short names) of models.

Entries keep the JSON text of each field. Shapes:
https://platform.openai.com/docs/api-reference/models/object
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from blockops.api.json_fields import (
    decode_items,
    decode_objects,
    raw_field,
    string_or_none,
    with_field,
)
from blockops.api.lenient_json import DECODE_ERRORS

#: The entry of a model that the backend does not list: mlx-lm lists only those that it has on disk.
_UNLISTED = {"id": "", "object": "model", "created": 0, "owned_by": "blockops"}


def replace_alias(body: bytes, aliases: Mapping[str, str]) -> tuple[bytes, str | None]:
    """
    Return a request's body with the backend's name for its model, and the alias that it replaces.

    A body without an alias, or one that is not a JSON object, is returned unchanged, with None.

    :param aliases: alias -> the backend's name for the model
    """
    alias = string_or_none(raw_field(body, "model")) if aliases else None
    if alias is None or alias not in aliases:
        return body, None
    return with_field(body, "model", aliases[alias]), alias


def rename_model(body: bytes, name: str) -> bytes:
    """Return a response, or an event's data, with `name` as its model; unchanged if it has none."""
    model = raw_field(body, "model")
    if not model.startswith(b'"') or model in (msgspec.json.encode(name), b'""'):
        return body
    return with_field(body, "model", name)


def list_with_aliases(listing: bytes, aliases: Mapping[str, str]) -> bytes:
    """
    Return the backend's response to `GET /v1/models` with an entry for each alias.

    An alias has the fields of its model's entry, if the backend lists that model. A response that
    is not a list of models is returned unchanged.
    """
    try:
        entries = decode_objects(raw_field(listing, "data"))
    except DECODE_ERRORS:
        return listing
    listed: dict[str | None, Mapping[str, Any]] = {
        string_or_none(entry.get("id", b"")): entry for entry in entries
    }
    added = [
        {**listed.get(backend_model, _UNLISTED), "id": alias}
        for alias, backend_model in aliases.items()
        if alias not in listed
    ]
    return with_field(listing, "data", [*entries, *added])


def find_model(listing: bytes, name: str) -> bytes | None:
    """Return the JSON of the entry `name` in a response to `GET /v1/models`, or None."""
    try:
        entries = decode_items(raw_field(listing, "data"))
    except DECODE_ERRORS:
        return None
    for entry in map(bytes, entries):
        if string_or_none(raw_field(entry, "id")) == name:
            return entry
    return None


def rename_entry(entry: bytes, name: str) -> bytes:
    """Return the JSON of a model's entry with `name` as its id; unchanged if not an object."""
    try:
        return with_field(entry, "id", name)
    except DECODE_ERRORS:
        return entry
