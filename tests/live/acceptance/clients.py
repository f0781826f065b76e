"""
The clients of the matrix: SDKs, each a program of `programs/`, and agents, which write a file.

Each receives the URL of the API and the keys of the model's answers, runs in its installed
environment, and returns a result for each key and way.
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

#: The model's answer after a tool result.
FINAL_ANSWER = "The tool answered. All done."

#: The folder and the file that the model's memorized commands write.
WORK_FOLDER = Path("/tmp/agentwork")
OUTPUT_FILE = WORK_FOLDER / "out.txt"

#: Seconds that a run of a client may take on a busy machine.
TIMEOUT = 240


@dataclass(frozen=True)
class ClientResult:
    """
    The result of one question.

    :param key: the key of the model's answer
    :param way: the client's way: stream, non-streaming, ...
    :param has_run_tool: True if the tool ran once with the model's arguments
    :param final_text: the final text that the user saw
    :param problem: the client's error, or ""
    """

    key: str
    way: str
    has_run_tool: bool
    final_text: str
    problem: str = ""

    @property
    def is_good(self) -> bool:
        return self.has_run_tool and FINAL_ANSWER in self.final_text and not self.problem


@dataclass(frozen=True)
class Client(ABC):
    """
    A client of the API.

    :param name: the name in tables and for `--only`
    :param suffix: the suffix of its keys: `add` for `j-add`, `l-add`, `x-add`
    :param result_pattern: a regular expression for the tool's result in a request
    :param is_quick: True if all dialects are tried with every backend
    :param dialects: the dialects that it supports
    :param requires_calls: True if it sends `tool_choice: "required"`
    """

    name: str
    suffix: str = "add"
    result_pattern: bytes = rb'"content":\s*"42"'
    is_quick: bool = True
    dialects: str = "jlx"
    requires_calls: bool = False

    @abstractmethod
    def version(self) -> str:
        """Return the installed version; "" if it is not installed."""

    @abstractmethod
    def run(self, url: str, keys: Sequence[str], folder: Path) -> list[ClientResult]:
        """Run the client for each of `keys`, with `folder` as its working directory."""

    def skip_reason(self) -> str | None:
        """Return the reason to skip its cells, or None if it is installed."""
        if self.version():
            return None
        return f"{self.name} is not installed: `bash tests/live/matrix` installs it"


@dataclass(frozen=True)
class PythonClient(Client):
    """
    A program of `programs`, in Python.

    :param package: its package on PyPI
    :param arguments: the module in `programs`, and its arguments
    """

    package: str = ""
    arguments: tuple[str, ...] = ()

    def version(self) -> str:
        return installed_version(Path(INSTALLS) / "clients", self.package)

    def run(self, url: str, keys: Sequence[str], folder: Path) -> list[ClientResult]:
        python = str(Path(INSTALLS) / "clients" / "bin" / "python")
        environ = isolated_environ(folder) | {"PYTHONPATH": str(HERE)}
        return run_program([python, "-m", *self.arguments], url, keys, folder, environ)


@dataclass(frozen=True)
class NodeClient(Client):
    """
    A program of `programs`, in Node.

    :param package: its package on npm
    :param program: the file in `programs`
    """

    package: str = ""
    program: str = ""

    def version(self) -> str:
        return node_version(self.package)

    def run(self, url: str, keys: Sequence[str], folder: Path) -> list[ClientResult]:
        command = ["node", str(HERE / "programs" / self.program), str(Path(INSTALLS) / "agents")]
        return run_program(command, url, keys, folder, isolated_environ(folder))


@dataclass(frozen=True)
class Agent(Client):
    """A command-line agent, which must write `OUTPUT_FILE` with a command from the model."""

    package: str = ""

    def version(self) -> str:
        return node_version(self.package)

    def run(self, url: str, keys: Sequence[str], folder: Path) -> list[ClientResult]:
        return [self._write_file(url, key, folder / key) for key in keys]

    def _write_file(self, url: str, key: str, folder: Path) -> ClientResult:
        (folder / "work").mkdir(parents=True)
        with exclusive_output_file():
            result = subprocess.run(
                self.command(url, f"[[{key}]] Write the file.", folder / "work"),
                env=isolated_environ(folder) | self.environ(url),
                cwd=folder / "work",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
            is_written = OUTPUT_FILE.exists() and OUTPUT_FILE.read_text() == "tiny-ok\n"
        (folder / "output").write_text(result.stdout + result.stderr)
        problem = (
            f"exit status {result.returncode}: {result.stderr[-1500:]}" if result.returncode else ""
        )
        return ClientResult(key, "file", is_written, self.final_text(result.stdout), problem)

    def command(self, url: str, question: str, folder: Path) -> list[str]:
        raise NotImplementedError

    def environ(self, url: str) -> dict[str, str]:
        return {}

    def final_text(self, output: str) -> str:
        raise NotImplementedError


class QwenCode(Agent):
    def command(self, url: str, question: str, folder: Path) -> list[str]:
        options = ["--auth-type", "openai", "--yolo", "--output-format", "json"]
        return [node_executable("qwen"), *options, question]

    def environ(self, url: str) -> dict[str, str]:
        return {
            "OPENAI_API_KEY": "none",
            "OPENAI_BASE_URL": f"{url}/v1",
            "OPENAI_MODEL": "tiny",
            "QWEN_TELEMETRY_ENABLED": "false",
        }

    def final_text(self, output: str) -> str:
        events = json.loads(output or "[]")
        return next((event.get("result", "") for event in events if event["type"] == "result"), "")


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
        return [node_executable("opencode"), "run", "--format", "json", question]

    def environ(self, url: str) -> dict[str, str]:
        return {"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"}

    def final_text(self, output: str) -> str:
        events = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        return "".join(event["part"]["text"] for event in events if event["type"] == "text")


def isolated_environ(folder: Path) -> dict[str, str]:
    """Return an environment without the user's settings and keys, with `folder` as HOME."""
    variables = {name: os.environ[name] for name in ("PATH", "LANG", "TERM") if name in os.environ}
    return variables | {"HOME": str(folder), "NO_COLOR": "1"}


