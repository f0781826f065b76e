"""
The signals that the daemon handles itself, besides those with which Twisted stops the reactor.

| state | set by | SIGHUP | SIGTERM, SIGINT |
| --- | --- | --- | --- |
| running | `on_hangup` | reload; stop if the daemon's terminal was closed | Twisted: stop |
| stopping | `on_repeated_stop` | as before | do not wait for running requests |
| stopped | `restore` | as before the start | as before the start |

Reasons:

- running: a user who closes the terminal expects that the programs in it end. `twistd` without `-n`
  has no terminal by the time it starts the service: there a SIGHUP always means a reload.
- stopping: a second signal comes from a user who does not want to wait. Twisted would try to stop
  the reactor once more and log a traceback.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

#: A signal's handler, as `signal.signal` returns it; None if it was not installed from Python.
_Handler = Callable[[int, FrameType | None], Any] | int | None

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SignalHandlers:
    """Calls functions in the reactor's thread for signals. Install in the main thread."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._previous: dict[signal.Signals, _Handler] = {}

    def on_hangup(self, reload: Callable[[], object]) -> None:
        """Call `reload` for each SIGHUP, unless it comes from a closed terminal."""
        had_terminal = _has_terminal()

        def stop_or_reload() -> None:
            if had_terminal and not _has_terminal():
                self._reactor.stop()
            else:
                reload()

        self._install(signal.SIGHUP, stop_or_reload)

    def on_repeated_stop(self, cancel: Callable[[], object]) -> None:
        """Call `cancel` for each further stop signal."""
        for number in STOP_SIGNALS:
            self._install(number, cancel)

    def _install(self, number: signal.Signals, call: Callable[[], object]) -> None:
        previous = signal.signal(number, lambda *_: self._reactor.callFromThread(call))
        self._previous.setdefault(number, previous)

    def restore(self) -> None:
        """Restore the handlers that were installed before."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()


def _has_terminal() -> bool:
    try:
        os.tcgetpgrp(0)
    except OSError:
        return False
    return True
