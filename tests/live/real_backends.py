"""
The servers that people run, with the tiny model: llama.cpp, mlx-lm, vllm-mlx.

    with MLX_LM.running(folder) as served:
        ask(served.url, ...)

Each is installed in an environment of its own, by `bash tests/live/matrix`; `missing()` says which
is not. All of them serve the model by the name `tiny`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from tests.live.harness import HERE, INSTALLS, MODEL, Program, ask, free_port, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: The chat template that says nothing of tools, and the one that makes servers parse calls.
WITHOUT_TOOLS = "chat_template.jinja"
WITH_TOOLS = "chat_template_tools.jinja"

#: What a start may take, in seconds, on a busy machine.
START = 120


@dataclass(frozen=True)
class Served:
    """
    A server that answers.

    :param url: its base, without `/v1`
    :param program: the process
    """

    url: str
    program: Program


@dataclass(frozen=True)
class RealBackend:
    """
    A kind of server with one of the model's templates.

    :param name: what it is called in tables, and by `--only`
    :param package: the Python package that has it
    :param environment: the folder of its virtual environment among what is installed
    :param template: the chat template
    :param line: the command line for a port, run where `tiny/` is the model's folder; the first
        word is a program of the environment
    :param well: a path that answers 200 once the model is loaded
    """

    name: str
    package: str
    environment: str
    template: str
    line: Callable[[int], list[str]]
    well: str = "/health"

    @property
    def home(self) -> Path:
        return Path(INSTALLS) / self.environment

    def missing(self) -> str | None:
        """Return why it cannot be run here, or None."""
        if self.version():
            return None
        return f"{self.package} is not installed: `bash tests/live/matrix` installs it"

    def version(self) -> str:
        """Return the version that is installed, empty if there is none."""
        return installed_version(self.home, self.package)

    def command(self, port: int) -> list[str]:
        program, *arguments = self.line(port)
        return [str(self.home / "bin" / program), *arguments]

    @contextlib.contextmanager
    def running(self, folder: Path, *, endless: bool = False) -> Iterator[Served]:
        """
        Run it in `folder`, which need not exist, until the block ends.

        :param endless: the model never ends an answer by itself
        :raises AssertionError: it does not start
        """
        folder.mkdir(parents=True, exist_ok=True)
        lay_out(folder, self.template)
        if endless:
            _never_end(folder)
        port = free_port()
        program = Program(self.command(port), folder / "backend.log", _environ(folder))
        served = Served(f"http://127.0.0.1:{port}", program)
        try:
            program.wait_for_port(("127.0.0.1", port), within=START)
            wait_for(lambda: _answers(served.url, self.well), f"{self.name} is not well", START)
            yield served
        finally:
            program.terminate()


def installed_version(environment: Path, package: str) -> str:
    """Return the version of a Python package in a virtual environment, empty if it lacks."""
    path = [str(folder) for folder in environment.glob("lib/python*/site-packages")]
    found = metadata.distributions(name=package, path=path)
    return next((one.version for one in found), "")


def lay_out(folder: Path, template: str) -> None:
    """Make `tiny/` in `folder`: the model with one of its templates."""
    model = folder / "tiny"
    model.mkdir(exist_ok=True)
    for file in MODEL.iterdir():
        if file.name not in (WITHOUT_TOOLS, WITH_TOOLS):
            (model / file.name).symlink_to(file)
    (model / "chat_template.jinja").write_text((MODEL / template).read_text())
    # Without a cache's folder mlx-lm answers GET /v1/models with 200 and an empty body.
    (folder / "huggingface" / "hub").mkdir(parents=True, exist_ok=True)


def _never_end(folder: Path) -> None:
    """Let the model of `lay_out` wait for an end that it never writes."""
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = folder / "tiny" / file
        told = json.loads(path.read_text())
        other = {"eos_token_id": 640, "eos_token": "<|endoftext|>"}
        path.unlink()
        path.write_text(json.dumps(told | {name: other[name] for name in other if name in told}))


def _environ(folder: Path) -> dict[str, str]:
    alone = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "huggingface"), "HOME": str(folder)}
    return {**os.environ, **alone, "PYTHONUNBUFFERED": "1"}


def _answers(url: str, path: str) -> bool:
    try:
        return ask(url, method="GET", path=path).status == 200
    except (OSError, http.client.HTTPException):
        return False


def _llama(port: int) -> list[str]:
    return ["python", str(HERE / "llama_server.py"), "tiny", str(port)]


def _mlx_lm(port: int) -> list[str]:
    return ["mlx_lm.server", "--model", "tiny", "--host", "127.0.0.1", "--port", str(port)]


def _vllm_mlx(port: int) -> list[str]:
    served = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny"]
    return ["vllm-mlx", "serve", "tiny", "--offline", "--continuous-batching", *served]


LLAMA_CPP = RealBackend("llama.cpp", "xllamacpp", "venv", WITHOUT_TOOLS, _llama)
LLAMA_CPP_TOOLS = RealBackend("llama.cpp, tool template", "xllamacpp", "venv", WITH_TOOLS, _llama)
MLX_LM = RealBackend("mlx-lm", "mlx-lm", "mlx-lm", WITHOUT_TOOLS, _mlx_lm)
MLX_LM_TOOLS = RealBackend("mlx-lm, tool template", "mlx-lm", "mlx-lm", WITH_TOOLS, _mlx_lm)
VLLM_MLX = RealBackend("vllm-mlx", "vllm-mlx", "vllm-mlx", WITHOUT_TOOLS, _vllm_mlx)

REAL_BACKENDS = (LLAMA_CPP, LLAMA_CPP_TOOLS, MLX_LM, MLX_LM_TOOLS, VLLM_MLX)
