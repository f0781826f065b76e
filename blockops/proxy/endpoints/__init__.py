"""
The endpoints: one module per API or group of routes, each a class with its handlers.

A handler is a coroutine function that serves one `Exchange`. Steps that several endpoints share are
in `blockops.proxy.relay`; routing is in `routes`, deadlines and failures are in `exchange`,
the start and the end of a request in `in_flight`.
"""
