"""One program a client: each runs in the clients' environment, as that client's manual has it."""
