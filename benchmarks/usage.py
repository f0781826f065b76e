"""What processes have used: CPU, to the nanosecond where the system tells, and memory."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import psutil


class Used(NamedTuple):
    """
    CPU time since a process began, in seconds; threads that have ended are in it.

    :param cpu: user and system; of the scheduler's own clock, where `user` and `system` (of
        `/proc/PID/stat`) count hundredths of a second
    """

    cpu: float = 0.0
    user: float = 0.0
    system: float = 0.0

    def __sub__(self, before: Used) -> Used:
        return Used(*(now - then for now, then in zip(self, before, strict=True)))


NOTHING = Used()


def family(pid: int) -> list[int]:
    """Return the process and all below it: nginx' worker, LiteLLM's."""
    try:
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def used(pids: Iterable[int]) -> Used:
    """Return what the processes have used together."""
    every = [_used(pid) for pid in pids]
    return Used(*(sum(part) for part in zip(Used(), *every, strict=True)))


def _used(pid: int) -> Used:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return Used()
    return Used(_clock(pid) or times.user + times.system, times.user, times.system)


def _clock(pid: int) -> float:
    """
    Return what the CPU clock of another process says, 0 where there is none.

    The number of the clock is what `clock_getcpuclockid(3)` gives on Linux.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except (OSError, OverflowError):
        return 0.0


def memory(pids: Iterable[int]) -> int:
    """Return the bytes that the processes have in memory; what they share counts once."""
    return sum(map(_memory, pids))


def _memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        pass
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
