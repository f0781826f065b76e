"""
`/v1/models`: the backend's list of models, its entries, and the aliases (short names) of models.

Entries keep the JSON text of each field. Shapes:
https://platform.openai.com/docs/api-reference/models/object
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from blockops.api.json_fields import decode_fields, decode_objects, raw_field, string_or_none
from blockops.api.lenient_json import DECODE_ERRORS

#: The entry of a model that the backend does not list: mlx-lm lists only those that it has on disk.
_UNLISTED = {
    "id": msgspec.Raw(b'""'),
    "object": msgspec.Raw(b'"model"'),
    "created": msgspec.Raw(b"0"),
    "owned_by": msgspec.Raw(b'"blockops"'),
}


class _Listing(msgspec.Struct):
    data: list[msgspec.Raw] = []


def replace_alias(body: bytes, aliases: Mapping[str, str]) -> tuple[bytes, str | None]:
    """
    Return a request's body with the backend's name for its model, and the alias that it replaces.

    A body without an alias, or one that is not a JSON object, is returned unchanged, with None.

    :param aliases: alias -> the backend's name for the model
    """
    alias = string_or_none(raw_field(body, "model")) if aliases else None
    backend_model = None if alias is None else aliases.get(alias)
    if backend_model is None:
        return body, None
    return msgspec.json.encode({**decode_fields(body), "model": backend_model}), alias


def rename_model(body: bytes, name: str) -> bytes:
    """Return a response, or an event's data, with `name` as its model; unchanged if it has none."""
    model = raw_field(body, "model")
    new = msgspec.json.encode(name)
    if not model.startswith(b'"') or model in (new, b'""'):
        return body
    return msgspec.json.encode({**decode_fields(body), "model": msgspec.Raw(new)})


def list_with_aliases(listing: bytes, aliases: Mapping[str, str]) -> bytes:
    """
    Return the backend's response to `GET /v1/models` with an entry for each alias.

    An alias has the fields of its model's entry, if the backend lists that model. A response that
    is not a list of models is returned unchanged.

    :param aliases: alias -> the backend's name for the model
    """
    try:
        fields = dict[str, Any](decode_fields(listing))
        entries = decode_objects(fields["data"])
    except (*DECODE_ERRORS, KeyError):
        return listing
    listed = {string_or_none(entry.get("id", b"")): entry for entry in entries}
    for alias, backend_model in aliases.items():
        if alias not in listed:
            entries.append(_with_id(listed.get(backend_model, _UNLISTED), alias))
    return msgspec.json.encode({**fields, "data": entries})


def find_model(listing: bytes, name: str) -> bytes | None:
    """Return the JSON of the entry `name` in a response to `GET /v1/models`, or None."""
    try:
        entries = msgspec.json.decode(listing, type=_Listing).data
    except DECODE_ERRORS:
        return None
    return next((bytes(raw) for raw in entries if model_id(raw) == name), None)


def rename_entry(entry: bytes, name: str) -> bytes:
    """Return the JSON of a model's entry with `name` as its id; unchanged if not an object."""
    try:
        return msgspec.json.encode(_with_id(decode_fields(entry), name))
    except DECODE_ERRORS:
        return entry


def model_id(entry: bytes | msgspec.Raw) -> str | None:
    """Return the id in a model's entry, or None if it has no such string."""
    return string_or_none(raw_field(bytes(entry), "id"))


def _with_id(entry: Mapping[str, msgspec.Raw], name: str) -> dict[str, msgspec.Raw]:
    return {**entry, "id": msgspec.Raw(msgspec.json.encode(name))}
