"""Which server it is, and what it tells of itself."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from blockops.cli.doctor.identity import Server, recognise
from blockops.upstream.probe import Answer
from tests.cli.doctor.scripted import Scripted, said


def listing(owner: str | None, server: str = "", **fields: Any) -> Answer:
    model = {"id": "m", "object": "model", **({} if owner is None else {"owned_by": owner})}
    return said({"object": "list", "data": [{**model, **fields}]}, server=server)


class Recognised(SynchronousTestCase):
    def recognise(self, models: Answer | None, **replies: Answer) -> Server:
        calls = {f"GET /{path.replace('__', '/')}": answer for path, answer in replies.items()}
        asking = Scripted({"GET /v1/models": models, **calls})
        return self.successResultOf(Deferred.fromCoroutine(recognise(asking)))

    def test_llama_cpp(self) -> None:
        props = {
            "default_generation_settings": {"n_ctx": 2048},
            "total_slots": 4,
            "build_info": "b6000-abc",
        }
        server = self.recognise(listing("llamacpp"), props=said(props))
        self.assertEqual(server, Server("llama.cpp", "b6000-abc", ("m",), 2048, 4))

    def test_a_build_that_does_not_know_what_it_is(self) -> None:
        server = self.recognise(listing("llamacpp"), props=said({"build_info": "b0-unknown"}))
        self.assertEqual(server, Server("llama.cpp", "", ("m",)))

    def test_vllm(self) -> None:
        models = listing("vllm", max_model_len=4096)
        server = self.recognise(models, version=said({"version": "0.32.0"}))
        self.assertEqual(server, Server("vLLM", "0.32.0", ("m",), 4096))

    def test_others(self) -> None:
        self.assertEqual(self.recognise(listing("vllm-mlx")).kind, "vllm-mlx")
        self.assertEqual(self.recognise(listing("sglang")).kind, "SGLang")
        ollama = self.recognise(listing("library"), api__version=said({"version": "0.9"}))
        self.assertEqual((ollama.kind, ollama.version), ("Ollama", "0.9"))
        python = listing(None, "BaseHTTP/0.6 Python/3.11.7")
        self.assertEqual(self.recognise(python).kind, "mlx-lm")

    def test_unknown(self) -> None:
        for answer in (
            None,
            Answer(404, b""),
            Answer(200, b""),
            said({"data": "?"}),
            Answer(200, b'{"data": [{"id": "\xff", "owned_by": "vllm"}]}'),
            listing("me"),
        ):
            server = self.recognise(answer)
            self.assertEqual((server.kind, server.context, server.places), ("", None, None))

    def test_odd_numbers_are_none(self) -> None:
        odd: Any
        for odd in (0, -1, "4", None, 1.5, {}, True):
            props = said({"default_generation_settings": {"n_ctx": odd}, "total_slots": odd})
            server = self.recognise(listing("llamacpp"), props=props)
            self.assertEqual((server.context, server.places), (None, None), odd)


class Words(SynchronousTestCase):
    def test_settings_that_fit(self) -> None:
        options = [
            option
            for finding in Server("llama.cpp", "", ("a", "b"), 4000, 2).findings()
            for option in finding.options
        ]
        self.assertEqual(
            options,
            ["--token-hard-threshold=3000", "--token-warn-threshold=2400", "--max-concurrent=2"],
        )

    def test_a_long_list_of_models(self) -> None:
        text = Server(models=tuple(f"m{number}" for number in range(300))).findings()[0].text
        self.assertIn("m9 and 290 more.", text)
        self.assertNotIn("m10", text)

    def test_what_is_not_told_is_not_set(self) -> None:
        findings = Server().findings()
        self.assertEqual([each.verdict for each in findings], ["unknown", "not told", "not told"])
        self.assertEqual([each.options for each in findings], [(), (), ()])
