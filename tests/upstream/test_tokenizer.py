"""Token counts from the backend's `/tokenize`, and backends without it."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockops.upstream.tokenizer import RETRY_PAUSE, Tokenizer
from tests.upstream.scripted_probe import ScriptedProbe, ScriptedResponse


class TokenizerTests(SynchronousTestCase):
    def make(self, response: ScriptedResponse | None) -> tuple[Tokenizer, ScriptedProbe, Clock]:
        probe = ScriptedProbe({} if response is None else {"POST /tokenize": response})
        clock = Clock()
        clock.advance(1_000)
        return Tokenizer(clock, probe), probe, clock

    def count(self, tokenizer: Tokenizer, text: str = "hello") -> int | None:
        return self.successResultOf(Deferred.fromCoroutine(tokenizer.count(text, "`m`")))

    def test_responses_of_all_kinds_of_backends(self) -> None:
        for body in (
            b'{"tokens":[1,2,3]}',
            b'{"count":3,"max_model_len":9,"tokens":[1,2,3]}',
            b'{"tokens":[{"id":1,"piece":"a"},{"id":2,"piece":"b"},{}]}',
            b'{"count":3}',
        ):
            tokenizer, probe, _ = self.make((200, body))
            self.assertEqual(self.count(tokenizer), 3, body)
        self.assertEqual(probe.bodies[0]["content"], "hello")
        self.assertEqual(probe.bodies[0]["prompt"], "hello")
        self.assertEqual(probe.bodies[0]["model"], "`m`")

    def test_a_backend_without_the_route_is_probed_once(self) -> None:
        for response in ((404, b"{}"), (405, b""), (501, b"<html>"), (200, b"{}"), (200, b"[")):
            tokenizer, probe, clock = self.make(response)
            for _ in range(3):
                self.assertIsNone(self.count(tokenizer))
                clock.advance(2 * RETRY_PAUSE)
            self.assertEqual(len(probe.calls), 1, response)

    def test_an_unreachable_backend_is_tried_again_later(self) -> None:
        for response in (None, (500, b"oops")):
            tokenizer, probe, clock = self.make(response)
            self.assertIsNone(self.count(tokenizer))
            self.assertIsNone(self.count(tokenizer))
            self.assertEqual(len(probe.calls), 1)
            clock.advance(RETRY_PAUSE)
            probe.responses["POST /tokenize"] = (200, b'{"count":1}')
            self.assertEqual(self.count(tokenizer), 1)

    def test_a_truncated_response_implies_nothing_about_the_route(self) -> None:
        tokenizer, probe, clock = self.make((200, b'{"tok', "", False))
        self.assertIsNone(self.count(tokenizer))
        probe.responses = {"POST /tokenize": (200, b'{"tokens":[1,2,3]}')}
        clock.advance(RETRY_PAUSE)
        self.assertEqual(self.count(tokenizer), 3)

    def test_an_unknown_model_implies_nothing_about_the_route(self) -> None:
        tokenizer, probe, _ = self.make(
            (404, b'{"error": {"message": "The model `m` is not here"}}')
        )
        self.assertIsNone(self.count(tokenizer))
        probe.responses["POST /tokenize"] = (200, b'{"count":1}')
        self.assertEqual(self.count(tokenizer), 1)

    def test_a_later_error_implies_nothing_about_the_route(self) -> None:
        tokenizer, probe, _ = self.make((200, b'{"count":1}'))
        self.count(tokenizer)
        probe.responses["POST /tokenize"] = (400, b"too long")
        self.assertIsNone(self.count(tokenizer))
        probe.responses["POST /tokenize"] = (200, b'{"count":1}')
        self.assertEqual(self.count(tokenizer), 1)
