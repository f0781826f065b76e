"""Resets of the prompt cache: the calls of each kind of backend, and their failures."""

from __future__ import annotations

import json

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from blockops.upstream.prompt_cache import MAX_SLOTS, PromptCacheReset
from tests.upstream.scripted_probe import ScriptedProbe

MODELS = "GET /v1/models"


def owned_by(*owners: str) -> tuple[int, bytes]:
    return 200, json.dumps({"data": [{"id": "m", "owned_by": owner} for owner in owners]}).encode()


class PromptCacheResetTests(SynchronousTestCase):
    def reset(self, cache: PromptCacheReset) -> None:
        self.successResultOf(Deferred.fromCoroutine(cache.reset()))

    def check(
        self,
        probe: ScriptedProbe,
        reset_call: str,
        *calls: str,
        resets: int = 1,
        failures: int = 0,
    ) -> None:
        cache = PromptCacheReset(probe, reset_call)
        self.reset(cache)
        self.assertEqual(probe.calls, list(calls))
        self.assertEqual((cache.resets, cache.failures), (resets, failures))

    def test_the_call_of_each_kind_of_backend(self) -> None:
        for owner, call in (
            ("vllm-mlx", "DELETE /v1/cache"),
            ("vllm", "POST /reset_prefix_cache"),
            ("sglang", "POST /flush_cache"),
            ("unknown", "DELETE /v1/cache"),
        ):
            probe = ScriptedProbe({MODELS: owned_by(owner), call: (200, b'{"success": true}')})
            self.check(probe, "auto", MODELS, call)

    def test_the_first_known_kind_decides(self) -> None:
        for owners in (["x", "vllm", "sglang", "vllm-mlx"], ["vllm", "vllm-mlx", "sglang", "a"]):
            call = "POST /reset_prefix_cache"
            probe = ScriptedProbe({MODELS: owned_by(*owners), call: (200, b"{}")})
            self.check(probe, "auto", MODELS, call)

    def test_the_slots_of_llamacpp(self) -> None:
        erase = [f"POST /slots/{slot}?action=erase" for slot in range(3)]
        probe = ScriptedProbe(
            {
                MODELS: owned_by("llamacpp"),
                "GET /props": (200, b'{"total_slots":3}'),
                **dict.fromkeys(erase, (200, b"{}")),
            }
        )
        self.check(probe, "auto", MODELS, "GET /props", *erase)
        probe = ScriptedProbe(
            {
                MODELS: owned_by("llamacpp"),
                "GET /props": (200, b'{"total_slots":999}'),
                **{f"POST /slots/{slot}?action=erase": (200, b"{}") for slot in range(999)},
            }
        )
        self.reset(PromptCacheReset(probe, "auto"))
        self.assertEqual(len(probe.calls), MAX_SLOTS + 2)

    def test_a_configured_call(self) -> None:
        self.check(ScriptedProbe({"POST /clear": (204, b"")}), "POST /clear", "POST /clear")

    def test_off(self) -> None:
        self.check(ScriptedProbe(), "off", resets=0)

    def test_a_missing_route_is_called_once(self) -> None:
        for status in (404, 405, 501):
            probe = ScriptedProbe({MODELS: (404, b""), "DELETE /v1/cache": (status, b"<html>")})
            cache = PromptCacheReset(probe, "auto")
            for _ in range(3):
                self.reset(cache)
            self.assertEqual(probe.calls, [MODELS, "DELETE /v1/cache"])
            self.assertEqual((cache.resets, cache.failures), (0, 1))

    def test_the_kind_is_detected_once(self) -> None:
        probe = ScriptedProbe({MODELS: owned_by("vllm"), "POST /reset_prefix_cache": (200, b"")})
        cache = PromptCacheReset(probe, "auto")
        for _ in range(3):
            self.reset(cache)
        self.assertEqual(probe.calls.count(MODELS), 1)
        self.assertEqual(cache.resets, 3)

    def test_failures_are_counted_and_tried_again(self) -> None:
        for response in ((500, b"oops"), (400, b"busy"), (200, b'{"success": false}')):
            probe = ScriptedProbe({"POST /clear": response})
            cache = PromptCacheReset(probe, "POST /clear")
            self.reset(cache)
            self.reset(cache)
            self.assertEqual((len(probe.calls), cache.failures), (2, 2))

    def test_the_kind_is_not_detected_while_the_backend_loads(self) -> None:
        probe = ScriptedProbe({MODELS: (503, b"loading")})
        cache = PromptCacheReset(probe, "auto")
        self.reset(cache)
        self.assertEqual((probe.calls, cache.failures), ([MODELS], 1))
        probe.responses = {MODELS: owned_by("vllm"), "POST /reset_prefix_cache": (200, b"")}
        self.reset(cache)
        self.assertEqual(cache.resets, 1)

    def test_unreachable(self) -> None:
        probe = ScriptedProbe()
        cache = PromptCacheReset(probe, "auto")
        self.reset(cache)
        probe.responses = {MODELS: owned_by("vllm-mlx"), "DELETE /v1/cache": (200, b"{}")}
        self.reset(cache)
        self.assertEqual((cache.resets, cache.failures), (1, 1))
