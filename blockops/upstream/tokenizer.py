"""
`Tokenizer`: exact token counts from a backend that offers `POST /tokenize`.

The first response shows whether the backend has that route. If it has not, it is never requested
again. If the backend is unreachable or fails, the route is tried again after `RETRY_PAUSE` seconds.
"""

from __future__ import annotations

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from blockops.upstream.probe import BackendProbe, ProbeResponse

#: Seconds without requests after one that got no response, or a 5xx.
RETRY_PAUSE = 60.0


class _TokenizeResponse(msgspec.Struct):
    """llama.cpp's server sends `tokens` alone, vLLM and SGLang send both."""

    count: int | None = None
    tokens: list[msgspec.Raw] | None = None


class Tokenizer:
    """Counts tokens with the backend's `POST /tokenize`."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, probe: BackendProbe) -> None:
        self._clock = clock
        self._probe = probe
        # None until a response has shown whether the backend has the route.
        self._is_supported: bool | None = None
        self._retry_at = 0.0

    async def count(self, text: str, model: str | None) -> int | None:
        """Return the number of tokens of `text` for `model`, or None if it is not available."""
        if self._is_supported is False or self._clock.seconds() < self._retry_at:
            return None
        # llama.cpp's server reads `content`, vLLM and SGLang read `prompt`.
        body = {"content": text, "prompt": text, "add_special_tokens": False}
        if model is not None:
            body["model"] = model
        try:
            response = await self._probe.request("POST /tokenize", body)
        except UnicodeEncodeError:
            # The text contains half a surrogate pair, which JSON cannot represent.
            return None
        return self._read_count(response, model)

    def _read_count(self, response: ProbeResponse | None, model: str | None) -> int | None:
        """Return the count in `response`, or None; record whether the backend has the route."""
        if response is None or response.is_server_error or not response.is_complete:
            self._retry_at = self._clock.seconds() + RETRY_PAUSE
            return None
        if model and not response.is_success and model.encode("utf-8", "replace") in response.body:
            # The model is unknown, which implies nothing about the route.
            return None
        decoded = response.decode(_TokenizeResponse) if response.is_success else None
        count = None
        if decoded is not None:
            count = decoded.count if decoded.tokens is None else len(decoded.tokens)
        if self._is_supported is None:
            self._is_supported = count is not None
            if self._is_supported:
                self._log.info("Tokens are counted with the backend's /tokenize")
            else:
                self._log.info("Tokens are estimated: the backend has no /tokenize")
        return count
