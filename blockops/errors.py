"""
Errors in the shape that OpenAI's clients read.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from __future__ import annotations

import json
from html.parser import HTMLParser
from http import HTTPStatus
from typing import Any

import msgspec

from blockops.api.lenient_json import clean_text, dumps, loads

_MAX_MESSAGE = 2_000  # characters: a page of a terminal
_MAX_MARKUP = 64 * 1024  # bytes of an error page that are read; those met have some hundred
_UNSEEN = frozenset({"script", "style", "title"})  # the title says what the heading repeats
_REFUSING = range(400, 600)  # statuses
_OURS = 502  # the status of what a backend did not give one
_TYPES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


class ApiError(Exception):
    """
    A refusal or a failure that the client is told of.

    :param status: the HTTP status, as long as no byte of the answer has left
    :param message: what happened and what to do next, for a person
    :param type: OpenAI's word for the kind, such as `invalid_request_error`
    :param code: OpenAI's word for this one, such as `context_length_exceeded`
    :param param: the request's field at fault, if it is one
    :param retry_after: seconds that the client should wait before it asks again
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 - the field's name in the API
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return what the response's headers say of the error."""
        if self.retry_after is None:
            return []
        return [(b"Retry-After", b"%d" % self.retry_after)]

    def body(self) -> bytes:
        """Return the error as the JSON body of a response, or the data of an event."""
        error = {
            "message": clean_text(self.message),
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})


def from_backend(status: int, body: bytes, content_type: str = "") -> tuple[int, bytes]:
    """
    Return the status and the JSON body that the client gets for a backend's error answer.

    An `error` object passes byte for byte, and mended if it is only nearly JSON; any other text is
    wrapped into the shape.

    :param content_type: the header's value as the backend sent it
    """
    value = _json(body)
    if _has_shape(value):
        return status, body if _is_json(body) else dumps(value)
    message = _message(value, body, markup="html" in content_type.lower())
    if not message:
        message = f"The backend answered with status {status} and no text. Its log may say why."
    return status, ApiError(status, message, type=_type(status)).body()


def from_event(data: bytes) -> tuple[str, bytes]:
    """Return the message and the JSON of an error that a backend sent in mid-answer."""
    value = _json(data)
    if _has_shape(value):
        return _message(value, data), dumps({"error": value["error"]})
    error = from_answer(data)
    return error.message, error.body()


def from_answer(data: bytes) -> ApiError:
    """
    Return the error that a backend sent where its answer should be, with a status that says OK.

    Its own type and code stay, and where the code is a status (vLLM, llama.cpp), it is that.
    """
    value = _json(data)
    fields = value.get("error") if _has_shape(value) else value
    fields = fields if isinstance(fields, dict) else {}
    status = _status_in(fields.get("code"))
    message = _message(value, data)
    return ApiError(
        status,
        message or "The backend reported an error without a text. Its log may say why.",
        type=_text_in(fields.get("type")) or _type(status),
        code=_text_in(fields.get("code")) or "backend_error",
        param=_text_in(fields.get("param")),
    )


def _status_in(code: Any) -> int:
    """Return the status that an error's code is; `_OURS` if it is none."""
    said = bytes(code) if isinstance(code, msgspec.Raw) else b""
    status = int(said) if said.isdigit() and len(said) == len(b"400") else _OURS
    return status if status in _REFUSING else _OURS


def _text_in(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def says_error(data: bytes) -> bool:
    """Tell whether an object that is no answer is an error: FastAPI's, or vLLM's of before 2025."""
    value = _json(data)
    return isinstance(value, dict) and (
        bool(value.get("error")) or "detail" in value or value.get("object") == "error"
    )


def message_in(data: bytes) -> str:
    """Return what a backend's error says to a person; empty if it says nothing."""
    return _message(_json(data), data)


def _readable(data: bytes) -> str:
    """Return bytes as text for a message: on one line, and no more than a person reads."""
    text = " ".join(data[: 4 * _MAX_MESSAGE].decode("utf-8", "replace").split())
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 3] + "..."


def _json(data: bytes) -> Any:
    """Return the value of what may be JSON; None if it is not."""
    try:
        value = loads(data)
        dumps(value)
    except (ValueError, RecursionError):
        return None  # also where it is nested too deeply to be looked into
    return {} if value is None else value


def _is_json(data: bytes) -> bool:
    """Tell whether Python's own reader takes it, as most clients' do: NaN, but no raw control."""
    try:
        json.loads(data.decode())
    except ValueError:
        return False
    return True


def _has_shape(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("error"), dict) and bool(value["error"])


def _message(value: Any, data: bytes, *, markup: bool = False) -> str:
    """
    Return what a backend's error says to a person.

    :param value: `data` as JSON, None if it is none
    :param markup: whether it is known to be HTML
    """
    if value is None:
        markup = markup or data.lstrip().startswith(b"<")
        return _readable(_text_of(data) if markup else data)
    said = _said(value)
    return _readable((said if isinstance(said, str) else _plain(said)).encode("utf-8", "replace"))


def _said(value: Any) -> Any:
    """Return the part of an error's JSON that says what happened."""
    if isinstance(value, dict):
        for key in ("error", "detail", "message", "msg"):
            if value.get(key):
                return _said(value[key])
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return "; ".join(_complaint(item) for item in value)
    return value


def _complaint(item: dict[str, Any]) -> str:
    """Return in one line what FastAPI complains of: `{"loc": ["body", "messages"], "msg": ...}`."""
    said = _said(item)
    text = said if isinstance(said, str) else _plain(said)
    where = item.get("loc")
    if not isinstance(where, list):
        return text
    return ".".join(step if isinstance(step, str) else _plain(step) for step in where) + f": {text}"


def _plain(value: Any) -> str:
    return dumps(value).decode() if value else ""


def _type(status: int) -> str:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "server_error"
    return _TYPES.get(status, "invalid_request_error")


def _text_of(markup: bytes) -> bytes:
    parser = _Text()
    parser.feed(markup[:_MAX_MARKUP].decode("utf-8", "replace"))
    parser.close()
    return " ".join(parser.text).encode()


class _Text(HTMLParser):
    """
    The text of an HTML page, without its scripts and styles.

    :ivar text: what stands between its tags
    """

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self._unseen = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._unseen += tag in _UNSEEN

    def handle_endtag(self, tag: str) -> None:
        self._unseen -= tag in _UNSEEN and self._unseen > 0

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.text.append(data)
