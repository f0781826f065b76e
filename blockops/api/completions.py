"""The request of `/v1/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from blockops.api.request_fields import (
    NO_ALIASES,
    RequestFields,
    model_change,
    replace_fields,
    resolve_alias,
)


class CompletionRequest:
    """
    The body of `POST /v1/completions`. The text of its response is never translated.

    :ivar stream: True if the client requested a stream
    :ivar include_usage: True if the client requested `usage` at the end of that stream
    :ivar n: number of choices requested for each prompt
    :ivar model: the model that the client named, or None
    :ivar backend_model: the backend's name for that model
    :ivar raw: the body as received
    """

    def __init__(self, body: bytes, fields: RequestFields, aliases: Mapping[str, str]) -> None:
        self.raw = body
        self.stream = fields.boolean("stream", default=False)
        self.include_usage = fields.mapping("stream_options").get("include_usage") is True
        self.n = fields.positive_integer("n")
        self.model = fields.string("model")
        self.backend_model = resolve_alias(self.model, aliases)

    @classmethod
    def parse(cls, body: bytes, aliases: Mapping[str, str] = NO_ALIASES) -> Self:
        """
        Read a request.

        :param aliases: alias -> the backend's name for the model
        :raises ApiError: 400, with the field at fault
        """
        return cls(body, RequestFields.decode(body), aliases)

    def body(self) -> bytes:
        """Return the body for the backend: the received bytes unless the model is an alias."""
        return replace_fields(self.raw, model_change(self.model, self.backend_model))
