"""Each of the servers starts, serves the model by its name, and ends when it is told to."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.live.harness import LONG, ask
from tests.live.real_backends import LLAMA_CPP, REAL_BACKENDS, installed_version, lay_out
from tests.live.tools import TEXTS, messages


class Running(SynchronousTestCase):
    skip = LONG

    def test_each_says_what_the_model_says(self) -> None:
        there = [backend for backend in REAL_BACKENDS if not backend.missing()]
        if not there:
            raise SkipTest("none is installed")
        text = next(one for one in TEXTS if one.key == "p-hello" and one.turn == 0)
        for backend in there:
            with (
                self.subTest(backend=backend.name),
                backend.running(Path(self.mktemp()).resolve()) as served,
            ):
                answer = ask(served.url, {"model": "tiny", "messages": messages("p-hello")})
                message = answer.json()["choices"][0]["message"]
                self.assertEqual(message["content"], text.reply)
            self.assertIsNotNone(served.program.process.returncode)


class Installed(SynchronousTestCase):
    def test_what_is_not_there_has_no_version(self) -> None:
        self.assertEqual(installed_version(Path(self.mktemp()), "mlx-lm"), "")

    def test_what_is_there_has_one(self) -> None:
        site = Path(self.mktemp()) / "lib" / "python3.11" / "site-packages"
        (site / "some_thing-1.2.dist-info").mkdir(parents=True)
        (site / "some_thing-1.2.dist-info" / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: some-thing\nVersion: 1.2\n"
        )
        self.assertEqual(installed_version(site.parents[2], "some-thing"), "1.2")


class Folders(SynchronousTestCase):
    def test_the_model_comes_with_the_template_that_is_wanted(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        lay_out(folder, LLAMA_CPP.template)
        self.assertNotIn("tool_call>", (folder / "tiny" / "chat_template.jinja").read_text())
        self.assertFalse((folder / "tiny" / "chat_template_tools.jinja").exists())
        self.assertTrue((folder / "tiny" / "model.safetensors").exists())
