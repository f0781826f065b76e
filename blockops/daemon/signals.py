"""
The signals that the daemon handles itself, besides those with which Twisted stops the reactor.

| state | set by | SIGHUP | SIGTERM, SIGINT |
| --- | --- | --- | --- |
| starting | `defer_hangup` | recorded by `PendingHangup` | not handled: the process ends |
| running | `on_hangup` | reload; stop if the daemon's terminal was closed | Twisted: stop |
| stopping | `on_repeated_stop` | as before | do not wait for running requests |
| stopped | `restore` | as before the start | as before the start |

Reasons:

- starting: the daemon cannot reload for half a second, and by default a SIGHUP would end it.
- running: a user who closes the terminal expects that the programs in it end. `twistd` without `-n`
  has moved to a session of its own, without a terminal: there a SIGHUP always means a reload.
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

#: The signals that stop the daemon.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class PendingHangup:
    """
    Records a SIGHUP until `SignalHandlers.on_hangup` handles it.

    :ivar is_received: a SIGHUP has arrived
    :ivar session: this process's session if it has a terminal, which can be closed; or None
    """

    def __init__(self) -> None:
        self.is_received = False
        self.session = _terminal_session()

    def __call__(self, *_: object) -> None:
        self.is_received = True


def defer_hangup() -> None:
    """
    Record SIGHUP from now on; otherwise it would end the process, or be ignored (`nohup`).

    A handler that was installed from Python stays. Call this in the main thread.
    """
    if signal.getsignal(signal.SIGHUP) in {signal.SIG_DFL, signal.SIG_IGN}:
        signal.signal(signal.SIGHUP, PendingHangup())


class SignalHandlers:
    """
    Calls functions in the reactor's thread when signals arrive.

    Install handlers in the main thread: Python does so only there.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._previous: dict[signal.Signals, _Handler] = {}
        self._session = _terminal_session()

    def on_hangup(self, reload: Callable[[], object]) -> None:
        """Call `reload` for each SIGHUP, and once for those recorded by `defer_hangup`."""
        pending = signal.getsignal(signal.SIGHUP)
        session = pending.session if isinstance(pending, PendingHangup) else self._session

        def stop_or_reload() -> None:
            if session == os.getsid(0) and not _has_terminal():
                self._reactor.stop()
            else:
                reload()

        self._install(signal.SIGHUP, stop_or_reload)
        if isinstance(pending, PendingHangup) and pending.is_received:
            pending.is_received = False
            self._reactor.callFromThread(stop_or_reload)

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


def _terminal_session() -> int | None:
    """Return the id of this process's session, or None if it has no terminal."""
    return os.getsid(0) if _has_terminal() else None


def _has_terminal() -> bool:
    """Return True if standard input is a terminal that is still open."""
    try:
        os.tcgetpgrp(0)
    except OSError:
        return False
    return True
