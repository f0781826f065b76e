"""Runs all examinations of a backend, in the order of the report."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NoReturn
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from blockops.cli.doctor import tools
from blockops.cli.doctor.cache import PromptCacheTest, token_finding
from blockops.cli.doctor.disconnect import (
    RUNNING_REQUESTS,
    DisconnectTest,
    make_cpu_meter,
    make_request_meter,
)
from blockops.cli.doctor.findings import Finding
from blockops.cli.doctor.identity import identify
from blockops.cli.doctor.streams import stream_finding
from blockops.errors import ApiError
from blockops.net.addresses import parse_ip
from blockops.upstream.body import discard
from blockops.upstream.client import BackendClient
from blockops.upstream.probe import BackendProbe
from blockops.upstream.tokenizer import Tokenizer


class Diagnosis:
    """
    Examines one backend.

    :param model: the model to use; None for the first that the backend lists
    :param question: the question to the model with a tool on offer
    :param response_timeout: seconds that one response may take
    """

    def __init__(
        self,
        clock: IReactorTime,
        client: BackendClient,
        *,
        model: str | None = None,
        question: str = tools.QUESTION,
        response_timeout: float = 120.0,
    ) -> None:
        self._clock = clock
        self._client = client
        self._probe = BackendProbe(clock, client)
        self._model = model
        self._question = question
        self._response_timeout = response_timeout

    async def findings(self) -> AsyncIterator[Finding]:
        """
        Yield the findings, each as soon as it is known.

        :raises ApiError: the backend is unreachable, too slow, or rejects a plain question
        """
        reach = Deferred.fromCoroutine(self._client.request("GET", "/v1/models"))
        discard(await reach.addTimeout(self._response_timeout, self._clock, _raise_timeout))
        server = await identify(self._probe)
        for finding in server.findings():
            yield finding
        model = self._model or next(iter(server.models), None)
        without_tool = await self._ask_model(model, offer_tool=False)
        if without_tool.error is not None:
            raise ApiError(502, f"The backend rejects a plain question: {without_tool.error}")
        yield await stream_finding(self._probe, model, self._response_timeout)
        with_tool = await self._ask_model(model, offer_tool=True)
        for finding in tools.findings(without_tool, with_tool, model):
            yield finding
        yield await token_finding(Tokenizer(self._clock, self._probe), model)
        yield await PromptCacheTest(self._probe, model, self._response_timeout).finding(server.kind)
        yield await self._disconnect_test(server.kind, model).finding()

    async def _ask_model(self, model: str | None, *, offer_tool: bool) -> tools.ToolAnswer:
        return await tools.ask_model(
            self._probe,
            model,
            self._question,
            offer_tool=offer_tool,
            response_timeout=self._response_timeout,
        )

    def _disconnect_test(self, kind: str, model: str | None) -> DisconnectTest:
        is_reported = kind in RUNNING_REQUESTS
        if is_reported:
            load = make_request_meter(self._probe, kind)
        else:
            load = make_cpu_meter(self._clock, local_port(self._client.url))
        return DisconnectTest(
            self._clock, self._probe, model, load, is_reported=is_reported, kind=kind
        )


def _raise_timeout(_: object, seconds: float) -> NoReturn:
    raise ApiError(
        504,
        "The backend accepts connections, but did not respond to GET /v1/models within "
        f"{seconds:g} seconds. If it is still loading its model, wait, or raise --patience.",
    )


def local_port(url: str) -> int | None:
    """Return the port of `url` if its host is this machine, or None."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    ip = parse_ip(host)
    if host == "localhost" or (ip is not None and ip.is_loopback):
        return parts.port or (443 if parts.scheme == "https" else 80)
    return None
