"""
The routes: path and method of a request, and the endpoint that handles it.

| path | methods | endpoint |
| --- | --- | --- |
| `/v1/chat/completions` | POST | `chat` |
| `/v1/completions` | POST | `completions` |
| `/v1/models` | GET, HEAD | `models.list` |
| `/v1/models/NAME` | GET, HEAD | `models.retrieve` |
| any other path under `/v1/`, and other methods of `/v1/models` | `ALL_METHODS` | `passthrough` |
| `/health`, `/ready`, `/metrics` | GET, HEAD | `health` |

The site of `--admin-listen` has the last row only; `/metrics` is then missing on the other one. Any
other path gets a 404, any other method a 405. A target without a leading slash, such as `*`, is no
path of the table.
"""

# twisted.web.resource has no annotations yet:
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast
from urllib.parse import unquote_to_bytes

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from blockops.errors import ApiError
from blockops.proxy.endpoints.chat import ChatEndpoint
from blockops.proxy.endpoints.completions import CompletionsEndpoint
from blockops.proxy.endpoints.health import HealthEndpoints
from blockops.proxy.endpoints.models import ModelsEndpoint
from blockops.proxy.endpoints.passthrough import PassthroughEndpoint
from blockops.proxy.in_flight import Handler, InFlightRequests, early_response_handler
from blockops.server.request import ClientRequest

API_PREFIX = b"/v1/"
CHAT = b"/v1/chat/completions"
COMPLETIONS = b"/v1/completions"
MODELS = b"/v1/models"
MODEL_PREFIX = b"/v1/models/"

READ_METHODS = ("GET", "HEAD")
ALL_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

#: Further routes whose JSON bodies name a model. They are read if models have aliases.
MODEL_ROUTES = frozenset(
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


def streams_upload(target: bytes, buffered_paths: Collection[bytes] = ()) -> bool:
    """
    Return True if the body of a request for `target` is not buffered.

    Such a body is forwarded as it arrives, or discarded. A route that reads no body, such as
    `/health`, which needs no API key, must not use up the body budget of clients with a key.

    :param buffered_paths: paths whose bodies are buffered, besides those of chats and completions
    """
    raw_path = target.partition(b"?")[0]
    path = unquote_to_bytes(raw_path)
    is_buffered = path in {CHAT, COMPLETIONS} or path in buffered_paths
    return not (raw_path.startswith(API_PREFIX) and is_buffered)


@dataclass(frozen=True)
class Endpoints:
    """The objects that serve the table of routes."""

    chat: ChatEndpoint
    completions: CompletionsEndpoint
    models: ModelsEndpoint
    passthrough: PassthroughEndpoint
    health: HealthEndpoints


class Route(NamedTuple):
    """
    An entry of the table.

    :param methods: those that are allowed
    :param label: the route's name in the metrics
    """

    handler: Handler
    methods: tuple[str, ...]
    label: str


class StatusResource(Resource):
    """
    The resource for all paths of `--admin-listen`.

    Error responses have the shape of the OpenAI API, and are logged like all traffic.

    :param has_metrics: `/metrics` is served here
    """

    isLeaf = True
    not_found_hint = (
        "This address serves only /metrics, /health and /ready; the API has another address."
    )

    def __init__(
        self, in_flight: InFlightRequests, endpoints: Endpoints, *, has_metrics: bool = True
    ) -> None:
        super().__init__()
        self._in_flight = in_flight
        health = endpoints.health
        self._routes = {
            b"/health": Route(health.health, READ_METHODS, "health"),
            b"/ready": Route(health.ready, READ_METHODS, "ready"),
        }
        if has_metrics:
            self._routes[b"/metrics"] = Route(health.metrics, READ_METHODS, "metrics")

    def find_route(self, raw_path: bytes, method: bytes) -> Route | None:
        """Return the route for a path that is still percent-encoded, or None."""
        return self._routes.get(unquote_to_bytes(raw_path)) if raw_path.startswith(b"/") else None

    def render(self, request: Request) -> int:
        client_request = cast("ClientRequest", request)
        early_response = client_request.early_response
        if early_response is not None:
            self._in_flight.start(client_request, early_response_handler(early_response))
            return NOT_DONE_YET
        route = self.find_route(request.path, request.method)
        method = request.method.decode("latin-1")
        path = request.path.decode("latin-1")
        if route is None:
            error = ApiError(
                404, f"There is nothing at {path}. {self.not_found_hint}", code="unknown_route"
            )
            self._in_flight.reject(client_request, error)
        elif method not in route.methods:
            allowed = ", ".join(route.methods)
            request.setHeader("Allow", allowed)
            error = ApiError(
                405,
                f"{path} does not support {method}. Send {allowed}.",
                code="method_not_allowed",
            )
            self._in_flight.reject(client_request, error)
        else:
            self._in_flight.start(client_request, route.handler, route.label)
        return NOT_DONE_YET


class ApiResource(StatusResource):
    """
    The resource for all paths of the API's address: the API, and the state of blockops.

    :param has_metrics: `/metrics` is served here
    """

    not_found_hint = (
        "The API is under /v1/, for example /v1/chat/completions; /health and /ready report the "
        "state of blockops."
    )

    def __init__(
        self, in_flight: InFlightRequests, endpoints: Endpoints, *, has_metrics: bool = True
    ) -> None:
        super().__init__(in_flight, endpoints, has_metrics=has_metrics)
        self._routes[CHAT] = Route(endpoints.chat.handle, ("POST",), "chat")
        self._routes[COMPLETIONS] = Route(endpoints.completions.handle, ("POST",), "completions")
        self._models = endpoints.models
        self._list_models = Route(endpoints.models.list, READ_METHODS, "models")
        self._passthrough = Route(endpoints.passthrough.handle, ALL_METHODS, "relayed")

    def find_route(self, raw_path: bytes, method: bytes) -> Route | None:
        path = unquote_to_bytes(raw_path)
        if path.startswith(API_PREFIX) and not raw_path.startswith(API_PREFIX):
            return None  # the backend might read an encoded prefix in another way
        route = super().find_route(raw_path, method)
        if route is not None or not path.startswith(API_PREFIX) or _escapes_prefix(path):
            return route
        if method.decode("latin-1") in READ_METHODS:
            if path == MODELS:
                return self._list_models
            if path.startswith(MODEL_PREFIX) and path != MODEL_PREFIX:
                name = path.removeprefix(MODEL_PREFIX).decode("utf-8", "replace")
                return Route(partial(self._models.retrieve, name=name), READ_METHODS, "model")
        return self._passthrough


def _escapes_prefix(path: bytes) -> bool:
    """
    Return True if a backend might read `path`, which is decoded, as one outside of `/v1`.

    Some backends decode twice, and some ignore the part of a name after a semicolon.
    """
    names = (path + b"/" + unquote_to_bytes(path)).replace(b"\\", b"/").split(b"/")
    return any(name.partition(b";")[0].strip(b" \0") in {b".", b".."} for name in names)
