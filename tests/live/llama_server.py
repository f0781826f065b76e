"""
llama.cpp's own HTTP server with the tiny model: `python llama_server.py FOLDER PORT [TOKENS]`.

TOKENS is what the four places may hold together.

A program of its own, because a fault in C++ takes the process with it.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import xllamacpp


def main(folder: Path, port: int, context: int = 8192) -> None:
    params = xllamacpp.CommonParams()
    params.model.path = str(folder / "tiny.gguf")
    params.model_alias = {"tiny"}
    params.chat_template = (folder / "chat_template.jinja").read_text()
    params.use_jinja = True
    params.port = port
    params.n_ctx = context
    params.n_parallel = 4
    params.warmup = False
    # Two threads would spend their time waiting for each other: it is a very small model.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(server.listening_address, flush=True)  # noqa: T201 - that is its log
    signal.pause()


main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
