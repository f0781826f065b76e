"""
The HTTP/1.1 server for clients: listeners, connections, requests, responses and their limits.

It parses requests, enforces deadlines and upper bounds, and sends responses with backpressure. It
contains nothing about models, backends or the traffic log: `blockops.proxy` decides how a request
is answered. It reads neither JSON nor `Settings`: its classes get single values.
"""
