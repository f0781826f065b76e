"""Runs all examinations of a backend, in the order of the report."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NoReturn

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from blockops.cli.doctor import tools
from blockops.cli.doctor.cache import cache_finding, token_finding
from blockops.cli.doctor.chat import ChatProbe
from blockops.cli.doctor.disconnect import DisconnectTest
from blockops.cli.doctor.findings import Finding
from blockops.cli.doctor.identity import identify
from blockops.cli.doctor.streams import stream_finding
from blockops.errors import ApiError
from blockops.upstream.body import check_encoding, discard
from blockops.upstream.client import BackendClient
from blockops.upstream.probe import BackendProbe
from blockops.upstream.tokenizer import Tokenizer


async def diagnose(
    clock: IReactorTime,
    client: BackendClient,
    *,
    model: str | None = None,
    question: str = tools.QUESTION,
    response_timeout: float = 120.0,
) -> AsyncIterator[Finding]:
    """
    Examine a backend; yield the findings, each as soon as it is known.

    :param model: None for the first that the backend lists
    :param response_timeout: seconds
    :raises ApiError: the backend is unreachable, too slow, compresses, or rejects a plain question
    """
    reach = Deferred.fromCoroutine(client.request("GET", "/v1/models"))
    response = await reach.addTimeout(response_timeout, clock, _raise_timeout)
    check_encoding(response)
    discard(response)
    probe = BackendProbe(clock, client)
    server = await identify(probe)
    for finding in server.findings():
        yield finding
    model = model or next(iter(server.models), None)
    chat = ChatProbe(probe, model, response_timeout)
    without_tool = await tools.ask_model(chat, question, offer_tool=False)
    if without_tool.error is not None:
        raise ApiError(502, f"The backend rejects a plain question: {without_tool.error}")
    yield await stream_finding(chat)
    with_tool = await tools.ask_model(chat, question, offer_tool=True)
    for finding in tools.findings(without_tool, with_tool, model):
        yield finding
    yield await token_finding(Tokenizer(clock, probe), model)
    yield await cache_finding(chat, server.kind)
    yield await DisconnectTest(clock, chat, server.kind).finding()


def _raise_timeout(_: object, seconds: float) -> NoReturn:
    raise ApiError(
        504,
        "The backend accepts connections, but did not respond to GET /v1/models within "
        f"{seconds:g} seconds. If it is still loading its model, wait, or raise --patience.",
    )
