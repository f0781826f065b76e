"""The headers that every response has."""

from __future__ import annotations

import time

from twisted.web.http import datetimeToString

from blockops.server.http1.serialize import SERVER


class CommonHeaders:
    """Makes these headers once a second, because they contain the date."""

    def __init__(self) -> None:
        self._second = 0
        self._lines = b""

    def __call__(self) -> bytes:
        """Return the headers as bytes, each with its line end."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._lines = b"Server: %s\r\nDate: %s\r\n" % (SERVER, datetimeToString(second))
        return self._lines


common_headers = CommonHeaders()
