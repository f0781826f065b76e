"""How a backend streams."""

from __future__ import annotations

from typing import Any

import msgspec

from blockops import errors
from blockops.api.chat.request import ChatRequest
from blockops.cli.doctor.findings import Finding
from blockops.toolcalls.options import Rules
from blockops.translation.stream import StreamTranscoder
from blockops.upstream.probe import Answer, Asking

_REQUEST: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Say OK."}],
    "max_tokens": 16,
    "stream": True,
}
_WISH = {"stream_options": {"include_usage": True}}


async def stream_finding(asking: Asking, model: str | None, patience: float) -> Finding:
    """Return whether the backend streams, and whether it tells usage when it does."""
    request = _REQUEST if model is None else {**_REQUEST, "model": model}
    answer = await asking.ask("POST /v1/chat/completions", {**request, **_WISH}, patience)
    if answer is not None and answer.good:
        return _finding(answer)
    again = await asking.ask("POST /v1/chat/completions", request, patience)
    if again is not None and again.good:
        text = "It streams, but refuses to tell usage there; blockops stops asking for it."
        return _stream("no usage", text)
    said = errors.message_in(answer.body) if answer is not None else "no answer came in time"
    return _stream("refused", f"It refuses to stream: {said}")


def _finding(answer: Answer) -> Finding:
    if answer.body.lstrip().startswith(b"{"):
        return _stream("whole", "It answers whole where a stream is asked for; blockops makes one.")
    asked = ChatRequest.parse(msgspec.json.encode(_REQUEST))
    transcoder = StreamTranscoder(asked, Rules())
    transcoder.receive_data(answer.body)
    transcoder.end(cut=False)
    if transcoder.report.error is not None:
        return _stream("broken", f"Its stream breaks off: {transcoder.report.error}")
    if transcoder.report.usage is None:
        return _stream("no usage", "It streams, and does not tell usage there.")
    return _stream("usage", "It streams, and tells usage.")


def _stream(verdict: str, text: str) -> Finding:
    return Finding(topic="streams", verdict=verdict, text=text)
