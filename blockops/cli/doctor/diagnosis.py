"""The examination of a backend: what it is asked, and in which order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_address
from typing import NoReturn
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from blockops.cli.doctor import tools
from blockops.cli.doctor.cache import Cache, token_finding
from blockops.cli.doctor.cancellation import COUNTERS, Leaving, burnt, counted
from blockops.cli.doctor.findings import Finding
from blockops.cli.doctor.identity import recognise
from blockops.cli.doctor.streams import stream_finding
from blockops.errors import ApiError
from blockops.proxy.relay import drop
from blockops.upstream.client import Upstream
from blockops.upstream.probe import Asking, Tokenizer


class Examination:
    """
    Examines one backend.

    :param model: which of its models to ask; None for the first that it lists
    :param question: what the model is asked with a tool on offer
    :param patience: seconds that one answer may take
    """

    def __init__(
        self,
        clock: IReactorTime,
        upstream: Upstream,
        *,
        model: str | None = None,
        question: str = tools.QUESTION,
        patience: float = 120.0,
    ) -> None:
        self._clock = clock
        self._upstream = upstream
        self._asking = Asking(clock, upstream)
        self._model = model
        self._question = question
        self._patience = patience

    async def findings(self) -> AsyncIterator[Finding]:
        """
        Yield what is found out, as it is.

        :raises ApiError: the backend cannot be reached, or does not answer a plain question in time
        """
        await Deferred.fromCoroutine(self._reach()).addTimeout(self._patience, self._clock, _late)
        server = await recognise(self._asking)
        for finding in server.findings():
            yield finding
        model = self._model or next(iter(server.models), None)
        without = await self._said(model, offer=False)
        if without.refusal is not None:
            raise ApiError(502, f"The backend refuses a plain question: {without.refusal}")
        yield await stream_finding(self._asking, model, self._patience)
        offered = await self._said(model, offer=True)
        for finding in tools.findings(without, offered, model):
            yield finding
        yield await token_finding(Tokenizer(self._clock, self._asking), model)
        yield await Cache(self._asking, model, self._patience).finding(server.kind)
        yield await self._leaving(server.kind, model).finding()

    async def _reach(self) -> None:
        """Raise why the backend cannot be reached, if it cannot."""
        drop(await self._upstream.request("GET", "/v1/models"))

    async def _said(self, model: str | None, *, offer: bool) -> tools.Said:
        return await tools.ask(
            self._asking, model, self._question, offer=offer, patience=self._patience
        )

    def _leaving(self, kind: str, model: str | None) -> Leaving:
        counts = kind in COUNTERS
        if counts:
            load = counted(self._asking, kind)
        else:
            load = burnt(self._clock, local_port(self._upstream.url))
        return Leaving(self._clock, self._asking, model, load, counts=counts, kind=kind)


def _late(_: object, seconds: float) -> NoReturn:
    raise ApiError(
        504,
        f"The backend takes connections, and did not answer GET /v1/models within {seconds:g} "
        "seconds. Is it loading its model? --patience says how long it may take.",
    )


def local_port(url: str) -> int | None:
    """Return the port that `url` names, if it is one of this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host == "localhost" or _is_loopback(host):
        return parts.port or (443 if parts.scheme == "https" else 80)
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
