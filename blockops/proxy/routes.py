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

from dataclasses import replace
from functools import partial
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from twisted.web.error import UnsupportedMethod
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from blockops.errors import ApiError
from blockops.proxy.endpoints.chat import ChatEndpoint
from blockops.proxy.endpoints.completions import CompletionsEndpoint
from blockops.proxy.endpoints.health import HealthEndpoints
from blockops.proxy.endpoints.models import ModelsEndpoint
from blockops.proxy.endpoints.passthrough import PassthroughEndpoint
from blockops.proxy.exchange import Exchange
from blockops.proxy.in_flight import InFlightRequests, Route
from blockops.server.access.cors import PreflightResponse
from blockops.server.request import ClientRequest

API_PREFIX = b"/v1/"
CHAT = b"/v1/chat/completions"
COMPLETIONS = b"/v1/completions"
MODELS = b"/v1/models"
MODEL_PREFIX = b"/v1/models/"

READ_METHODS = ("GET", "HEAD")
ALL_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

#: Further routes whose JSON bodies name a model. They are read if models have aliases.
MODEL_ROUTES = tuple(
    b"/v1/" + name
    for name in (
        b"embeddings rerank score classify moderations responses messages messages/count_tokens "
        b"images/generations audio/speech"
    ).split()
)


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
        self, in_flight: InFlightRequests, health: HealthEndpoints, *, has_metrics: bool = True
    ) -> None:
        super().__init__()
        self._in_flight = in_flight
        self._routes = {
            b"/health": Route(
                health.health, "health", READ_METHODS, is_public=True, is_logged=False
            ),
            b"/ready": Route(health.ready, "ready", READ_METHODS, is_logged=False),
        }
        if has_metrics:
            self._routes[b"/metrics"] = Route(
                health.render_metrics, "metrics", READ_METHODS, is_logged=False
            )

    def match(self, method: bytes, target: bytes) -> Route:
        """
        Return the route of a request; it responds with an error if there is no such endpoint.

        :param target: the path, which is percent-encoded, and the query
        """
        raw_path, name = target.partition(b"?")[0], method.decode("latin-1")
        path = unquote_to_bytes(raw_path)
        route = None
        # The backend might read an encoded prefix in another way.
        if raw_path.startswith(API_PREFIX if path.startswith(API_PREFIX) else b"/"):
            route = self._routes.get(path) or self._find_backend_route(path, name)
        if route is None:
            return Route(self._not_found)
        if name not in route.methods:
            not_allowed = partial(self._not_allowed, allowed=", ".join(route.methods))
            return Route(not_allowed, is_public=route.is_public)
        # A percent-encoded path needs a key.
        return replace(route, is_public=False) if route.is_public and b"%" in raw_path else route

    def _find_backend_route(self, path: bytes, method: str) -> Route | None:
        """Return the route of a path that is not in the table, or None."""
        return None

    async def _not_found(self, exchange: Exchange) -> None:
        path = exchange.request.path.decode("latin-1")
        message = f"There is nothing at {path}. {self.not_found_hint}"
        raise ApiError(404, message, code="unknown_route")

    async def _not_allowed(self, exchange: Exchange, allowed: str) -> None:
        request = exchange.request
        path, method = request.path.decode("latin-1"), request.method.decode("latin-1")
        request.responseHeaders.setRawHeaders("Allow", [allowed])
        message = f"{path} does not support {method}. Send {allowed}."
        raise ApiError(405, message, code="method_not_allowed")

    def render(self, request: Any) -> int:
        try:
            return cast("int", super().render(request))
        except UnsupportedMethod:
            return self.render_POST(request)  # its route responds with an error

    def render_POST(self, request: ClientRequest) -> int:
        """Start the handler of the request's route, or send the response of the access control."""
        route, early_response = cast("Route", request.route), request.early_response
        if early_response is not None:
            route = Route(_send_early_response, is_logged=isinstance(early_response, ApiError))
        self._in_flight.start(request, route)
        return NOT_DONE_YET

    render_GET = render_HEAD = render_PUT = render_PATCH = render_POST
    render_DELETE = render_OPTIONS = render_POST


class ApiResource(StatusResource):
    """
    The resource for all paths of the API's address: the API, and the state of blockops.

    :param has_metrics: `/metrics` is served here
    :param has_aliases: bodies of `MODEL_ROUTES` are read, too
    """

    not_found_hint = (
        "The API is under /v1/, for example /v1/chat/completions; /health and /ready report the "
        "state of blockops."
    )

    def __init__(
        self,
        in_flight: InFlightRequests,
        health: HealthEndpoints,
        *,
        chat: ChatEndpoint,
        completions: CompletionsEndpoint,
        models: ModelsEndpoint,
        passthrough: PassthroughEndpoint,
        has_metrics: bool = True,
        has_aliases: bool = False,
    ) -> None:
        super().__init__(in_flight, health, has_metrics=has_metrics)
        self._models = models
        self._passthrough = Route(passthrough.pass_through, "relayed", ALL_METHODS)
        if has_aliases:
            buffered = replace(self._passthrough, streams_upload=False)
            self._routes |= dict.fromkeys(MODEL_ROUTES, buffered)
        self._routes |= {
            CHAT: Route(chat.chat, "chat", ("POST",), streams_upload=False),
            COMPLETIONS: Route(
                completions.complete, "completions", ("POST",), streams_upload=False
            ),
        }

    def _find_backend_route(self, path: bytes, method: str) -> Route | None:
        if not path.startswith(API_PREFIX) or _escapes_prefix(path):
            return None
        if method in READ_METHODS:
            if path == MODELS:
                return Route(self._models.list, "models", READ_METHODS)
            if path.startswith(MODEL_PREFIX) and path != MODEL_PREFIX:
                name = path.removeprefix(MODEL_PREFIX).decode("utf-8", "replace")
                return Route(partial(self._models.retrieve, name=name), "model", READ_METHODS)
        return self._passthrough


async def _send_early_response(exchange: Exchange) -> None:
    response = exchange.request.early_response
    if not isinstance(response, PreflightResponse):
        raise cast("ApiError", response)
    exchange.response.begin(204, response.headers)
    exchange.response.finish()


def _escapes_prefix(path: bytes) -> bool:
    """
    Return True if a backend might read `path`, which is decoded, as one outside of `/v1`.

    Some backends decode twice, and some ignore the part of a name after a semicolon.
    """
    names = (path + b"/" + unquote_to_bytes(path)).replace(b"\\", b"/").split(b"/")
    return any(name.partition(b";")[0].strip(b" \0") in {b".", b".."} for name in names)
