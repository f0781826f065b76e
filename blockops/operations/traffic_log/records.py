"""What the traffic log says of a request and of a response, and how it is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from blockops.operations.traffic_log.redaction import (
    may_hold_secrets,
    shown_headers,
    without_secrets,
)


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """
    A request, as it came.

    :param id: the same as in the record of its response
    :param client: the address it came from
    :param key: the name of the API key that it came with
    :param path: where it went; its query is not written
    :param session: whose it is
    :param headers: all there were; only harmless ones are written
    :param size: bytes of its body
    :param messages: how many messages it holds
    :param tools: how many tools it offers
    :param body: the beginning of its body
    """

    id: str
    client: str | None = None
    key: str | None = None
    method: str
    path: str
    model: str | None = None
    stream: bool | None = None
    session: str | None = None
    messages: int | None = None
    tools: int | None = None
    headers: Mapping[str, str] = {}
    size: int = 0
    body: bytes = b""


class ResponseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """
    A response, when it has ended; times are in milliseconds.

    :param id: that of its request
    :param status: the HTTP status that the client got; None when it left before
    :param outcome: how it ended, in a word or two: done, client left, failed ...
    :param queued_ms: how long the request waited for its place
    :param first_byte_ms: from the request to the first byte of the backend's body
    :param last_byte_ms: from the request to the end of the answer
    :param bytes_in: bytes of the backend's body
    :param bytes_out: bytes of the client's body
    :param usage: the tokens, as the backend counted them
    :param calls: the names of the calls that were made
    :param formats: how many calls were written in which format
    :param tally: what the parser counted
    :param error: what went wrong
    :param body: the beginning of what the backend wrote
    """

    id: str
    status: int | None = None
    outcome: str | None = None
    queued_ms: float | None = None
    first_byte_ms: float | None = None
    last_byte_ms: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    usage: Mapping[str, Any] | None = None
    calls: Sequence[str] = ()
    formats: Mapping[str, int] = {}
    finish_reasons: Sequence[str] = ()
    tally: Mapping[str, int] = {}
    error: str | None = None
    body: bytes = b""


Record = RequestRecord | ResponseRecord

_TEXTS = ("body", "path", "error")
_EVENTS = {RequestRecord: "request", ResponseRecord: "response"}


def line(record: Record, when: float, secrets: Sequence[str] = ()) -> str:
    """
    Return `record` as one line of JSON, without the newline and without secrets.

    Most records have none: one look at all of it together tells.

    :param when: seconds since 1970
    :param secrets: what is hidden wherever it stands
    """
    written: dict[str, Any] = {"time": _time(when), "event": _EVENTS[type(record)]}
    written |= msgspec.structs.asdict(record)
    # Most bodies are UTF-8 that was cut somewhere; others are better garbled than missing.
    written["body"] = record.body.decode("utf-8", "replace")
    if isinstance(record, RequestRecord):
        written["path"] = record.path.partition("?")[0].partition("#")[0]
        written["headers"] = shown_headers(record.headers)
    if secrets or may_hold_secrets("\n".join(_searched(written))):
        _hide_secrets(written, secrets)
    return _json(written)


def _searched(written: dict[str, Any]) -> list[str]:
    """Return what of a record comes from outside as text."""
    texts = [written[name] for name in _TEXTS if written.get(name)]
    return [*texts, *written.get("headers", {}).values()]


def _hide_secrets(written: dict[str, Any], secrets: Sequence[str]) -> None:
    for name in _TEXTS:
        if written.get(name):
            written[name] = without_secrets(written[name], secrets)
    for name, value in written.get("headers", {}).items():
        written["headers"][name] = without_secrets(value, secrets)


def _time(when: float) -> str:
    text = datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _json(value: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (ValueError, TypeError):
        # A name that the model made up may hold half a surrogate pair, and usage anything.
        return json.dumps(value, default=str)
