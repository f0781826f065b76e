"""
Real backends with the tiny model: llama.cpp, mlx-lm, vllm-mlx.

    with MLX_LM.running(folder) as backend:
        send_request(backend.url, ...)

`bash tests/live/matrix` installs each in a separate environment; `skip_reason()` returns a text for
one that is not installed. All of them serve the model under the name `tiny`.
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

from tests.live.harness import HERE, INSTALLS, MODEL, Program, free_port, send_request, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: A chat template without tools, and one with tools, which makes servers parse calls.
PLAIN_TEMPLATE = "chat_template.jinja"
TOOL_TEMPLATE = "chat_template_tools.jinja"

#: Seconds that a start may take on a busy machine.
START_TIMEOUT = 120


@dataclass(frozen=True)
class RunningBackend:
    """
    A backend that is ready.

    :param url: its base URL, without `/v1`
    :param program: its process
    """

    url: str
    program: Program


@dataclass(frozen=True)
class RealBackend:
    """
    A kind of backend with one of the model's templates.

    :param name: the name in tables and for `--only`
    :param package: the Python package that contains it
    :param environment: the folder of its virtual environment in `INSTALLS`
    :param template: the file name of the chat template
    :param command_line: returns the command line for a port; its first word is a program of the
        environment. The working directory contains the model in `tiny/`
    :param health_path: a path whose status is 200 once the model is loaded
    """

    name: str
    package: str
    environment: str
    template: str
    command_line: Callable[[int], list[str]]
    health_path: str = "/health"

    @property
    def environment_folder(self) -> Path:
        return Path(INSTALLS) / self.environment

    def skip_reason(self) -> str | None:
        """Return the reason to skip its tests, or None if it is installed."""
        if self.version():
            return None
        return f"{self.package} is not installed: `bash tests/live/matrix` installs it"

    def version(self) -> str:
        """Return the installed version; "" if it is not installed."""
        return installed_version(self.environment_folder, self.package)

    def command(self, port: int) -> list[str]:
        program, *arguments = self.command_line(port)
        return [str(self.environment_folder / "bin" / program), *arguments]

    @contextlib.contextmanager
    def running(self, folder: Path, *, endless: bool = False) -> Iterator[RunningBackend]:
        """
        Run the backend in `folder`, which is created if needed, until the block ends.

        :param endless: True if the model shall never end an answer itself
        :raises AssertionError: the backend does not start
        """
        folder.mkdir(parents=True, exist_ok=True)
        prepare_model(folder, self.template)
        if endless:
            _remove_end_token(folder)
        port = free_port()
        program = Program(self.command(port), folder / "backend.log", _backend_environ(folder))
        running = RunningBackend(f"http://127.0.0.1:{port}", program)
        try:
            program.wait_for_port(("127.0.0.1", port), timeout=START_TIMEOUT)
            wait_for(
                lambda: _is_ready(running.url, self.health_path),
                f"{self.name} is not ready",
                START_TIMEOUT,
            )
            yield running
        finally:
            program.terminate()


def installed_version(environment: Path, package: str) -> str:
    """Return the version of a package in a virtual environment; "" if it is not installed."""
    path = [str(folder) for folder in environment.glob("lib/python*/site-packages")]
    found = metadata.distributions(name=package, path=path)
    return next((distribution.version for distribution in found), "")


def prepare_model(folder: Path, template: str) -> None:
    """Create `tiny/` in `folder`: the model with one of its templates."""
    model = folder / "tiny"
    model.mkdir(exist_ok=True)
    for file in MODEL.iterdir():
        if file.name not in (PLAIN_TEMPLATE, TOOL_TEMPLATE):
            (model / file.name).symlink_to(file)
    (model / "chat_template.jinja").write_text((MODEL / template).read_text())
    # Without the cache folder mlx-lm responds to GET /v1/models with 200 and an empty body.
    (folder / "huggingface" / "hub").mkdir(parents=True, exist_ok=True)


def _remove_end_token(folder: Path) -> None:
    """Replace the end token in the configuration of `prepare_model` by one that never occurs."""
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = folder / "tiny" / file
        config = json.loads(path.read_text())
        other = {"eos_token_id": 640, "eos_token": "<|endoftext|>"}
        path.unlink()
        changes = {name: other[name] for name in other if name in config}
        path.write_text(json.dumps(config | changes))


def _backend_environ(folder: Path) -> dict[str, str]:
    isolated = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "huggingface"), "HOME": str(folder)}
    return {**os.environ, **isolated, "PYTHONUNBUFFERED": "1"}


def _is_ready(url: str, path: str) -> bool:
    try:
        return send_request(url, method="GET", path=path).status == 200
    except (OSError, http.client.HTTPException):
        return False


def _llama(port: int) -> list[str]:
    return ["python", str(HERE / "llama_server.py"), "tiny", str(port)]


def _mlx_lm(port: int) -> list[str]:
    return ["mlx_lm.server", "--model", "tiny", "--host", "127.0.0.1", "--port", str(port)]


def _vllm_mlx(port: int) -> list[str]:
    running = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny"]
    return ["vllm-mlx", "serve", "tiny", "--offline", "--continuous-batching", *running]


LLAMA_CPP = RealBackend("llama.cpp", "xllamacpp", "venv", PLAIN_TEMPLATE, _llama)
LLAMA_CPP_TOOLS = RealBackend(
    "llama.cpp, tool template", "xllamacpp", "venv", TOOL_TEMPLATE, _llama
)
MLX_LM = RealBackend("mlx-lm", "mlx-lm", "mlx-lm", PLAIN_TEMPLATE, _mlx_lm)
MLX_LM_TOOLS = RealBackend("mlx-lm, tool template", "mlx-lm", "mlx-lm", TOOL_TEMPLATE, _mlx_lm)
VLLM_MLX = RealBackend("vllm-mlx", "vllm-mlx", "vllm-mlx", PLAIN_TEMPLATE, _vllm_mlx)

REAL_BACKENDS = (LLAMA_CPP, LLAMA_CPP_TOOLS, MLX_LM, MLX_LM_TOOLS, VLLM_MLX)
