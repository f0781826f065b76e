"""Signals in each state of the daemon, and their restoration."""

from __future__ import annotations

import os
import pty
import select
import signal
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.daemon import signals
from blockops.daemon.signals import STOP_SIGNALS, SignalHandlers


class Reactor:
    """Queues the calls from threads until `turn`."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], Any]] = []
        self.stopped = 0

    def callFromThread(self, call: Callable[[], Any]) -> None:
        self.calls.append(call)

    def turn(self) -> None:
        while self.calls:
            self.calls.pop(0)()

    def stop(self) -> None:
        self.stopped += 1


class SignalsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        self.signals = SignalHandlers(self.reactor)
        self.addCleanup(self.signals.restore)
        self.calls: list[str] = []

    def send(self, number: int) -> None:
        os.kill(os.getpid(), number)

    def test_hangup(self) -> None:
        self.signals.on_hangup(lambda: self.calls.append("reload"))
        self.send(signal.SIGHUP)
        self.assertEqual(self.calls, [])
        self.reactor.turn()
        self.send(signal.SIGHUP)
        self.reactor.turn()
        self.assertEqual(self.calls, ["reload"] * 2)
        self.assertEqual(self.reactor.stopped, 0)

    def test_closed_terminal(self) -> None:
        for is_open, reloads in ((True, 1), (False, 0)):
            self.calls.clear()
            self.patch(signals, "_has_terminal", lambda: True)
            handlers = SignalHandlers(self.reactor)
            self.addCleanup(handlers.restore)
            handlers.on_hangup(lambda: self.calls.append("reload"))
            self.patch(signals, "_has_terminal", lambda is_open=is_open: is_open)
            self.send(signal.SIGHUP)
            self.reactor.turn()
            self.assertEqual((len(self.calls), self.reactor.stopped), (reloads, 1 - reloads))

    def test_repeated_stop(self) -> None:
        self.signals.on_repeated_stop(lambda: self.calls.append("cancel"))
        for number in STOP_SIGNALS:
            self.send(number)
        self.reactor.turn()
        self.assertEqual(self.calls, ["cancel"] * 2)

    def test_restore(self) -> None:
        numbers = (signal.SIGHUP, *STOP_SIGNALS)
        before = [signal.getsignal(number) for number in numbers]
        self.signals.on_hangup(lambda: None)
        self.signals.on_hangup(lambda: None)
        self.signals.on_repeated_stop(lambda: None)
        self.assertNotEqual([signal.getsignal(number) for number in numbers], before)
        self.signals.restore()
        self.assertEqual([signal.getsignal(number) for number in numbers], before)
        self.signals.restore()

    def test_a_handler_not_installed_from_python(self) -> None:
        self.patch(signal, "signal", lambda *arguments: self.calls.append(str(arguments[1])))
        self.signals.on_hangup(lambda: None)
        self.signals.restore()
        self.assertEqual(self.calls[-1], str(signal.SIG_DFL))


class TerminalTests(SynchronousTestCase):
    """In child processes, because the terminal must be that of the process's session."""

    def test_open_and_closed(self) -> None:
        child, master = pty.fork()
        if child == 0:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            was_open = signals._has_terminal()
            os.write(1, b"!")
            while signals._has_terminal():
                select.select([], [], [], 0.01)
            os._exit(was_open)
        self.assertEqual(os.read(master, 1), b"!")
        os.close(master)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), True)

    def test_no_terminal(self) -> None:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os._exit(signals._has_terminal())
        self.assertEqual(os.waitpid(child, 0)[1], 0)
