"""
llama.cpp's own HTTP server with the tiny model: `python llama_server.py FOLDER PORT [TOKENS]`.

TOKENS is the context size that the four slots share.

A separate program, because a crash in C++ ends the process.
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
    # One thread: the model is so small that two threads would mostly wait for each other.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(server.listening_address, flush=True)  # noqa: T201 - the program's log
    signal.pause()


main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
