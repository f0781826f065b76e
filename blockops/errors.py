"""
`ApiError`: an error in the format of the OpenAI API, raised by every package.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from __future__ import annotations

import re

import msgspec

# In a `str`, a surrogate is unpaired: Python's decoders join the pairs.
_SURROGATE = re.compile("[\ud800-\udfff]")
REPLACEMENT_CHARACTER = "\ufffd"


class ApiError(Exception):
    """
    A rejection or a failure that is reported to the client.

    :param status: the HTTP status of the response, unless its headers have been sent already
    :param message: what happened and what to do next, for a person
    :param type: OpenAI's name for the kind of error, such as `invalid_request_error`
    :param code: OpenAI's name for this error, such as `context_length_exceeded`
    :param param: the request's field at fault, or None
    :param retry_after: seconds to wait before the next attempt, sent as `Retry-After`
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
        """Return the response headers of the error: `Retry-After`, or none."""
        return [] if self.retry_after is None else [(b"Retry-After", b"%d" % self.retry_after)]

    def body(self) -> bytes:
        """Return the error as the JSON body of a response, or as the data of an event."""
        error = {
            "message": replace_surrogates(self.message),
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})


def replace_surrogates(text: str) -> str:
    """Return `text` with U+FFFD for each surrogate, which UTF-8 cannot encode."""
    return _SURROGATE.sub(REPLACEMENT_CHARACTER, text)
