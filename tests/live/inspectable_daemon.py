"""
`twistd` that reports its objects: SIGUSR1 makes it write a report to a file.

    BLOCKOPS_LIVE_REPORT=FILE python -m tests.live.inspectable_daemon [options of twistd]

blockops itself runs unchanged. The report is one JSON object: `calls` counts the reactor's delayed
calls by function; `objects` counts the objects of each class of blockops and of Twisted's network
code, and of each built-in type; `in_flight` is the number of requests in flight.
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

#: The environment variable with the path of the report.
REPORT_VARIABLE = "BLOCKOPS_LIVE_REPORT"

_REPORTED_MODULES = (
    "blockops.",
    "twisted.internet.",
    "twisted.web.",
    "twisted.protocols.",
    "builtins.",
)


class InspectableDaemon(Daemon):
    """blockops that reports its objects."""

    twistd = (sys.executable, "-m", "tests.live.inspectable_daemon", "-n", "--pidfile=")

    def __init__(self, folder: Path, *options: str, environ: dict[str, str] | None = None) -> None:
        self._report = folder / "report.json"
        super().__init__(
            folder, *options, environ=(environ or {}) | {REPORT_VARIABLE: str(self._report)}
        )

    def inspect(self) -> dict[str, Any]:
        """Return a new report of the daemon."""
        self._report.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        wait_for(self._report.exists, "the daemon did not write its report", timeout=60)
        return dict(json.loads(self._report.read_text()))


def count_objects(reactor: ReactorBase) -> dict[str, Any]:
    """Return the report of this process."""
    gc.collect()
    if sys.platform == "linux":
        # Return free memory to the system, so that the resident memory is the memory in use.
        ctypes.CDLL(None).malloc_trim(0)
    count: Counter[str] = Counter()
    requests_in_flight = 0
    for obj in gc.get_objects():
        kind = type(obj)
        count[f"{kind.__module__}.{kind.__qualname__}"] += 1
        if kind.__qualname__ == "InFlightRequests":
            requests_in_flight = len(obj)
    # IDelayedCall does not declare `func`, but Twisted's delayed calls have it.
    functions = [getattr(obj, "func", obj) for obj in reactor.getDelayedCalls()]
    calls = Counter(str(getattr(func, "__qualname__", func)) for func in functions)
    objects = {name: number for name, number in count.items() if name.startswith(_REPORTED_MODULES)}
    return {"calls": calls, "objects": objects, "in_flight": requests_in_flight}


def main() -> None:
    """Run twistd."""
    report = Path(os.environ[REPORT_VARIABLE])

    def write_report(*_: object) -> None:
        # Imported late, because the command line chooses the reactor.
        from twisted.internet import reactor  # noqa: PLC0415

        partial = report.with_suffix(".half")
        partial.write_text(json.dumps(count_objects(reactor)))  # type: ignore[arg-type]
        partial.replace(report)

    signal.signal(signal.SIGUSR1, write_report)
    from twisted.scripts.twistd import run  # noqa: PLC0415

    run()


if __name__ == "__main__":
    main()
