"""A client that plays scripts, over sockets."""

from __future__ import annotations

import json
from typing import Any, Self, cast

from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory

from tests.faults.connections import SocketConnection

CHAT_PATH = "/v1/chat/completions"


def encode_request_head(
    body: bytes, target: str = CHAT_PATH, method: str = "POST", **headers: str
) -> bytes:
    """Return the request line and the headers of a request with `body`."""
    lines = [f"{method} {target} HTTP/1.1", "Host: blockops", "Content-Type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()


def encode_request(body: Any, target: str = CHAT_PATH, **headers: str) -> bytes:
    """Return the bytes of a request; a `body` other than bytes is encoded as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return encode_request_head(data, target, **headers) + data


class FaultyClient(SocketConnection):
    """
    One connection to blockops.

    :ivar received: all bytes received so far
    :ivar when_closed: fires when the connection is closed
    """

    def readConnectionLost(self) -> None:
        """Close: the end of the input ends a response without a length."""
        self.close()

    @classmethod
    async def connect(cls, reactor: Any, host: str, port: int) -> Self:
        factory = Factory.forProtocol(lambda: cls(reactor))
        factory.noisy = False
        endpoint = TCP4ClientEndpoint(reactor, host, port)
        return cast("Self", await endpoint.connect(factory))
