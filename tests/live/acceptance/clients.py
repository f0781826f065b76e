"""
The clients of the matrix: SDKs, each a program of `programs/`, and agents, which write a file.

Each is given the API's URL and the keys of the model's answers, runs in its own installed
environment, and says for each key and way what its user got.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.live.harness import INSTALLS
from tests.live.real_backends import installed_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).resolve().parent

#: What the model says once a tool has answered.
FINAL = "The tool answered. All done."

#: The model knows by heart where agents write what.
WORK = Path("/tmp/agentwork")
WRITTEN = WORK / "out.txt"

#: Seconds that one run of a client may take on a busy machine.
LONGEST = 240


@dataclass(frozen=True)
class Told:
    """
    What came of one question.

    :param key: which answer of the model was asked for
    :param way: which way of the client was taken: whole, stream, ...
    :param ran: whether the tool ran, once, with what the model said
    :param final: what the user saw in the end
    :param trouble: what went wrong, in the client's words
    """

    key: str
    way: str
    ran: bool
    final: str
    trouble: str = ""

    @property
    def good(self) -> bool:
        return self.ran and FINAL in self.final and not self.trouble


@dataclass(frozen=True)
class Client(ABC):
    """
    What runs against the API, and says what came of it.

    :param name: what it is called in tables, and by `--only`
    :param suffix: of the keys that it is asked: `add` for `j-add`, `l-add`, `x-add`
    :param result: how the tool's result looks in a request, as a regular expression
    :param quick: whether all formats are tried with every backend
    :param formats: that it can meet
    :param requires_calls: whether it sends `tool_choice: "required"`
    """

    name: str
    suffix: str = "add"
    result: bytes = rb'"content":\s*"42"'
    quick: bool = True
    formats: str = "jlx"
    requires_calls: bool = False

    @abstractmethod
    def version(self) -> str:
        """Return the version that is installed, empty if there is none."""

    @abstractmethod
    def ask(self, url: str, keys: Sequence[str], folder: Path) -> list[Told]:
        """Ask for `keys`, with `folder` to work in."""

    def missing(self) -> str | None:
        """Return why it cannot be run here, or None."""
        if self.version():
            return None
        return f"{self.name} is not installed: `bash tests/live/matrix` installs it"


@dataclass(frozen=True)
class PythonClient(Client):
    """
    A program of `programs`, in Python.

    :param package: on the package index
    :param arguments: the module in `programs`, and what it is told
    """

    package: str = ""
    arguments: tuple[str, ...] = ()

    def version(self) -> str:
        return installed_version(Path(INSTALLS) / "clients", self.package)

    def ask(self, url: str, keys: Sequence[str], folder: Path) -> list[Told]:
        python = str(Path(INSTALLS) / "clients" / "bin" / "python")
        environ = alone(folder) | {"PYTHONPATH": str(HERE)}
        return run_program([python, "-m", *self.arguments], url, keys, folder, environ)


@dataclass(frozen=True)
class NodeClient(Client):
    """
    A program of `programs`, in Node.

    :param package: on the package index
    :param program: the file in `programs`
    """

    package: str = ""
    program: str = ""

    def version(self) -> str:
        return node_version(self.package)

    def ask(self, url: str, keys: Sequence[str], folder: Path) -> list[Told]:
        command = ["node", str(HERE / "programs" / self.program), str(Path(INSTALLS) / "agents")]
        return run_program(command, url, keys, folder, alone(folder))


@dataclass(frozen=True)
class Agent(Client):
    """An agent from its command line: it has to write `WRITTEN`, by a command of the model's."""

    package: str = ""

    def version(self) -> str:
        return node_version(self.package)

    def ask(self, url: str, keys: Sequence[str], folder: Path) -> list[Told]:
        return [self._write(url, key, folder / key) for key in keys]

    def _write(self, url: str, key: str, folder: Path) -> Told:
        (folder / "work").mkdir(parents=True)
        with alone_at_work():
            done = subprocess.run(
                self.command(url, f"[[{key}]] Write the file.", folder / "work"),
                env=alone(folder) | self.environ(url),
                cwd=folder / "work",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=LONGEST,
                check=False,
            )
            written = WRITTEN.exists() and WRITTEN.read_text() == "tiny-ok\n"
        (folder / "output").write_text(done.stdout + done.stderr)
        trouble = f"exit status {done.returncode}: {done.stderr[-1500:]}" if done.returncode else ""
        return Told(key, "file", written, self.final(done.stdout), trouble)

    def command(self, url: str, question: str, folder: Path) -> list[str]:
        raise NotImplementedError

    def environ(self, url: str) -> dict[str, str]:
        return {}

    def final(self, output: str) -> str:
        raise NotImplementedError


