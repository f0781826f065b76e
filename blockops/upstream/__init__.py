"""
HTTP towards backends.

The client and its connections, admission, the circuit breaker, purges of the prompt cache, and the
features that a backend supports or rejects. Not here: the content of requests and answers (`api`,
`translation`, `conversation`), the clients' side (`server`), and the order in which a request
passes through these parts (`proxy`).
"""
