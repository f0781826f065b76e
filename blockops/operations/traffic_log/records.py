"""The records of the traffic log, their fields, and their JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from blockops.operations.traffic_log.redaction import loggable_headers, redact


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """
    A request, recorded when it arrives.

    :param id: connects it with the record of its response
    :param key: the name of the client's API key
    :param path: the target; its query is not written
    :param tools: number of offered tools
    :param headers: all headers; only those that never contain secrets are written
    :param size: bytes of the body
    :param body: the beginning of the body
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
    A response, recorded when it ends. Times are in milliseconds.

    :param status: the HTTP status sent to the client, or None if the client disconnected first
    :param outcome: how it ended: "done", "failed" or "client left"
    :param queued_ms: from the request's arrival until it is sent to the backend
    :param first_byte_ms: from the request's arrival to the first byte of the backend's body
    :param last_byte_ms: from the request's arrival to the end of the response
    :param bytes_in: bytes of the backend's body
    :param bytes_out: bytes of the client's body
    :param usage: the token counts reported by the backend
    :param calls: the names of the tool calls
    :param formats: number of tool calls by dialect
    :param tally: the counters of the translation
    :param body: the beginning of the backend's body
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


def to_json_line(record: Record, when: float, secrets: Sequence[str] = ()) -> str:
    """Return `record`, of `when` in seconds since 1970, as one line of JSON with masked secrets."""
    time = datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")
    fields: dict[str, Any] = {
        "time": time.replace("+00:00", "Z"),
        "event": "request" if isinstance(record, RequestRecord) else "response",
        **msgspec.structs.asdict(record),
    }
    # Most bodies are UTF-8, possibly truncated within a character; others are readable in part.
    fields["body"] = record.body.decode("utf-8", "replace")
    if isinstance(record, RequestRecord):
        fields["path"] = record.path.partition("?")[0].partition("#")[0]
        fields["headers"] = {
            name: redact(value, secrets) for name, value in loggable_headers(record.headers).items()
        }
    for name in ("body", "path", "error"):  # may contain secrets, as headers may
        if fields.get(name):
            fields[name] = redact(fields[name], secrets)
    try:
        return msgspec.json.encode(fields).decode()
    except (ValueError, TypeError):
        # A name from the model may contain half a surrogate pair, and `usage` any value.
        return json.dumps(fields, default=str)
