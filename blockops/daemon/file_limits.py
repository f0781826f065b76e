"""
The limit of open file descriptors.

Without a free descriptor, Twisted accepts connections and closes them at once: clients see no error
response, and nothing reaches the log.
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
    """Raise the soft limit to `needed`, at most to the hard limit; return how many may be used."""
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
