"""
What is compared: the backend itself, nginx, LiteLLM's proxy, and blockops, each in its own process.
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

from benchmarks.usage import family

ROOT = Path(__file__).resolve().parent.parent

#: Where LiteLLM is installed, unless this names another folder.
LITELLM_FOLDER = "BLOCKOPS_BENCH_LITELLM"

_NGINX = """\
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

_LITELLM = """\
model_list:
  - model_name: bench
    litellm_params:
      {{model: openai/bench, api_base: "http://127.0.0.1:{backend}/v1", api_key: none}}
litellm_settings: {{telemetry: false, num_retries: 0}}
"""

#: What the `twistd` beside a Python runs.
_TWISTD = "from twisted.scripts.twistd import run; run()"

#: Nothing is fetched, little is said, and clients need no key.
_LITELLM_ENVIRON = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "NO_DOCS": "True",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
}


class Absent(Exception):
    """A target that cannot be measured here; the text says what to do."""


def free_port() -> int:
    """Return a port that nobody listens on, and that the system gives to no outgoing connection."""
    while True:
        port = 10_000 + secrets.randbelow(22_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Program:
    """
    A process of ours that listens on a port.

    :param folder: what it says goes to `output` there
    :raises Absent: it does not listen in time
    """

    def __init__(
        self,
        command: list[str],
        folder: Path,
        port: int,
        environ: dict[str, str] | None = None,
        within: float = 30,
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
        self._wait(within)

    def _wait(self, within: float) -> None:
        until = time.monotonic() + within
        while not accepts(self.port):
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise Absent(f"it did not start:\n{self._output.read_text()[-1000:]}")
            time.sleep(0.05)

    def pids(self) -> list[int]:
        return family(self._process.pid)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Target:
    """
    Something that can be started before a backend.

    :ivar name: what it is called in tables and options
    :ivar translates: whether calls come out as calls
    :ivar slow: whether it is given less to do, so that it is not saturated
    """

    name: ClassVar[str]
    translates: ClassVar[bool] = False
    slow: ClassVar[bool] = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0

    def fresh(self) -> Path:
        """Return a folder for one more process."""
        self._started += 1
        folder = self._folder / f"{self.name}-{self._started}"
        folder.mkdir(parents=True)
        return folder

    def start(self, backend: int) -> Program | None:
        """
        Start one more process before the backend on that port; None for the backend itself.

        :raises Absent: that cannot be done here
        """
        raise NotImplementedError


class Direct(Target):
    name = "direct"

    def start(self, backend: int) -> Program | None:
        return None


class Nginx(Target):
    name = "nginx"

    def start(self, backend: int) -> Program | None:
        nginx = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
        if nginx is None:
            raise Absent("nginx is not installed; on Debian: apt-get install nginx-light")
        folder, port = self.fresh(), free_port()
        config = folder / "nginx.conf"
        config.write_text(_NGINX.format(folder=folder, port=port, backend=backend))
        command = [nginx, "-p", str(folder), "-c", str(config), "-g", "daemon off;"]
        return Program(command, folder, port)


class LiteLLM(Target):
    """
    :param environment: the folder of its virtual environment, made if it is not there
    """

    name = "litellm"
    slow = True

    def __init__(self, folder: Path, environment: Path) -> None:
        super().__init__(folder)
        self._environment = environment

    def start(self, backend: int) -> Program | None:
        self._install()
        folder, port = self.fresh(), free_port()
        config = folder / "config.yaml"
        config.write_text(_LITELLM.format(backend=backend))
        command = [str(self._environment / "bin" / "litellm"), "--config", str(config)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        return Program(command, folder, port, _LITELLM_ENVIRON, within=120)

    def _install(self) -> None:
        if (self._environment / "bin" / "litellm").exists():
            return
        print(f"installing litellm[proxy] into {self._environment} ...", file=sys.stderr)
        pip = [str(self._environment / "bin" / "pip"), "install", "-q", "--only-binary", ":all:"]
        try:
            subprocess.run([sys.executable, "-m", "venv", str(self._environment)], check=True)
            subprocess.run([*pip, "litellm[proxy]"], check=True, timeout=600)
        except (OSError, subprocess.SubprocessError) as failure:
            raise Absent(f"litellm[proxy] cannot be installed: {failure}") from failure


class Blockops(Target):
    """
    The real daemon with all that it does.

    :param python: whose `twistd` is taken
    :param options: more of them, for `blockops`
    """

    name = "blockops"
    translates = True

    def __init__(self, folder: Path, python: str, options: list[str]) -> None:
        super().__init__(folder)
        self._python = python
        self._options = options

    def start(self, backend: int) -> Program | None:
        return self._start([_TWISTD], backend)

    def start_profiled(self, backend: int, path: Path) -> Program:
        """
        Start one that leaves its profile at `path` when it is stopped.

        :raises Absent: it did not start
        """
        options = ["--profile", str(path.resolve()), "--profiler", "cprofile", "--savestats"]
        return self._start([_TWISTD, *options], backend)

    def _start(self, twistd: list[str], backend: int) -> Program:
        folder, port = self.fresh(), free_port()
        (folder / "config.toml").touch()
        command = [self._python, "-c", *twistd, "-n", "--pidfile=", "blockops"]
        command += ["--config", str(folder / "config.toml"), "--port", str(port)]
        command += ["--backend", f"http://127.0.0.1:{backend}"]
        command += ["--log-file", str(folder / "traffic.log"), *SETTINGS, *self._options]
        return Program(command, folder, port, {"HOME": str(folder)})


#: Places for all, an agent's history of 400 KB below every threshold, and heartbeats that do come.
SETTINGS = [
    *("--max-concurrent", "1000", "--max-queue", "1000", "--heartbeat", "1"),
    *("--token-warn-threshold", "1000000", "--token-hard-threshold", "1000000"),
]
