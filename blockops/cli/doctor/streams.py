"""Examines whether a backend streams, and whether its streams report usage."""

from __future__ import annotations

from typing import Any

import msgspec

from blockops.api.backend_errors import extract_message
from blockops.api.request import ChatRequest
from blockops.cli.doctor.chat import ChatProbe
from blockops.cli.doctor.findings import Finding
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.stream import StreamTranslator
from blockops.upstream.probe import ProbeResponse

_REQUEST: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Say OK."}],
    "max_tokens": 16,
    "stream": True,
}


async def stream_finding(chat: ChatProbe) -> Finding:
    """Return the finding about streams, after requesting one, with its usage if possible."""
    response = await chat.request({**_REQUEST, "stream_options": {"include_usage": True}})
    if response is not None and response.is_success:
        return _read(response)
    without_usage = await chat.request(_REQUEST)
    if without_usage is not None and without_usage.is_success:
        text = "It streams, but rejects requests for usage in a stream; blockops will request none."
        return _finding("no usage", text)
    reason = extract_message(response.body) if response is not None else "no response in time"
    return _finding("rejected", f"It rejects requests for a stream: {reason}")


def _read(response: ProbeResponse) -> Finding:
    if response.body.lstrip().startswith(b"{"):
        text = "It sends a non-streaming response to a streaming request; blockops converts it."
        return _finding("not streamed", text)
    request = ChatRequest(msgspec.json.encode(_REQUEST))
    translator = StreamTranslator(request, TranslationOptions())
    translator.receive_data(response.body)
    translator.end(is_truncated=False)
    if translator.report.error is not None:
        return _finding("broken", f"Its stream is broken: {translator.report.error}")
    if translator.report.usage is None:
        return _finding("no usage", "It streams, without usage.")
    return _finding("usage", "It streams, and reports usage.")


def _finding(verdict: str, text: str) -> Finding:
    return Finding(topic="streams", verdict=verdict, text=text)