class QwenCode(Agent):
    def command(self, url: str, question: str, folder: Path) -> list[str]:
        options = ["--auth-type", "openai", "--yolo", "--output-format", "json"]
        return [bin_of_node("qwen"), *options, question]

    def environ(self, url: str) -> dict[str, str]:
        return {
            "OPENAI_API_KEY": "none",
            "OPENAI_BASE_URL": f"{url}/v1",
            "OPENAI_MODEL": "tiny",
            "QWEN_TELEMETRY_ENABLED": "false",
        }

    def final(self, output: str) -> str:
        events = json.loads(output or "[]")
        return next((one.get("result", "") for one in events if one["type"] == "result"), "")


class OpenCode(Agent):
    def command(self, url: str, question: str, folder: Path) -> list[str]:
        options = {"baseURL": f"{url}/v1", "apiKey": "none"}
        limit = {"context": 100_000, "output": 4_000}
        model = {"name": "tiny", "tool_call": True, "limit": limit}
        provider = {
            "npm": "@ai-sdk/openai-compatible",
            "name": "local",
            "options": options,
            "models": {"tiny": model},
        }
        settings = {
            "$schema": "https://opencode.ai/config.json",
            "model": "local/tiny",
            "small_model": "local/tiny",
            "autoupdate": False,
            "share": "disabled",
            "permission": {"*": "allow"},
            "provider": {"local": provider},
        }
        (folder / "opencode.json").write_text(json.dumps(settings))
        return [bin_of_node("opencode"), "run", "--format", "json", question]

    def environ(self, url: str) -> dict[str, str]:
        return {"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"}

    def final(self, output: str) -> str:
        events = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        return "".join(one["part"]["text"] for one in events if one["type"] == "text")


def alone(folder: Path) -> dict[str, str]:
    """Return an environment without the user's settings and keys, at home in `folder`."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TERM") if name in os.environ}
    return kept | {"HOME": str(folder), "NO_COLOR": "1"}


_at_work = threading.Lock()


@contextlib.contextmanager
def alone_at_work(written: Path = WRITTEN) -> Iterator[None]:
    """Have the file for oneself, and not yet there: all on this machine write the same one."""
    written.parent.mkdir(exist_ok=True)
    with _at_work, written.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        written.unlink(missing_ok=True)
        yield
        written.unlink(missing_ok=True)


def run_program(
    command: Sequence[str], url: str, keys: Sequence[str], folder: Path, environ: dict[str, str]
) -> list[Told]:
    """
    Run a program of `programs`.

    :raises AssertionError: it ended badly
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command,
        input=json.dumps({"url": url, "keys": list(keys)}),
        env=environ,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"exit status {done.returncode}: {done.stderr[-3000:]}")
    return [_told(json.loads(line)) for line in done.stdout.splitlines()]


def _told(said: dict[str, Any]) -> Told:
    ran = said["ran"] == [[17, 25]]
    trouble = said.get("error", "")
    if said["ran"] and not ran:
        trouble += f" the tool ran with {said['ran']}"
    return Told(said["key"], said["way"], ran, said.get("final") or "", trouble)


def node_version(package: str) -> str:
    told = Path(INSTALLS) / "agents" / "node_modules" / package / "package.json"
    return str(json.loads(told.read_text())["version"]) if told.is_file() else ""


def bin_of_node(name: str) -> str:
    return str(Path(INSTALLS) / "agents" / "node_modules" / ".bin" / name)


def _python(name: str, package: str, *arguments: str, **more: Any) -> PythonClient:
    return PythonClient(name, package=package, arguments=arguments, **more)


_TOOL_MESSAGE = rb'"role":\s*"tool"'

CLIENTS: tuple[Client, ...] = (
    _python("openai (Python)", "openai", "programs.openai_python"),
    NodeClient("openai (Node)", package="openai", program="openai_node.mjs"),
    NodeClient("Vercel AI SDK", package="ai", program="vercel_ai.mjs"),
    _python("langchain-openai", "langchain-openai", "programs.langchain_openai_"),
    _python("pydantic-ai", "pydantic-ai-slim", "programs.pydantic_ai_"),
    _python(
        "smolagents",
        "smolagents",
        "programs.smolagents_",
        suffix="smol",
        result=rb"Observation:",
        requires_calls=True,
    ),
    _python("qwen-agent", "qwen-agent", "programs.qwen_agent_", "native"),
    _python(
        "qwen-agent, calls in text",
        "qwen-agent",
        "programs.qwen_agent_",
        "text",
        formats="j",
        result=rb"<tool_response>\\n42\\n</tool_response>",
    ),
    _python("llm", "llm", "programs.llm_", quick=False),
    QwenCode(
        "qwen-code",
        suffix="qwen-sh",
        package="@qwen-code/qwen-code",
        result=_TOOL_MESSAGE,
        quick=False,
    ),
    OpenCode(
        "opencode", suffix="oc-bash", package="opencode-ai", result=_TOOL_MESSAGE, quick=False
    ),
)
