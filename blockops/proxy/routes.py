"""The tree of resources: which request goes where."""

# twisted.web.resource has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import ClassVar, cast
from urllib.parse import unquote_to_bytes

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from blockops.errors import ApiError
from blockops.proxy.chat import Answering
from blockops.proxy.in_flight import Gateway, Work
from blockops.server.request import IncomingRequest

BELOW = b"/v1/"
CHAT = b"/v1/chat/completions"
COMPLETIONS = b"/v1/completions"
MODELS = b"/v1/models/"

#: Other routes whose bodies are JSON that names a model: read where models have short names.
NAMING = frozenset(
    b"/v1/" + name
    for name in (
        b"embeddings",
        b"rerank",
        b"score",
        b"classify",
        b"moderations",
        b"responses",
        b"messages",
        b"messages/count_tokens",
        b"images/generations",
        b"audio/speech",
    )
)


def streams_up(target: bytes, read: Collection[bytes] = ()) -> bool:
    """
    Say whether nothing here waits for a body sent to `target`.

    It goes to the backend as it comes, or to nobody: where there is nothing that reads it, such as
    `/health`, which needs no key, it must not take the room of those who have one.

    :param read: paths of which the bodies are read, besides those of chats and completions
    """
    path = target.partition(b"?")[0]
    whole = unquote_to_bytes(path)
    return not path.startswith(BELOW) or (whole not in {CHAT, COMPLETIONS} and whole not in read)


class Route(Resource):
    """
    A resource whose refusals have OpenAI's shape, and are written down as all traffic is.

    :cvar methods: those that there is a `render_` for
    """

    isLeaf = True
    methods: ClassVar[tuple[str, ...]] = ()

    def __init__(self, gateway: Gateway) -> None:
        super().__init__()
        self._gateway = gateway

    def getChild(self, path: bytes, request: Request) -> Route:
        return Nowhere(self._gateway)

    def render(self, request: Request) -> int:
        incoming = cast("IncomingRequest", request)
        if incoming.instead is not None:
            self._gateway.serve(incoming, incoming.instead)
            return NOT_DONE_YET
        method = request.method.decode("latin-1")
        if method in self.methods:
            render: Callable[[Request], int] = getattr(self, f"render_{method}")
            return render(request)
        self._gateway.refuse(incoming, self.refusal(request, method))
        return NOT_DONE_YET

    def refusal(self, request: Request, method: str) -> ApiError:
        """Return what is said to a method that is not among `methods`."""
        allowed = ", ".join(self.methods)
        request.setHeader("Allow", allowed)
        path = request.path.decode("latin-1")
        return ApiError(405, f"{path} does not take {method}: send {allowed}.", code="method_not_allowed")


class Nowhere(Route):
    """A path that leads to nothing."""

    def refusal(self, request: Request, method: str) -> ApiError:
        return ApiError(
            404,
            f"There is nothing at {request.path.decode('latin-1')}. The API is below /v1/, as in "
            "/v1/chat/completions; /health and /ready tell how blockops is.",
            code="unknown_route",
        )


class Served(Route):
    """
    A route whose requests are worked at.

    :param name: what `/metrics` calls it
    """

    def __init__(self, gateway: Gateway, work: Work, name: str) -> None:
        super().__init__(gateway)
        self._work = work
        self._name = name

    def render_POST(self, request: Request) -> int:
        self._gateway.serve(cast("IncomingRequest", request), self._work, self._name)
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
    """All that is under `/v1`."""

    isLeaf = False

    def __init__(self, gateway: Gateway, answering: Answering) -> None:
        super().__init__(gateway)
        self._answering = answering
        self._chat = Posted(gateway, answering.chat, "chat")
        self._completion = Posted(gateway, answering.completion, "completions")
        self._models = Relayed(gateway, answering.models.all, "models")
        self._relayed = Relayed(gateway, answering.pass_on, "relayed")

    def getChild(self, path: bytes, request: Request) -> Route:
        whole = unquote_to_bytes(request.path)
        if not request.path.startswith(BELOW) or (whole != CHAT and _climbs(whole)):
            return Nowhere(self._gateway)
        if whole == CHAT:
            return self._chat
        if whole == COMPLETIONS:
            return self._completion
        if request.method in {b"GET", b"HEAD"} and whole.startswith(MODELS) and whole != MODELS:
            name = whole[len(MODELS) :].decode("utf-8", "replace")
            models = self._answering.models
            return Relayed(self._gateway, lambda exchange: models.one(exchange, name), "model")
        if request.method in {b"GET", b"HEAD"} and whole == MODELS[:-1]:
            return self._models
        return self._relayed


class Root(Nowhere):
    """`/`, and whatever has no child of its own."""

    isLeaf = False


class Status(Root):
    """The root of the port that tells how blockops is, and nothing else."""

    def getChild(self, path: bytes, request: Request) -> Route:
        return self

    def refusal(self, request: Request, method: str) -> ApiError:
        return ApiError(
            404,
            f"There is nothing at {request.path.decode('latin-1')}. This port has /metrics, /health"
            " and /ready; the API is on another one.",
            code="unknown_route",
        )


def make_root(gateway: Gateway, answering: Answering, metrics: Work | None) -> Resource:
    """
    Return the root of the tree.

    :param metrics: answers `/metrics`; None if that is somewhere else
    """
    root = Root(gateway)
    root.putChild(b"v1", Api(gateway, answering))
    _tell(root, gateway, answering)
    if metrics is not None:
        root.putChild(b"metrics", Asked(gateway, metrics, "metrics"))
    return root


def make_status_root(gateway: Gateway, answering: Answering, metrics: Work) -> Resource:
    """Return the root of the tree of `--admin-listen`."""
    root = Status(gateway)
    _tell(root, gateway, answering)
    root.putChild(b"metrics", Asked(gateway, metrics, "metrics"))
    return root


def _tell(root: Resource, gateway: Gateway, answering: Answering) -> None:
    root.putChild(b"health", Asked(gateway, answering.health, "health"))
    root.putChild(b"ready", Asked(gateway, answering.ready, "ready"))


def _climbs(path: bytes) -> bool:
    """
    Say whether a backend could take `path`, decoded, for one that is not under `/v1`.

    Some decode twice, and some take what follows a semicolon for no part of a name.
    """
    steps = (path + b"/" + unquote_to_bytes(path)).replace(b"\\", b"/").split(b"/")
    return any(step.partition(b";")[0].strip(b" \0") in {b".", b".."} for step in steps)
