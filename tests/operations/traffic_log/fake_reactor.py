"""A reactor for the thread of the traffic log, and the lines that the thread has written."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock

#: Seconds after which a thread counts as hung.
THREAD_TIMEOUT = 30


class FakeReactor(Clock):
    """A clock, and calls from threads that wait until the test runs them."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: queue.Queue[tuple[Callable[..., Any], tuple[Any, ...]]] = queue.Queue()

    def callFromThread(self, callable: Callable[..., Any], /, *args: Any) -> None:  # noqa: A002
        self._calls.put((callable, args))

    def run_one_call(self) -> None:
        function, args = self._calls.get(timeout=THREAD_TIMEOUT)
        function(*args)

    def run_calls(self) -> None:
        while not self._calls.empty():
            self.run_one_call()


def lines(path: Path) -> list[Any]:
    return [json.loads(each) for each in path.read_text("utf-8").splitlines()]
