"""
File descriptors: how many the process may have, and how many its settings can need.

When there are none left, Twisted accepts what waits and closes it at once, so the daemon lives; but
clients see closed connections instead of a refusal, and nothing reaches the backend or the log.
"""

from __future__ import annotations

import resource

from blockops.server.limits import MAX_TURNED_AWAY

#: Those that are no connections: the reactor's, listening sockets, logs, libraries that are loaded.
BESIDE = 64


def needed(connections: int) -> int:
    """Return how many descriptors it takes to serve so many connections at once."""
    # Each of them may be relayed: GETs do not wait in the queue.
    return 2 * connections + MAX_TURNED_AWAY + BESIDE


def provide(need: int) -> int:
    """
    Let the process have `need` descriptors, as far as the system's hard limit allows.

    Return how many it may have now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _covers(soft, need):
        return need
    wanted = need if _covers(hard, need) else hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # a sandbox may forbid it
        return soft
    return wanted


def _covers(limit: int, need: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= need
