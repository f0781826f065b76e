"""
HTTP/1.1 as bytes, sans-IO: the head and the framing of requests.

The parsers get bytes and return values or raise `ApiError`. Connections, deadlines and the
responses of routes are in `blockops.server`.
"""
