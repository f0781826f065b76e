"""IP addresses, as text and as Twisted's address objects."""

from __future__ import annotations

import ipaddress

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress


def parse_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return `text` as an IP address, or None if it is not one, such as a host name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def is_local(address: IAddress | None) -> bool:
    """Return True if `address` is a loopback address or a Unix socket: only for this machine."""
    return isinstance(address, UNIXAddress) or is_loopback(address)


def is_loopback(address: IAddress | None) -> bool:
    """Return True if `address` is a loopback address; also if it is an IPv4 one mapped to IPv6."""
    if not isinstance(address, IPv4Address | IPv6Address):
        return False
    ip = parse_ip(address.host)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return ip is not None and (mapped or ip).is_loopback


def format_address(address: IAddress) -> str:
    """Return `address` as `host:port` or `[IPv6 host]:port`, or its `repr` without a host."""
    host, port = getattr(address, "host", None), getattr(address, "port", None)
    if host is None:
        return repr(address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
