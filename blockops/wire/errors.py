"""
Errors in the shape that OpenAI's clients read.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from __future__ import annotations

import msgspec


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

    def body(self) -> bytes:
        """Return the error as the JSON body of a response, or the data of an event."""
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})


def from_backend(status: int, body: bytes, content_type: str = "") -> tuple[int, bytes]:
    """
    Return the status and the JSON body that the client gets for a backend's error answer.

    An `error` object passes byte for byte; any other text is wrapped into the shape.

    :param content_type: the header's value as the backend sent it
    """
    return status, body
