"""Run the acceptance matrix: each client with each server, with blockops between them."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from tests.live.acceptance.matrix import Matrix, Selection
from tests.live.acceptance.table import page, summary


def main() -> int:
    parser = argparse.ArgumentParser(prog="matrix", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="run this server, client, or 'oracle' only; may be repeated",
    )
    parser.add_argument(
        "--heartbeat-style",
        choices=("chunk", "comment"),
        default="",
        help="slow the servers down, and fill the pauses with heartbeats of this style",
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the page to FILE")
    parser.add_argument("--folder", type=Path, help="keep all logs in FOLDER")
    arguments = parser.parse_args()
    # sys.exit runs the cleanups, which stop the servers and daemons.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("matrix: stopped by SIGTERM"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        matrix = Matrix(Selection(arguments.only, arguments.heartbeat_style), folder)
        matrix.run()
    text = page(matrix)
    if arguments.write:
        arguments.write.write_text(text)
    sys.stdout.write(f"\n{text}\n{summary(matrix)}\n")
    return 1 if matrix.failures else 0


sys.exit(main())
