"""
One program for each client, which runs in the clients' environment and follows the client's manual.

The programs import nothing from blockops or `tests`: their environment has only the clients.
"""
