"""A client that does what scripts say, over sockets."""

from __future__ import annotations

import json
from typing import Any, Self, cast

from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory

from tests.faults.lines import Socket

CHAT = "/v1/chat/completions"


def head_of(body: bytes, target: str = CHAT, method: str = "POST", **headers: str) -> bytes:
    """Return the request line and the headers that belong to `body`."""
    lines = [f"{method} {target} HTTP/1.1", "Host: blockops", "Content-Type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()


def request(body: Any, target: str = CHAT, **headers: str) -> bytes:
    """Return a whole request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head_of(data, target, **headers) + data


class FaultyClient(Socket):
    """
    One connection to blockops.

    :ivar received: all that came
    :ivar over: fires when the connection is closed
    """

    def readConnectionLost(self) -> None:
        """Take an answer that ends with the connection."""
        self.close()

    @classmethod
    async def connect(cls, reactor: Any, host: str, port: int) -> Self:
        factory = Factory.forProtocol(lambda: cls(reactor))
        factory.noisy = False
        endpoint = TCP4ClientEndpoint(reactor, host, port)
        return cast("Self", await endpoint.connect(factory))
