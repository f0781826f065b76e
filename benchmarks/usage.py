"""CPU time and memory of other processes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import psutil


class Usage(NamedTuple):
    """
    CPU time since the start of a process, in seconds. Threads that have ended are included.

    :param cpu: user and system time by the scheduler's clock, in nanoseconds on Linux; `user` and
        `system` come from `/proc/PID/stat`, which counts hundredths of a second
    """

    cpu: float = 0.0
    user: float = 0.0
    system: float = 0.0

    def __sub__(self, before: Usage) -> Usage:
        return Usage(*(now - then for now, then in zip(self, before, strict=True)))


NO_USAGE = Usage()


def process_tree(pid: int) -> list[int]:
    """
    Return `pid` and the processes below it, such as the workers of nginx; empty if it has ended.
    """
    try:
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def cpu_usage(pids: Iterable[int]) -> Usage:
    """Return the sum of the CPU times of the processes; a process that has ended counts 0."""
    usages = [_cpu_usage(pid) for pid in pids]
    return Usage(*(sum(times) for times in zip(NO_USAGE, *usages, strict=True)))


def _cpu_usage(pid: int) -> Usage:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return NO_USAGE
    return Usage(_cpu_clock(pid) or times.user + times.system, times.user, times.system)


def _cpu_clock(pid: int) -> float:
    """
    Return the CPU clock of another process in seconds, or 0 if the system has none.

    The clock's number is computed as `clock_getcpuclockid(3)` does on Linux.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except (OSError, OverflowError):
        return 0.0


def memory_usage(pids: Iterable[int]) -> int:
    """Return the resident memory of the processes in bytes; shared pages count once (PSS)."""
    return sum(map(_memory_usage, pids))


def _memory_usage(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        pass
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
