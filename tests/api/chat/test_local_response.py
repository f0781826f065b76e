"""Responses that blockops writes itself."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockops.api.chat.local_response import encode_completion
from tests.api.strict import strict_json


class CompletionTests(SynchronousTestCase):
    def test_completion(self) -> None:
        value = strict_json(encode_completion("Hi", "tiny", 7.9).decode())
        self.assertRegex(value.pop("id"), "^chatcmpl-[0-9a-f]{24}$")
        message = {"role": "assistant", "content": "Hi"}
        self.assertEqual(
            value,
            {
                "object": "chat.completion",
                "created": 7,
                "model": "tiny",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
            },
        )
