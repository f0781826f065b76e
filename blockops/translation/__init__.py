"""The core: bytes and values in, bytes and values out. No sockets, no clocks, no Twisted."""