_output_file_lock = threading.Lock()


@contextlib.contextmanager
def exclusive_output_file(file: Path = OUTPUT_FILE) -> Iterator[None]:
    """Hold `file` exclusively, removed before and after: all agents on the machine write it."""
    file.parent.mkdir(exist_ok=True)
    with _output_file_lock, file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file.unlink(missing_ok=True)
        yield
        file.unlink(missing_ok=True)


def run_program(
    command: Sequence[str], url: str, keys: Sequence[str], folder: Path, environ: dict[str, str]
) -> list[ClientResult]:
    """
    Run a program of `programs`.

    :raises AssertionError: its exit status is not 0
    """
    folder.mkdir(parents=True, exist_ok=True)
    result = subprocess.run(
        command,
        input=json.dumps({"url": url, "keys": list(keys)}),
        env=environ,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if result.returncode:
        raise AssertionError(f"exit status {result.returncode}: {result.stderr[-3000:]}")
    return [_parse_result(json.loads(line)) for line in result.stdout.splitlines()]


def _parse_result(record: dict[str, Any]) -> ClientResult:
    calls = record["tool_calls"]
    has_run_tool = calls == [[17, 25]]
    problem = record.get("error", "")
    if calls and not has_run_tool:
        problem += f" the tool ran with {calls}"
    return ClientResult(
        record["key"], record["way"], has_run_tool, record.get("final") or "", problem
    )


def node_version(package: str) -> str:
    manifest = Path(INSTALLS) / "agents" / "node_modules" / package / "package.json"
    return str(json.loads(manifest.read_text())["version"]) if manifest.is_file() else ""


def node_executable(name: str) -> str:
    return str(Path(INSTALLS) / "agents" / "node_modules" / ".bin" / name)


def _python(name: str, package: str, *arguments: str, **options: Any) -> PythonClient:
    return PythonClient(name, package=package, arguments=arguments, **options)


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
        result_pattern=rb"Observation:",
        requires_calls=True,
    ),
    _python("qwen-agent", "qwen-agent", "programs.qwen_agent_", "native"),
    _python(
        "qwen-agent, calls in text",
        "qwen-agent",
        "programs.qwen_agent_",
        "text",
        dialects="j",
        result_pattern=rb"<tool_response>\\n42\\n</tool_response>",
    ),
    _python("llm", "llm", "programs.llm_", is_quick=False),
    QwenCode(
        "qwen-code",
        suffix="qwen-sh",
        package="@qwen-code/qwen-code",
        result_pattern=_TOOL_MESSAGE,
        is_quick=False,
    ),
    OpenCode(
        "opencode",
        suffix="oc-bash",
        package="opencode-ai",
        result_pattern=_TOOL_MESSAGE,
        is_quick=False,
    ),
)
