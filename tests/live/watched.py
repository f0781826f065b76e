"""
`twistd` with a window: SIGUSR1 makes it write down what it holds.

    WATCHED_WINDOW=FILE python -m tests.live.watched [twistd's own command line]

blockops itself runs unchanged. What is written is one JSON object: `calls`, the functions that the
reactor will call later; `objects`, how many there are of each class of blockops' and Twisted's
network code, and of each built-in type; `live`, the requests that the gateway knows of.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.live.harness import Daemon, wait_for

if TYPE_CHECKING:
    from twisted.internet.base import ReactorBase

#: The variable that names the file.
WINDOW = "WATCHED_WINDOW"

_SHOWN = ("blockops.", "twisted.internet.", "twisted.web.", "twisted.protocols.", "builtins.")


class Watched(Daemon):
    """blockops with the window."""

    twistd = (sys.executable, "-m", "tests.live.watched", "-n", "--pidfile=")

    def __init__(self, folder: Path, *options: str, environ: dict[str, str] | None = None) -> None:
        self._window = folder / "window.json"
        super().__init__(folder, *options, environ=(environ or {}) | {WINDOW: str(self._window)})

    def look(self) -> dict[str, Any]:
        """Return what the daemon holds now."""
        self._window.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        wait_for(self._window.exists, "the daemon does not tell what it holds", within=60)
        return dict(json.loads(self._window.read_text()))


def holdings(reactor: ReactorBase) -> dict[str, Any]:
    """Return what this process holds."""
    gc.collect()
    if sys.platform == "linux":
        # What is free is given back, so that the memory that is left is the memory that is held.
        ctypes.CDLL(None).malloc_trim(0)
    count: Counter[str] = Counter()
    live = 0
    for each in gc.get_objects():
        kind = type(each)
        count[f"{kind.__module__}.{kind.__qualname__}"] += 1
        if kind.__qualname__ == "Gateway":
            live = len(each)
    # The interface does not say so, but each of them knows what it will call.
    due = [getattr(each, "func", each) for each in reactor.getDelayedCalls()]
    calls = Counter(str(getattr(one, "__qualname__", one)) for one in due)
    objects = {name: number for name, number in count.items() if name.startswith(_SHOWN)}
    return {"calls": calls, "objects": objects, "live": live}


def main() -> None:
    """Run twistd."""
    window = Path(os.environ[WINDOW])

    def show(*_: object) -> None:
        # Not before the command line was read: it chooses the reactor.
        from twisted.internet import reactor  # noqa: PLC0415

        half = window.with_suffix(".half")
        half.write_text(json.dumps(holdings(reactor)))  # type: ignore[arg-type]
        half.replace(window)

    signal.signal(signal.SIGUSR1, show)
    from twisted.scripts.twistd import run  # noqa: PLC0415

    run()


if __name__ == "__main__":
    main()
