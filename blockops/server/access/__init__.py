"""
Access control: which requests are allowed, decided before any of their body is read.

It contains API keys, allowed web pages (CORS), known host names, and the limit for log records of
rejected requests. The result of a check is None, an error or a preflight response, which
`blockops.proxy` sends. Nothing here reads a request's body or writes a response.
"""
