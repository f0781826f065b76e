"""The backend's identity and its findings."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from blockops.cli.doctor.identity import ServerIdentity, identify
from blockops.upstream.probe import ProbeResponse
from tests.cli.doctor.scripted import ScriptedProbe, json_response


def listing(owner: str | None, server: str = "", **fields: Any) -> ProbeResponse:
    model = {"id": "m", "object": "model", **({} if owner is None else {"owned_by": owner})}
    return json_response({"object": "list", "data": [{**model, **fields}]}, server=server)


class IdentifyTests(SynchronousTestCase):
    def identify(self, models: ProbeResponse | None, **replies: ProbeResponse) -> ServerIdentity:
        calls = {f"GET /{path.replace('__', '/')}": reply for path, reply in replies.items()}
        probe = ScriptedProbe({"GET /v1/models": models, **calls})
        return self.successResultOf(Deferred.fromCoroutine(identify(probe)))

    def test_llama_cpp(self) -> None:
        props = {
            "default_generation_settings": {"n_ctx": 2048},
            "total_slots": 4,
            "build_info": "b6000-abc",
        }
        server = self.identify(listing("llamacpp"), props=json_response(props))
        self.assertEqual(server, ServerIdentity("llama.cpp", "b6000-abc", ("m",), 2048, 4))

    def test_a_build_of_unknown_version(self) -> None:
        server = self.identify(
            listing("llamacpp"), props=json_response({"build_info": "b0-unknown"})
        )
        self.assertEqual(server, ServerIdentity("llama.cpp", "", ("m",)))

    def test_vllm(self) -> None:
        models = listing("vllm", max_model_len=4096)
        server = self.identify(models, version=json_response({"version": "0.32.0"}))
        self.assertEqual(server, ServerIdentity("vLLM", "0.32.0", ("m",), 4096))

    def test_others(self) -> None:
        self.assertEqual(self.identify(listing("vllm-mlx")).kind, "vllm-mlx")
        self.assertEqual(self.identify(listing("sglang")).kind, "SGLang")
        ollama = self.identify(listing("library"), api__version=json_response({"version": "0.9"}))
        self.assertEqual((ollama.kind, ollama.version), ("Ollama", "0.9"))
        python = listing(None, "BaseHTTP/0.6 Python/3.11.7")
        self.assertEqual(self.identify(python).kind, "mlx-lm")

    def test_unknown(self) -> None:
        for response in (
            None,
            ProbeResponse(404, b""),
            ProbeResponse(200, b""),
            json_response({"data": "?"}),
            ProbeResponse(200, b'{"data": [{"id": "\xff", "owned_by": "vllm"}]}'),
            listing("me"),
        ):
            server = self.identify(response)
            self.assertEqual((server.kind, server.context, server.parallel_slots), ("", None, None))

    def test_invalid_numbers(self) -> None:
        value: Any
        for value in (0, -1, "4", None, 1.5, {}, True):
            props = json_response(
                {"default_generation_settings": {"n_ctx": value}, "total_slots": value}
            )
            server = self.identify(listing("llamacpp"), props=props)
            self.assertEqual((server.context, server.parallel_slots), (None, None), value)


class FindingTests(SynchronousTestCase):
    def test_options(self) -> None:
        options = [
            option
            for finding in ServerIdentity("llama.cpp", "", ("a", "b"), 4000, 2).findings()
            for option in finding.options
        ]
        self.assertEqual(
            options,
            ["--token-hard-threshold=3000", "--token-warn-threshold=2400", "--max-concurrent=2"],
        )

    def test_a_long_list_of_models(self) -> None:
        text = (
            ServerIdentity(models=tuple(f"m{number}" for number in range(300))).findings()[0].text
        )
        self.assertIn("m9 and 290 more.", text)
        self.assertNotIn("m10", text)

    def test_unreported_facts(self) -> None:
        findings = ServerIdentity().findings()
        self.assertEqual(
            [each.verdict for each in findings], ["unknown", "not reported", "not reported"]
        )
        self.assertEqual([each.options for each in findings], [(), (), ()])
