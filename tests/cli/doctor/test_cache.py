"""Token counts, and prompt caches that are emptied or not."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockops.cli.doctor.cache import cache_finding, token_finding
from blockops.cli.doctor.chat import ChatProbe
from blockops.cli.doctor.findings import Finding
from blockops.upstream.probe import ProbeResponse
from blockops.upstream.tokenizer import Tokenizer
from tests.cli.doctor.scripted import CHAT, ScriptedProbe, completion, json_response
from tests.cli.doctor.test_identity import listing

RESET = "DELETE /v1/cache"


class CachingBackend:
    """
    A backend with a prompt cache.

    :param is_emptied: False if it only pretends to empty its cache
    :param is_reported: its usage reports the cached tokens
    """

    def __init__(self, *, is_emptied: bool = True, is_reported: bool = True) -> None:
        self.is_emptied = is_emptied
        self.is_reported = is_reported
        self.is_warm = False

    def chat(self, _: Any) -> ProbeResponse:
        cached, self.is_warm = 100 if self.is_warm else 0, True
        details: Any = (
            {"prompt_tokens_details": {"cached_tokens": cached}} if self.is_reported else {}
        )
        return json_response(completion(prompt_tokens=110, **details))

    def reset(self, _: Any) -> ProbeResponse:
        self.is_warm = self.is_warm and not self.is_emptied
        return json_response({"status": "cleared"})


class PromptCacheTests(SynchronousTestCase):
    def finding(self, kind: str = "", **replies: Any) -> Finding:
        calls = {CHAT: replies.pop("chat", CachingBackend().chat), **replies.pop("calls", {})}
        self.probe = ScriptedProbe({"GET /v1/models": listing("vllm-mlx"), **calls})
        finding = cache_finding(ChatProbe(self.probe, "m", 9.0), kind)
        return self.successResultOf(Deferred.fromCoroutine(finding))

    def test_emptied(self) -> None:
        for is_reported in (True, False):
            backend = CachingBackend(is_reported=is_reported)
            finding = self.finding(chat=backend.chat, calls={RESET: backend.reset})
            self.assertEqual((finding.verdict, finding.options), ("emptied", ()))
            self.assertIn(RESET, finding.text)

    def test_not_emptied(self) -> None:
        backend = CachingBackend(is_emptied=False)
        finding = self.finding("llama.cpp", chat=backend.chat, calls={RESET: backend.reset})
        self.assertEqual(finding.verdict, "not emptied")
        self.assertIn("of the 110 tokens of the next prompt, 100 still came", finding.text)
        self.assertIn("--cache-ram 0", finding.hint)

    def test_not_supported(self) -> None:
        for response, reason in (
            (None, "no response"),
            (ProbeResponse(501, b"<html>"), "no such call (501)"),
            (ProbeResponse(500, b""), "failed (500)"),
            (json_response({"success": False}), "failed (200)"),
        ):
            finding = self.finding(calls={RESET: response})
            self.assertEqual(finding.verdict, "not supported")
            self.assertIn(reason, finding.text)
            self.assertEqual(finding.options, ("--cache-reset=off",))

    def test_a_backend_of_unknown_kind(self) -> None:
        self.assertEqual(self.finding(calls={"GET /v1/models": None}).verdict, "unknown")


class TokenTests(SynchronousTestCase):
    def test_counted_and_estimated(self) -> None:
        for response, verdict in (
            (json_response({"tokens": [1, 2]}), "counted"),
            (ProbeResponse(404, b""), "estimated"),
        ):
            tokenizer = Tokenizer(Clock(), ScriptedProbe({"POST /tokenize": response}))
            finding = token_finding(tokenizer, "m")
            result = self.successResultOf(Deferred.fromCoroutine(finding))
            self.assertEqual(result.verdict, verdict)
