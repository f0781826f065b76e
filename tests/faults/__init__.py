"""
Peers that misbehave on purpose: a backend and clients, over real sockets and in memory.

This package holds the peers, the scripts that they play, and the check of what a client received.
Tests of blockops itself, other than the table of faults, belong to the packages they test.

A peer plays a script, a sequence of steps (`steps`), on a connection:

    script = [Send(HEAD), Send(BODY[:100]), Wait(3), Reset()]

Over real sockets, with any reactor, the backend is a factory. It chooses a script for each request
and keeps its requests and open connections:

    backend = FaultyBackend(reactor, lambda request: good_response(request.is_streaming))
    port = reactor.listenTCP(0, backend, interface="127.0.0.1")
    ...
    backend.open_connections  # 0 once all are closed
    backend.all_closed        # Deferred that fires when no connection is open

    client = await FaultyClient.connect(reactor, "127.0.0.1", 8080)
    client.play([Send(encode_request(body), piece_size=1, pause=0.01), WaitFor(b"data: "), Reset()])
    await client.when_closed  # the connection is closed; never fails
    response = parse_response(client.received, closed=True)

In memory, `tests.world.World` provides the connections:

    client, backend = world.start_chat()
    play(MemoryConnection(world, backend), script)

`scripts.FAULTS` names the faults of a backend. Each has a script for a stream and one for a
non-streaming response. All respond to the same request; the complete response is `scripts.TEXT`
and `scripts.CALL`. `responses.judge` checks the bytes that a client received. It rejects a response
that misleads the client: a truncated stream that looks complete, an error that is not in OpenAI's
format.
"""
