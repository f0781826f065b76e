"""
Peers that misbehave on purpose: a backend and clients, over real sockets and in memory.

What a peer does is a script: a sequence of steps (`steps`), played on a connection.

    script = [Send(HEAD), Send(BODY[:100]), Wait(3), Reset()]

Over real sockets, with whatever reactor, a backend is a factory. It chooses a script by what it is
asked, and keeps account of its connections:

    backend = FaultyBackend(reactor, lambda asked: well(asked.streams))
    port = reactor.listenTCP(0, backend, interface="127.0.0.1")
    ...
    backend.open              # connections that are open; 0 when all is over
    backend.ended             # Deferred that fires when there is none

    client = await FaultyClient.connect(reactor, "127.0.0.1", 8080)
    client.play([Send(request(body), at_once=1, pause=0.01), Until(b"data: "), Reset()])
    await client.over         # the connection is closed; never fails
    answer = read(client.received, closed=True)

In memory, `tests.world.World` is the other side:

    client, backend = world.ask()
    play(InMemory(world, backend), script)

`scripts.FAULTS` names the faults of a backend. For each there is a script for streams and one for
whole answers. All of them answer the same question, and what a faultless answer would say is
`scripts.TEXT` and `scripts.CALL`. `reading.judge` takes what a client received and refuses whatever
is not true: a stream that looks whole and is not, an error that is not in OpenAI's shape.
"""
