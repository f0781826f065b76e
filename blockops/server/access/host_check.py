"""
Known host names: the protection from DNS rebinding.

The owner of a domain can let its name point to 127.0.0.1. To the browser, a page of that domain
then sends requests to its own server, and may read the responses. So on loopback addresses a
request is allowed only if its `Host` is a name of this machine, or one that others cannot register.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from functools import lru_cache

from twisted.internet.interfaces import IAddress

from blockops.errors import ApiError
from blockops.net.addresses import is_loopback, parse_ip
from blockops.net.http_headers import header_excerpt

#: Top-level domains that cannot be registered: RFC 6761, RFC 6762, ICANN's decision of 2024.
_RESERVED_TLDS = (".localhost", ".local", ".internal")


class HostCheck:
    """Allows `localhost`, the host name of this machine, and `allowed`; `*` allows all names."""

    def __init__(self, allowed: Collection[str] = ()) -> None:
        self._names = frozenset({"localhost", socket.gethostname().lower(), *allowed})

    def check(self, host: bytes, server_address: Callable[[], IAddress]) -> ApiError | None:
        """
        Return the 403 for a request with an unknown host name, or None.

        :param host: the value of its `Host` header
        :param server_address: returns the address that the client has connected to. Only loopback
            addresses are checked: web pages cannot reach a Unix socket, and no name points to one.
        """
        if _is_known_host(host, self._names) or not is_loopback(server_address()):
            return None
        name = _without_port(header_excerpt(host))
        return ApiError(
            403,
            f"The host {name!r} is not a known name of this machine. If it is one, start blockops"
            f" with --allowed-host {name}.",
            type="permission_error",
            code="host_not_allowed",
        )


@lru_cache  # Most requests have the same host.
def _is_known_host(host: bytes, names: frozenset[str]) -> bool:
    """Return True if `host` is in `names`, an IP address, without a dot, or in a reserved TLD."""
    name = _without_port(host.decode("latin-1"))
    return (
        name in names
        or "*" in names
        or "." not in name
        or name.endswith(_RESERVED_TLDS)
        or parse_ip(name) is not None
    )


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".").lower()
