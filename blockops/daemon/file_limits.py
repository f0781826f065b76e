"""
The limit of open file descriptors: how many the daemon may need, and raising the soft limit.

Without a free descriptor, Twisted accepts waiting connections and closes them at once. The daemon
survives that, but clients see closed connections instead of an error response, and nothing reaches
the backend or the log.
"""

from __future__ import annotations

import resource

from blockops.server.limits import MAX_LINGERING

#: Descriptors besides those of connections: the reactor, listening sockets, logs, loaded libraries.
RESERVED = 64


def required_descriptors(connections: int) -> int:
    """Return the number of descriptors needed to serve so many client `connections` at once."""
    # Each may have a backend connection besides: GETs are relayed without waiting for a slot.
    return 2 * connections + MAX_LINGERING + RESERVED


def raise_limit(needed: int) -> int:
    """
    Raise the soft limit to `needed`, or to the hard limit if that is lower.

    :returns: the number of descriptors that may be used, at most `needed`
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _suffices(soft, needed):
        return needed
    limit = needed if _suffices(hard, needed) else hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (OSError, ValueError):  # a sandbox may forbid it
        return soft
    return limit


def _suffices(limit: int, needed: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= needed
