"""
The life of a request, from its route to the end of its response.

Here are the routes, the exchange with its deadlines, the requests in flight, and the steps that
endpoints share; `endpoints` has the endpoints themselves. This is the only package that uses
`server`, `upstream`, `translation`, `conversation` and `operations` together. It has no HTTP
parsing and no knowledge of tool calls, and does not build its own parts: `daemon.wiring` does.
"""
