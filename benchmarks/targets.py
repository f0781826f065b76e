"""
The targets: the backend without a proxy, nginx, LiteLLM's proxy, and blockops.

Each runs in a process that this module starts.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

from benchmarks.figures import BLOCKOPS, DIRECT, LITELLM, NGINX
from benchmarks.usage import process_tree

ROOT = Path(__file__).resolve().parent.parent

#: The environment variable with the folder of LiteLLM's virtual environment.
LITELLM_VARIABLE = "BLOCKOPS_BENCH_LITELLM"

_NGINX_CONFIG = """\
worker_processes 1;
error_log stderr;
pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log {folder}/access.log;
  client_max_body_size 64m;
  client_body_buffer_size 1m;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000;
  upstream backend {{ server 127.0.0.1:{backend}; keepalive 256; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""

_LITELLM_CONFIG = """\
model_list:
  - model_name: bench
    litellm_params:
      {{model: openai/bench, api_base: "http://127.0.0.1:{backend}/v1", api_key: none}}
litellm_settings: {{telemetry: false, num_retries: 0}}
"""

#: Runs `twistd` with any Python that has Twisted.
_TWISTD = "from twisted.scripts.twistd import run; run()"

#: No downloads, few log lines, and no API key for clients.
_LITELLM_ENVIRON = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "NO_DOCS": "True",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
}


#: Slots for all requests, thresholds above an agent's history of 400 KB, and frequent heartbeats.
_BLOCKOPS_OPTIONS = [
    *("--max-concurrent", "1000", "--max-queue", "1000", "--heartbeat", "1"),
    *("--token-warn-threshold", "1000000", "--token-hard-threshold", "1000000"),
]


class TargetUnavailable(Exception):
    """A target cannot run on this machine. The text gives the reason, and the remedy if known."""


def free_port() -> int:
    """Return an unused port below the ranges from which systems assign ephemeral ports."""
    while True:
        port = 10_000 + secrets.randbelow(22_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Program:
    """
    A process that listens on a port.

    :param folder: its output goes to the file `output` there
    :param timeout: seconds until it must accept connections
    :raises TargetUnavailable: it ended, or does not accept connections in time
    """

    def __init__(
        self,
        command: list[str],
        folder: Path,
        port: int,
        environ: dict[str, str] | None = None,
        timeout: float = 30,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = port
        self._output = folder / "output"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=os.environ | (environ or {}),
            )
        deadline = time.monotonic() + timeout
        while not is_listening(port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise TargetUnavailable(f"it did not start:\n{self._output.read_text()[-1000:]}")
            time.sleep(0.05)

    def pids(self) -> list[int]:
        """Return the process and the processes below it."""
        return process_tree(self._process.pid)

    def stop(self) -> None:
        """Terminate the process; kill it after 20 seconds."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Target:
    """
    A proxy that can be started between the load generator and a backend.

    :cvar name: its name in tables and options
    :cvar is_translating: whether it translates the text of calls
    :cvar is_slow: whether it gets less load, so that it is not saturated
    """

    name: ClassVar[str]
    is_translating: ClassVar[bool] = False
    is_slow: ClassVar[bool] = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder_count = 0

    def new_folder(self) -> Path:
        """Create and return a folder for one process."""
        self._folder_count += 1
        folder = self._folder / f"{self.name}-{self._folder_count}"
        folder.mkdir(parents=True)
        return folder

    def start(self, backend_port: int) -> Program | None:
        """
        Start a process that forwards to the backend on `backend_port`, and return it.

        Return None if the target is the backend itself.

        :raises TargetUnavailable: it cannot be started on this machine
        """
        raise NotImplementedError


class Direct(Target):
    """The backend without a proxy."""

    name = DIRECT

    def start(self, backend_port: int) -> Program | None:
        return None


class Nginx(Target):
    name = NGINX

    def start(self, backend_port: int) -> Program | None:
        nginx = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
        if nginx is None:
            raise TargetUnavailable(
                "nginx is not installed; on Debian: apt-get install nginx-light"
            )
        folder, port = self.new_folder(), free_port()
        config = folder / "nginx.conf"
        config.write_text(_NGINX_CONFIG.format(folder=folder, port=port, backend=backend_port))
        command = [nginx, "-p", str(folder), "-c", str(config), "-g", "daemon off;"]
        return Program(command, folder, port)


class LiteLLM(Target):
    """
    LiteLLM's proxy.

    :param environment: the folder of its virtual environment, created if it does not exist
    """

    name = LITELLM
    is_slow = True

    def __init__(self, folder: Path, environment: Path) -> None:
        super().__init__(folder)
        self._environment = environment

    def start(self, backend_port: int) -> Program | None:
        self._install()
        folder, port = self.new_folder(), free_port()
        config = folder / "config.yaml"
        config.write_text(_LITELLM_CONFIG.format(backend=backend_port))
        command = [str(self._environment / "bin" / "litellm"), "--config", str(config)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        return Program(command, folder, port, _LITELLM_ENVIRON, timeout=120)

    def _install(self) -> None:
        if (self._environment / "bin" / "litellm").exists():
            return
        print(f"installing litellm[proxy] into {self._environment} ...", file=sys.stderr)
        pip = [str(self._environment / "bin" / "pip"), "install", "-q", "--only-binary", ":all:"]
        try:
            subprocess.run([sys.executable, "-m", "venv", str(self._environment)], check=True)
            subprocess.run([*pip, "litellm[proxy]"], check=True, timeout=600)
        except (OSError, subprocess.SubprocessError) as error:
            raise TargetUnavailable(f"litellm[proxy] cannot be installed: {error}") from error


class Blockops(Target):
    """
    The real daemon, with every feature on.

    :param python: a Python that has blockops and Twisted
    :param options: further command-line options of `blockops`
    """

    name = BLOCKOPS
    is_translating = True

    def __init__(self, folder: Path, python: str, options: list[str]) -> None:
        super().__init__(folder)
        self._python = python
        self._options = options

    def start(self, backend_port: int) -> Program | None:
        return self._start([_TWISTD], backend_port)

    def start_profiled(self, backend_port: int, path: Path) -> Program:
        """
        Start it under cProfile, which writes its profile to `path` when the process stops.

        :raises TargetUnavailable: it did not start
        """
        options = ["--profile", str(path.resolve()), "--profiler", "cprofile", "--savestats"]
        return self._start([_TWISTD, *options], backend_port)

    def _start(self, twistd: list[str], backend_port: int) -> Program:
        folder, port = self.new_folder(), free_port()
        (folder / "config.toml").touch()
        command = [self._python, "-c", *twistd, "-n", "--pidfile=", "blockops"]
        command += ["--config", str(folder / "config.toml"), "--port", str(port)]
        command += ["--backend", f"http://127.0.0.1:{backend_port}"]
        command += ["--log-file", str(folder / "traffic.log"), *_BLOCKOPS_OPTIONS, *self._options]
        return Program(command, folder, port, {"HOME": str(folder)})
