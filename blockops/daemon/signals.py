"""
Signals that the daemon takes itself, besides those with which Twisted stops the reactor.

SIGHUP lets it read again what may have changed. While it stops, a second SIGTERM or SIGINT is for
those who do not want to wait; Twisted would try to stop the reactor once more and log a traceback.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

#: What a signal is answered with, as Python has it.
_Taken = Callable[[int, FrameType | None], Any] | int | None

STOPPING = (signal.SIGTERM, signal.SIGINT)


class Held:
    """
    Keeps in mind that a SIGHUP came, until `Signals.on_hangup` takes them.

    :ivar came: whether one did
    :ivar session: the one whose terminal can be closed; None if there was no terminal
    """

    def __init__(self) -> None:
        self.came = False
        self.session = _session_at_terminal()

    def __call__(self, *_: object) -> None:
        self.came = True


def hold_hangup() -> None:
    """
    Do not end for a SIGHUP from now on, though nobody can reload yet.

    Half a second passes from here until the daemon is put together. Where they were ignored
    (`nohup`), they are not once it is. To be used in the main thread.
    """
    if signal.getsignal(signal.SIGHUP) in {signal.SIG_DFL, signal.SIG_IGN}:
        signal.signal(signal.SIGHUP, Held())


class Signals:
    """
    Calls functions in the reactor's thread when signals come.

    To be used in the main thread, where Python takes signals.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._before: dict[signal.Signals, _Taken] = {}
        self._session = _session_at_terminal()

    def on_hangup(self, reload: Callable[[], object]) -> None:
        """
        Call `reload` at each SIGHUP, and once for those that were held.

        One that comes because the terminal was closed stops the reactor: whoever started the daemon
        there is gone, and would not know that it is still running. A process that became a daemon
        since it was started has a session of its own: no terminal's end is meant for that.
        """
        held = signal.getsignal(signal.SIGHUP)
        session = held.session if isinstance(held, Held) else self._session

        def hung_up() -> None:
            if session == os.getsid(0) and not _holds_terminal():
                self._reactor.stop()
            else:
                reload()

        self._take(signal.SIGHUP, hung_up)
        if isinstance(held, Held) and held.came:
            held.came = False
            self._reactor.callFromThread(hung_up)

    def on_stop(self, hasten: Callable[[], object]) -> None:
        """Call `hasten` at each further signal that asks the daemon to stop."""
        for number in STOPPING:
            self._take(number, hasten)

    def _take(self, number: signal.Signals, call: Callable[[], object]) -> None:
        before = signal.signal(number, lambda *_: self._reactor.callFromThread(call))
        self._before.setdefault(number, before)

    def restore(self) -> None:
        """Let each signal do what it did before."""
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)
        self._before.clear()


def _session_at_terminal() -> int | None:
    """Return this process' session, if it has a terminal that can be closed."""
    return os.getsid(0) if _holds_terminal() else None


def _holds_terminal() -> bool:
    """Say whether standard input is a terminal that somebody has open."""
    try:
        os.tcgetpgrp(0)
    except OSError:
        return False
    return True
