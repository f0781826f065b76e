"""
HTTP/1.1 as a client.

An `IAgent` for treq with one connection per request, and a sans-IO response parser. No JSON, no
configuration and no knowledge of LLM servers: those are in `blockops.upstream`.
"""
