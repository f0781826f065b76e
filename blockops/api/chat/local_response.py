"""The JSON of a response that blockops writes itself, without the backend."""

from __future__ import annotations

import secrets

import msgspec


def encode_completion(text: str, model: str, now: float) -> bytes:
    """Return a `chat.completion` with `text` as its content; `now` is in seconds since 1970."""
    message = {"role": "assistant", "content": text}
    return msgspec.json.encode(
        {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion",
            "created": int(now),
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }
    )
