"""A `BackendProbe` with scripted responses."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed

from blockops.upstream.probe import TIMEOUT, BackendProbe, ProbeResponse

#: The fields of a `ProbeResponse`; the last ones may be omitted.
ScriptedResponse = tuple[int, bytes] | tuple[int, bytes, str, bool]


class ScriptedProbe(BackendProbe):
    """
    Responds to each call as scripted, and to any other as if the backend were unreachable.

    :param responses: by call, a method and a path: the status and the body
    :ivar calls: the calls so far
    :ivar bodies: their bodies
    """

    def __init__(self, responses: dict[str, ScriptedResponse] | None = None) -> None:
        self.responses = responses or {}
        self.calls: list[str] = []
        self.bodies: list[Any] = []

    def request(
        self, call: str, body: Any = None, timeout: float = TIMEOUT
    ) -> Deferred[ProbeResponse | None]:
        self.calls.append(call)
        self.bodies.append(body)
        response = self.responses.get(call)
        return succeed(None if response is None else ProbeResponse(*response))
