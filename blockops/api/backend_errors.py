"""
Converts errors of backends, in any format, to the format of the OpenAI API.

It also has the errors for responses that cannot be used: invalid, empty and truncated ones.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from http import HTTPStatus
from typing import Any

import msgspec

from blockops.api.json_fields import value_or_none
from blockops.api.lenient_json import dumps, loads
from blockops.errors import ApiError

_MAX_MESSAGE = 2_000  # characters: one page of a terminal
_MAX_MARKUP = 64 * 1024  # bytes of an error page that are parsed; real ones have some hundred
_HIDDEN_TAGS = frozenset({"script", "style", "title"})  # the title repeats the heading
_ERROR_STATUS = re.compile(rb"[45]\d\d")
_DEFAULT_STATUS = 502  # for an error that the backend sent without a status
_ERROR_TYPES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


def to_error_response(status: int, body: bytes, content_type: str = "") -> tuple[int, bytes]:
    """
    Return the status and the JSON body of the client's response to a backend's error response.

    An `error` object passes through unchanged; one that is not strict JSON is repaired. Any other
    text becomes the message of an error object.
    """
    value = _parse(body)
    if _error_object(value):
        return status, body if _is_python_json(body) else dumps(value)
    message = (
        _message_text(value, body, is_html="html" in content_type.lower())
        or f"The backend returned status {status} without a message. Check the backend's log."
    )
    return status, ApiError(status, message, type=_error_type(status)).body()


def to_error_event(data: bytes) -> tuple[str, bytes]:
    """Return the message and the JSON of an error that a backend sent within a stream."""
    error = to_api_error(data)
    fields = _error_object(_parse(data))
    return error.message, dumps({"error": fields}) if fields else error.body()


def to_api_error(data: bytes) -> ApiError:
    """
    Return the error that a backend sent in place of an answer, with a status below 400.

    Its type, code and param are kept. A code that is a status (vLLM, llama.cpp) also becomes the
    status.
    """
    value = _parse(data)
    fields = _error_object(value) or value_or_none(dict, value) or {}
    code = fields.get("code")
    digits = bytes(code) if isinstance(code, msgspec.Raw) else b""
    status = int(digits) if _ERROR_STATUS.fullmatch(digits) else _DEFAULT_STATUS
    return ApiError(
        status,
        _message_text(value, data)
        or "The backend reported an error without a message. Check the backend's log.",
        type=value_or_none(str, fields.get("type")) or _error_type(status),
        code=value_or_none(str, code) or "backend_error",
        param=value_or_none(str, fields.get("param")),
    )


def looks_like_error(data: bytes) -> bool:
    """Return True for an error object of OpenAI, of FastAPI, or of vLLM before 2025."""
    value = _parse(data)
    return isinstance(value, dict) and (
        bool(value.get("error")) or "detail" in value or value.get("object") == "error"
    )


def extract_message(data: bytes) -> str:
    """Return the message of a backend's error as one line; empty if it has none."""
    return _message_text(_parse(data), data)


def invalid_response(data: bytes) -> ApiError:
    """Return the error for `data` that is not a response of the OpenAI API."""
    if not data.strip():
        return empty_response()
    return _bad_gateway(
        "backend_invalid_response",
        "The backend sent something that is not a response of the OpenAI API: "
        f"{extract_message(data) or 'no readable text'}",
    )


def empty_response() -> ApiError:
    """Return the error for a response without a body."""
    return _bad_gateway(
        "backend_empty_response",
        "The backend sent an empty response. Some servers do so if a prompt is too long for their "
        "model (llama-cpp-python does). Send a shorter prompt, or check the backend's log.",
    )


def truncated_response(pending: bytes, chunks: int, *, is_connection_lost: bool) -> ApiError:
    """
    Return the error for a backend that closed before its response was complete.

    :param pending: the last data that it sent, if that was not an event
    :param chunks: the number of chunks before that
    :param is_connection_lost: True if the transport reports that bytes are missing
    """
    if not (pending or chunks or is_connection_lost):
        return empty_response()
    how = "The backend closed the connection"
    if is_connection_lost:
        how = "The connection to the backend broke"
    when = "in the middle of its response" if chunks else "before its response began"
    text = "" if pending.startswith(b"data:") else extract_message(pending)
    advice = (
        f"It sent: {text}" if text else "Send the request again; the backend's log may say why."
    )
    return _bad_gateway("backend_truncated", f"{how} {when}. {advice}")


def response_too_large(limit: int) -> ApiError:
    """Return the error for a response of more than `limit` bytes."""
    return _bad_gateway(
        "backend_response_too_large",
        f"The backend's response is larger than {limit} bytes. Raise --max-answer to allow it.",
    )


def _bad_gateway(code: str, message: str) -> ApiError:
    return ApiError(502, message, type="server_error", code=code)


def _one_line(data: bytes) -> str:
    text = " ".join(data[: 4 * _MAX_MESSAGE].decode("utf-8", "replace").split())
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 3] + "..."


def _parse(data: bytes) -> Any:
    """Return the value of JSON text, with {} for null; None if `data` is not JSON."""
    try:
        value = loads(data)
        dumps(value)  # so that a value that is nested too deeply fails here
    except (ValueError, RecursionError):
        return None
    return {} if value is None else value


def _is_python_json(data: bytes) -> bool:
    """Return True if Python's `json` accepts `data`; like most clients' parsers, it allows NaN."""
    try:
        json.loads(data.decode())
    except ValueError:
        return False
    return True


def _error_object(value: Any) -> dict[str, Any]:
    error = value.get("error") if isinstance(value, dict) else None
    return value_or_none(dict, error) or {}


def _message_text(value: Any, data: bytes, *, is_html: bool = False) -> str:
    """Return an error's message as one line; `value` is `data` as JSON, or None if it is not."""
    if value is None:
        is_html = is_html or data.lstrip().startswith(b"<")
        return _one_line(_html_text(data) if is_html else data)
    return _one_line(_as_text(_find_message(value)).encode("utf-8", "replace"))


def _find_message(value: Any) -> Any:
    if isinstance(value, dict):
        for key in ("error", "detail", "message", "msg"):
            if value.get(key):
                return _find_message(value[key])
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return "; ".join(_validation_error(item) for item in value)
    return value


def _validation_error(item: dict[str, Any]) -> str:
    """Return a FastAPI validation error, `{"loc": ["body", "messages"], "msg": ...}`, as text."""
    text = _as_text(_find_message(item))
    location = item.get("loc")
    if not isinstance(location, list):
        return text
    return ".".join(map(_as_text, location)) + f": {text}"


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return dumps(value).decode() if value else ""


def _error_type(status: int) -> str:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "server_error"
    return _ERROR_TYPES.get(status, "invalid_request_error")


def _html_text(markup: bytes) -> bytes:
    parser = _HtmlText()
    parser.feed(markup[:_MAX_MARKUP].decode("utf-8", "replace"))
    parser.close()
    return " ".join(parser.text).encode()


class _HtmlText(HTMLParser):
    """Collects the text between the tags of an HTML page, without scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self._is_hidden = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._is_hidden = tag in _HIDDEN_TAGS

    def handle_endtag(self, tag: str) -> None:
        self._is_hidden = False

    def handle_data(self, data: str) -> None:
        if not self._is_hidden:
            self.text.append(data)
