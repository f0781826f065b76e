"""Each real backend starts, serves the model under its name, and ends on SIGTERM."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live.harness import SKIP_UNLESS_LIVE, send_request
from tests.live.real_backends import LLAMA_CPP, REAL_BACKENDS, installed_version, prepare_model
from tests.live.tiny_model import TEXTS, messages


class RunningTests(SynchronousTestCase):
    skip = SKIP_UNLESS_LIVE

    def test_each_sends_the_answer_of_the_model(self) -> None:
        installed = [backend for backend in REAL_BACKENDS if not backend.skip_reason()]
        if not installed:
            raise SkipTest("No real backend is installed: `bash tests/live/matrix` installs them")
        text = next(entry for entry in TEXTS if entry.key == "p-hello" and entry.turn == 0)
        for backend in installed:
            with (
                self.subTest(backend=backend.name),
                backend.running(Path(self.mktemp()).resolve()) as running,
            ):
                response = send_request(
                    running.url, {"model": "tiny", "messages": messages("p-hello")}
                )
                message = response.json()["choices"][0]["message"]
                self.assertEqual(message["content"], text.answer)
            self.assertIsNotNone(running.program.process.returncode)


class VersionTests(SynchronousTestCase):
    def test_not_installed(self) -> None:
        self.assertEqual(installed_version(Path(self.mktemp()), "mlx-lm"), "")

    def test_installed(self) -> None:
        site = Path(self.mktemp()) / "lib" / "python3.11" / "site-packages"
        (site / "some_thing-1.2.dist-info").mkdir(parents=True)
        (site / "some_thing-1.2.dist-info" / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: some-thing\nVersion: 1.2\n"
        )
        self.assertEqual(installed_version(site.parents[2], "some-thing"), "1.2")


class PrepareModelTests(SynchronousTestCase):
    def test_the_model_has_the_selected_template(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        prepare_model(folder, LLAMA_CPP.template)
        self.assertNotIn("tool_call>", (folder / "tiny" / "chat_template.jinja").read_text())
        self.assertFalse((folder / "tiny" / "chat_template_tools.jinja").exists())
        self.assertTrue((folder / "tiny" / "model.safetensors").exists())
