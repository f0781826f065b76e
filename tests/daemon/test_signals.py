"""Signals: what each does, and that all is as before when the daemon has ended."""

from __future__ import annotations

import os
import pty
import select
import signal
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.daemon import signals
from blockops.daemon.signals import STOPPING, Held, Signals, hold_hangup


class Reactor:
    """Calls from threads, at once or when it comes to them."""

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
        self.signals = Signals(self.reactor)
        self.addCleanup(self.signals.restore)
        self.told: list[str] = []

    def send(self, number: int) -> None:
        os.kill(os.getpid(), number)

    def test_hangup(self) -> None:
        self.signals.on_hangup(lambda: self.told.append("reload"))
        self.send(signal.SIGHUP)
        self.assertEqual(self.told, [])
        self.reactor.turn()
        self.send(signal.SIGHUP)
        self.reactor.turn()
        self.assertEqual(self.told, ["reload"] * 2)
        self.assertEqual(self.reactor.stopped, 0)

    def test_a_terminal_that_is_closed(self) -> None:
        for there, reloads in ((True, 1), (False, 0)):
            self.told.clear()
            self.patch(signals, "_holds_terminal", lambda: True)
            taken = Signals(self.reactor)
            self.addCleanup(taken.restore)
            taken.on_hangup(lambda: self.told.append("reload"))
            self.patch(signals, "_holds_terminal", lambda there=there: there)
            self.send(signal.SIGHUP)
            self.reactor.turn()
            self.assertEqual((len(self.told), self.reactor.stopped), (reloads, 1 - reloads))

    def test_asked_to_stop_again(self) -> None:
        self.signals.on_stop(lambda: self.told.append("hasten"))
        for number in STOPPING:
            self.send(number)
        self.reactor.turn()
        self.assertEqual(self.told, ["hasten"] * 2)

    def test_all_is_as_before(self) -> None:
        numbers = (signal.SIGHUP, *STOPPING)
        before = [signal.getsignal(number) for number in numbers]
        self.signals.on_hangup(lambda: None)
        self.signals.on_hangup(lambda: None)
        self.signals.on_stop(lambda: None)
        self.assertNotEqual([signal.getsignal(number) for number in numbers], before)
        self.signals.restore()
        self.assertEqual([signal.getsignal(number) for number in numbers], before)
        self.signals.restore()

    def test_a_handler_that_python_does_not_know(self) -> None:
        self.patch(signal, "signal", lambda *given: self.told.append(str(given[1])))
        self.signals.on_hangup(lambda: None)
        self.signals.restore()
        self.assertEqual(self.told[-1], str(signal.SIG_DFL))


class Early(SynchronousTestCase):
    """What comes before anybody can reload."""

    def setUp(self) -> None:
        before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
        self.addCleanup(signal.signal, signal.SIGHUP, before)
        self.patch(signals, "_holds_terminal", lambda: False)
        self.reactor = Reactor()
        self.told: list[str] = []

    def take(self) -> None:
        taken = Signals(self.reactor)
        self.addCleanup(taken.restore)
        taken.on_hangup(lambda: self.told.append("reload"))

    def test_one_that_came_too_early_is_made_up_for_once(self) -> None:
        # As a shell leaves it, and as `nohup` does.
        for before in (signal.SIG_DFL, signal.SIG_IGN):
            signal.signal(signal.SIGHUP, before)
            self.told.clear()
            hold_hangup()
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGHUP)
            self.take()
            self.take()
            self.assertEqual(self.told, [])
            self.reactor.turn()
            self.assertEqual(self.told, ["reload"])

    def test_none_came(self) -> None:
        hold_hangup()
        self.take()
        self.reactor.turn()
        self.assertEqual(self.told, [])

    def test_a_terminal_that_was_closed_meanwhile(self) -> None:
        self.patch(signals, "_holds_terminal", lambda: True)
        hold_hangup()
        self.patch(signals, "_holds_terminal", lambda: False)
        os.kill(os.getpid(), signal.SIGHUP)
        self.take()
        self.reactor.turn()
        self.assertEqual((self.told, self.reactor.stopped), ([], 1))

    def test_a_daemon_has_left_the_terminal_that_it_was_started_from(self) -> None:
        self.patch(signals, "_holds_terminal", lambda: True)
        hold_hangup()
        begun = Signals(self.reactor)
        self.addCleanup(begun.restore)
        session = os.getsid(0)
        self.patch(signals, "_holds_terminal", lambda: False)
        self.patch(os, "getsid", lambda _: session + 1)
        begun.on_hangup(lambda: self.told.append("reload"))
        os.kill(os.getpid(), signal.SIGHUP)
        self.reactor.turn()
        self.assertEqual((self.told, self.reactor.stopped), (["reload"], 0))
        begun.on_hangup(lambda: self.told.append("again"))  # with nothing held
        os.kill(os.getpid(), signal.SIGHUP)
        self.reactor.turn()
        self.assertEqual((self.told, self.reactor.stopped), (["reload", "again"], 0))

    def test_who_takes_them_already_goes_on(self) -> None:
        there = Held()
        signal.signal(signal.SIGHUP, there)
        hold_hangup()
        self.assertIs(signal.getsignal(signal.SIGHUP), there)


class Terminals(SynchronousTestCase):
    """Who holds one is a child of its own: it has to be its session's."""

    def test_open_and_closed(self) -> None:
        child, master = pty.fork()
        if child == 0:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            there = signals._holds_terminal()
            os.write(1, b"!")
            while signals._holds_terminal():
                select.select([], [], [], 0.01)
            os._exit(there)
        self.assertEqual(os.read(master, 1), b"!")
        os.close(master)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), True)

    def test_none(self) -> None:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os._exit(signals._holds_terminal())
        self.assertEqual(os.waitpid(child, 0)[1], 0)
