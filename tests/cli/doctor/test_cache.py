"""Prompt caches: emptied, kept in secret, or out of reach."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockops.cli.doctor.cache import Cache, token_finding
from blockops.cli.doctor.findings import Finding
from blockops.upstream.probe import Answer, Tokenizer
from tests.cli.doctor.scripted import CHAT, Scripted, completion, said
from tests.cli.doctor.test_identity import listing

FORGET = "DELETE /v1/cache"


class Caching:
    """A backend with a prompt cache, which shows in its usage."""

    def __init__(self, *, forgets: bool = True, tells: bool = True) -> None:
        self.forgets = forgets
        self.tells = tells
        self.warm = False

    def answer(self, _: Any) -> Answer:
        cached, self.warm = 100 if self.warm else 0, True
        details: Any = {"prompt_tokens_details": {"cached_tokens": cached}} if self.tells else {}
        return said(completion(prompt_tokens=110, **details))

    def forget(self, _: Any) -> Answer:
        self.warm = self.warm and not self.forgets
        return said({"status": "cleared"})


class Emptied(SynchronousTestCase):
    def finding(self, kind: str = "", **replies: Any) -> Finding:
        calls = {CHAT: replies.pop("chat", Caching().answer), **replies.pop("calls", {})}
        self.asking = Scripted({"GET /v1/models": listing("vllm-mlx"), **calls})
        asked = Cache(self.asking, "m", 9.0).finding(kind)
        return self.successResultOf(Deferred.fromCoroutine(asked))

    def test_emptied(self) -> None:
        for tells in (True, False):
            backend = Caching(tells=tells)
            finding = self.finding(chat=backend.answer, calls={FORGET: backend.forget})
            self.assertEqual((finding.verdict, finding.options), ("emptied", ()))
            self.assertIn(FORGET, finding.text)

    def test_kept_in_secret(self) -> None:
        backend = Caching(forgets=False)
        finding = self.finding("llama.cpp", chat=backend.answer, calls={FORGET: backend.forget})
        self.assertEqual(finding.verdict, "kept")
        self.assertIn("of 110 tokens of a prompt 100 came", finding.text)
        self.assertIn("--cache-ram 0", finding.hint)

    def test_stays(self) -> None:
        for answer, why in (
            (None, "not answered"),
            (Answer(501, b"<html>"), "no such call (501)"),
            (Answer(500, b""), "failed (500)"),
            (said({"success": False}), "failed (200)"),
        ):
            finding = self.finding(calls={FORGET: answer})
            self.assertEqual(finding.verdict, "stays")
            self.assertIn(why, finding.text)
            self.assertEqual(finding.options, ("--cache-reset=off",))

    def test_a_backend_that_does_not_say_what_it_is(self) -> None:
        self.assertEqual(self.finding(calls={"GET /v1/models": None}).verdict, "cannot tell")


class Tokens(SynchronousTestCase):
    def test_counted_and_not(self) -> None:
        for answer, verdict in (
            (said({"tokens": [1, 2]}), "counted"),
            (Answer(404, b""), "estimated"),
        ):
            tokenizer = Tokenizer(Clock(), Scripted({"POST /tokenize": answer}))
            asked = token_finding(tokenizer, "m")
            finding = self.successResultOf(Deferred.fromCoroutine(asked))
            self.assertEqual(finding.verdict, verdict)
