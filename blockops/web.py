"""The tree of resources: which request goes where."""

# twisted.web.resource has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, cast
from urllib.parse import unquote

import msgspec
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from blockops import __version__
from blockops.answering import Answering
from blockops.gateway import Gateway, Work
from blockops.site import SERVER, IncomingRequest
from blockops.wire.errors import ApiError

CHAT = b"/v1/chat/completions"
COMPLETIONS = b"/v1/completions"
MODELS = b"/v1/models/"


def streams_up(target: bytes) -> bool:
    """Say whether a body sent to `target` goes to the backend as it comes: it is not read here."""
    path = target.partition(b"?")[0]
    return path.startswith(b"/v1/") and path not in {CHAT, COMPLETIONS}


class Route(Resource):
    """
    A resource whose refusals have OpenAI's shape.

    :cvar methods: those that there is a `render_` for
    """

    isLeaf = True
    methods: ClassVar[tuple[str, ...]] = ()

    def getChild(self, path: bytes, request: Request) -> Route:
        return Nowhere()

    def render(self, request: Request) -> bytes | int:
        request.setHeader("Server", SERVER)
        method = request.method.decode("latin-1")
        if method in self.methods:
            render: Callable[[Request], bytes | int] = getattr(self, f"render_{method}")
            return render(request)
        return self.refuse(request, method)

    def refuse(self, request: Request, method: str) -> bytes:
        """Answer a method that is not among `methods`."""
        allowed = ", ".join(self.methods)
        request.setHeader("Allow", allowed)
        path = request.path.decode("latin-1")
        return _told(
            request,
            ApiError(405, f"{path} does not take {method}: send {allowed}.", code="wrong_method"),
        )


class Nowhere(Route):
    """A path that leads to nothing."""

    def refuse(self, request: Request, method: str) -> bytes:
        path = request.path.decode("latin-1")
        return _told(
            request,
            ApiError(
                404,
                f"There is nothing at {path}. The API is below /v1/, as in /v1/chat/completions; "
                "/health and /ready tell how blockops is.",
                code="unknown_route",
            ),
        )


class Served(Route):
    """A route whose requests are worked at."""

    def __init__(self, gateway: Gateway, work: Work) -> None:
        super().__init__()
        self._gateway = gateway
        self._work = work

    def render_POST(self, request: Request) -> int:
        self._gateway.serve(cast("IncomingRequest", request), self._work)
        return NOT_DONE_YET


class Posted(Served):
    """A route for POST alone."""

    methods = ("POST",)


class Asked(Served):
    """A route for GET alone, with nothing below it."""

    isLeaf = False
    methods = ("GET", "HEAD")

    render_GET = render_HEAD = Served.render_POST


class Relayed(Served):
    """A route that takes whatever the backend takes."""

    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

    render_GET = render_HEAD = render_PUT = Served.render_POST
    render_PATCH = render_DELETE = render_OPTIONS = Served.render_POST


class Api(Nowhere):
    """All that is under `/v1`, by the path as the client wrote it."""

    isLeaf = False

    def __init__(self, gateway: Gateway, answering: Answering) -> None:
        super().__init__()
        self._gateway = gateway
        self._answering = answering
        self._chat = Posted(gateway, answering.chat)
        self._completion = Posted(gateway, answering.completion)
        self._relayed = Relayed(gateway, answering.pass_on)

    def getChild(self, path: bytes, request: Request) -> Route:
        whole = request.path
        if _climbs(whole):
            return Nowhere()
        if whole == CHAT:
            return self._chat
        if whole == COMPLETIONS:
            return self._completion
        if request.method == b"GET" and whole.startswith(MODELS) and whole != MODELS:
            name = unquote(whole[len(MODELS) :])
            return Relayed(self._gateway, lambda exchange: self._answering.model(exchange, name))
        return self._relayed


class Health(Route):
    """`/health`: blockops is alive, and how busy."""

    isLeaf = False
    methods = ("GET", "HEAD")

    def __init__(self, vitals: Callable[[], dict[str, object]]) -> None:
        super().__init__()
        self._vitals = vitals

    def render_GET(self, request: Request) -> bytes:
        request.setHeader("Content-Type", "application/json")
        return msgspec.json.encode({"status": "ok", "version": __version__, **self._vitals()})


class Root(Nowhere):
    """`/`, and whatever has no child of its own."""

    isLeaf = False


def make_root(
    gateway: Gateway, answering: Answering, vitals: Callable[[], dict[str, object]]
) -> Resource:
    """
    Return the root of the tree.

    :param vitals: what `/health` tells besides
    """
    root = Root()
    root.putChild(b"v1", Api(gateway, answering))
    root.putChild(b"health", Health(vitals))
    root.putChild(b"ready", Asked(gateway, answering.ready))
    return root


def _climbs(path: bytes) -> bool:
    """Say whether a backend could take `path` for one that is not under `/v1`."""
    return any(part in {".", ".."} for part in unquote(path).replace("\\", "/").split("/"))


def _told(request: Request, error: ApiError) -> bytes:
    request.setResponseCode(error.status)
    request.setHeader("Content-Type", "application/json")
    return error.body()
