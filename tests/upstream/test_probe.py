"""What is found out about the backend, how often, and what becomes of its answers."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockops.upstream.client import Upstream
from blockops.upstream.probe import (
    AGAIN,
    MAX_SLOTS,
    PATIENCE,
    Answer,
    Asking,
    Forgetting,
    Tokenizer,
)
from tests.world import Backend, Reactor


class Told(Asking):
    """Answers for a backend, by the call; what it has no answer for is out of reach."""

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, tuple[int, bytes]] = answers.pop("calls", {})
        self.calls: list[str] = []
        self.bodies: list[Any] = []

    def ask(
        self, call: str, body: Any = None, patience: float = PATIENCE
    ) -> Deferred[Answer | None]:
        self.calls.append(call)
        self.bodies.append(body)
        answer = self.answers.get(call)
        return succeed(None if answer is None else Answer(*answer))


def told(**calls: tuple[int, bytes]) -> Told:
    return Told(calls=calls)


class Asked(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        upstream = Upstream(self.reactor, "http://127.0.0.1:8082")
        self.outcome = Asking(self.reactor, upstream).ask("POST /x", {"a": 1})

    def backend(self) -> Backend:
        *_, factory, _, _ = self.reactor.tcpClients[-1]
        protocol = factory.buildProtocol(None)
        assert protocol is not None
        backend = Backend(self.reactor, protocol)
        self.reactor.advance(0)
        return backend

    def test_answered(self) -> None:
        backend = self.backend()
        self.assertIn(b"Content-Type: application/json", backend.request())
        self.assertEqual(backend.asked(), {"a": 1})
        backend.answer({"b": 2}, "404 Not Found")
        answer = self.successResultOf(self.outcome)
        assert answer is not None
        self.assertEqual((answer.status, answer.good), (404, False))
        self.assertEqual(answer.read(dict[str, int]), {"b": 2})
        self.assertIsNone(answer.read(list[int]))

    def test_late(self) -> None:
        backend = self.backend()
        self.reactor.pump([1] * 6)
        self.assertIsNone(self.successResultOf(self.outcome))
        self.assertTrue(backend.wire.aborted)

    def test_out_of_reach(self) -> None:
        self.backend().leave()
        self.assertIsNone(self.successResultOf(self.outcome))

    def test_cancelled(self) -> None:
        """Whoever asks has gone: that must not look like a backend that does not answer."""
        backend = self.backend()
        self.outcome.cancel()
        self.failureResultOf(self.outcome, CancelledError)
        self.assertTrue(backend.wire.aborted)


class Tokenizers(SynchronousTestCase):
    def count(self, answer: tuple[int, bytes] | None) -> tuple[Tokenizer, Told, Clock]:
        self.told = Told(calls={} if answer is None else {"POST /tokenize": answer})
        self.clock = Clock()
        self.clock.advance(1_000)
        return Tokenizer(self.clock, self.told), self.told, self.clock

    def tokens(self, tokenizer: Tokenizer, text: str = "hello") -> int | None:
        return self.successResultOf(Deferred.fromCoroutine(tokenizer.count(text, "`m`")))

    def test_kinds(self) -> None:
        for body in (
            b'{"tokens":[1,2,3]}',
            b'{"count":3,"max_model_len":9,"tokens":[1,2,3]}',
            b'{"tokens":[{"id":1,"piece":"a"},{"id":2,"piece":"b"},{}]}',
            b'{"count":3}',
        ):
            tokenizer, asked, _ = self.count((200, body))
            self.assertEqual(self.tokens(tokenizer), 3, body)
        self.assertEqual(asked.bodies[0]["content"], "hello")
        self.assertEqual(asked.bodies[0]["prompt"], "hello")
        self.assertEqual(asked.bodies[0]["model"], "`m`")

    def test_none(self) -> None:
        for answer in ((404, b"{}"), (405, b""), (501, b"<html>"), (200, b"{}"), (200, b"[")):
            tokenizer, asked, clock = self.count(answer)
            for _ in range(3):
                self.assertIsNone(self.tokens(tokenizer))
                clock.advance(2 * AGAIN)
            self.assertEqual(len(asked.calls), 1, answer)

    def test_out_of_reach_is_asked_again_after_a_while(self) -> None:
        for answer in (None, (500, b"oops")):
            tokenizer, asked, clock = self.count(answer)
            self.assertIsNone(self.tokens(tokenizer))
            self.assertIsNone(self.tokens(tokenizer))
            self.assertEqual(len(asked.calls), 1)
            clock.advance(AGAIN)
            asked.answers["POST /tokenize"] = (200, b'{"count":1}')
            self.assertEqual(self.tokens(tokenizer), 1)

    def test_an_unknown_model_is_not_its_end(self) -> None:
        tokenizer, asked, _ = self.count(
            (404, b'{"error": {"message": "The model `m` is not here"}}')
        )
        self.assertIsNone(self.tokens(tokenizer))
        asked.answers["POST /tokenize"] = (200, b'{"count":1}')
        self.assertEqual(self.tokens(tokenizer), 1)

    def test_one_refusal_is_not_its_end(self) -> None:
        tokenizer, asked, _ = self.count((200, b'{"count":1}'))
        self.tokens(tokenizer)
        asked.answers["POST /tokenize"] = (400, b"too long")
        self.assertIsNone(self.tokens(tokenizer))
        asked.answers["POST /tokenize"] = (200, b'{"count":1}')
        self.assertEqual(self.tokens(tokenizer), 1)


MODELS = "GET /v1/models"


def owned_by(owner: str) -> tuple[int, bytes]:
    return 200, b'{"data":[{"id":"m","owned_by":"%s"}]}' % owner.encode()


class Forgettings(SynchronousTestCase):
    def forget(self, forgetting: Forgetting) -> None:
        self.successResultOf(Deferred.fromCoroutine(forgetting.forget()))

    def check(self, asked: Told, how: str, *calls: str, done: int = 1, failed: int = 0) -> None:
        forgetting = Forgetting(asked, how)
        self.forget(forgetting)
        self.assertEqual(asked.calls, list(calls))
        self.assertEqual((forgetting.done, forgetting.failed), (done, failed))

    def test_each_kind_has_its_way(self) -> None:
        for owner, call in (
            ("vllm-mlx", "DELETE /v1/cache"),
            ("vllm", "POST /reset_prefix_cache"),
            ("sglang", "POST /flush_cache"),
            ("somebody", "DELETE /v1/cache"),
        ):
            asked = Told(calls={MODELS: owned_by(owner), call: (200, b'{"success": true}')})
            self.check(asked, "auto", MODELS, call)

    def test_llamacpp_has_slots(self) -> None:
        erase = [f"POST /slots/{slot}?action=erase" for slot in range(3)]
        asked = Told(
            calls={
                MODELS: owned_by("llamacpp"),
                "GET /props": (200, b'{"total_slots":3}'),
                **dict.fromkeys(erase, (200, b"{}")),
            }
        )
        self.check(asked, "auto", MODELS, "GET /props", *erase)
        many = Told(
            calls={
                MODELS: owned_by("llamacpp"),
                "GET /props": (200, b'{"total_slots":999}'),
                **{f"POST /slots/{slot}?action=erase": (200, b"{}") for slot in range(999)},
            }
        )
        self.forget(Forgetting(many, "auto"))
        self.assertEqual(len(many.calls), MAX_SLOTS + 2)

    def test_a_call_of_ones_own(self) -> None:
        self.check(Told(calls={"POST /clear": (204, b"")}), "POST /clear", "POST /clear")

    def test_off(self) -> None:
        self.check(Told(), "off", done=0)

    def test_a_backend_without_the_route_is_asked_once(self) -> None:
        for status in (404, 405, 501):
            asked = Told(calls={MODELS: (404, b""), "DELETE /v1/cache": (status, b"<html>")})
            forgetting = Forgetting(asked, "auto")
            for _ in range(3):
                self.forget(forgetting)
            self.assertEqual(asked.calls, [MODELS, "DELETE /v1/cache"])
            self.assertEqual((forgetting.done, forgetting.failed), (0, 1))

    def test_what_it_is_is_asked_once(self) -> None:
        asked = Told(calls={MODELS: owned_by("vllm"), "POST /reset_prefix_cache": (200, b"")})
        forgetting = Forgetting(asked, "auto")
        for _ in range(3):
            self.forget(forgetting)
        self.assertEqual(asked.calls.count(MODELS), 1)
        self.assertEqual(forgetting.done, 3)

    def test_failures_are_counted_and_tried_again(self) -> None:
        for answer in ((500, b"oops"), (400, b"busy"), (200, b'{"success": false}')):
            asked = Told(calls={"POST /clear": answer})
            forgetting = Forgetting(asked, "POST /clear")
            self.forget(forgetting)
            self.forget(forgetting)
            self.assertEqual((len(asked.calls), forgetting.failed), (2, 2))

    def test_a_backend_that_is_still_loading_has_not_said_what_it_is(self) -> None:
        asked = Told(calls={MODELS: (503, b"loading")})
        forgetting = Forgetting(asked, "auto")
        self.forget(forgetting)
        self.assertEqual((asked.calls, forgetting.failed), ([MODELS], 1))
        asked.answers = {MODELS: owned_by("vllm"), "POST /reset_prefix_cache": (200, b"")}
        self.forget(forgetting)
        self.assertEqual(forgetting.done, 1)

    def test_out_of_reach(self) -> None:
        asked = Told()
        forgetting = Forgetting(asked, "auto")
        self.forget(forgetting)
        asked.answers = {MODELS: owned_by("vllm-mlx"), "DELETE /v1/cache": (200, b"{}")}
        self.forget(forgetting)
        self.assertEqual((forgetting.done, forgetting.failed), (1, 1))
