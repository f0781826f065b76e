"""
Helpers for TCP connections and HTTP headers that both sides, `server` and `upstream`, need.

They write to a socket at once, read its state, parse addresses, and select the headers that are
forwarded. The HTTP servers and clients are in `blockops.server` and `blockops.upstream`. Nothing
here parses a message or reads a body.
"""
