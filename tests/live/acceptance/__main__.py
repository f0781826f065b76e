"""`bash tests/live/matrix` runs this."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from tests.live.acceptance.matrix import Matrix, Wanted
from tests.live.acceptance.table import page, summary


def main() -> int:
    parser = argparse.ArgumentParser(prog="matrix", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="a server, a client, or oracle; several of one kind are all run",
    )
    parser.add_argument(
        "--heartbeat-style",
        choices=("chunk", "comment"),
        default="",
        help="slow servers down, and fill the pauses with heartbeats",
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there, too")
    parser.add_argument("--folder", type=Path, help="keep all logs there")
    asked = parser.parse_args()
    # So that servers and daemons are stopped, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("matrix: told to stop"))
    with tempfile.TemporaryDirectory() as made:
        folder = (asked.folder or Path(made)).resolve()
        matrix = Matrix(Wanted(asked.only, asked.heartbeat_style), folder)
        matrix.run()
    text = page(matrix)
    if asked.write:
        asked.write.write_text(text)
    sys.stdout.write(f"\n{text}\n{summary(matrix)}\n")
    return 1 if matrix.failures else 0


sys.exit(main())
