"""The ASGI application: routes, and the layers around them.

    Access   a record and a log line for every request, errors as OpenAI's object, headers
    Guard    sizes, Host, Origin, keys, rates, the body
    Router   routes -> completions, compare -> running -> the backend

`make_app` needs no Ray: the backend is a replica itself, or what calls one through a handle.
"""

import functools
import pathlib
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from raystyle.config import ServeConfig
from raystyle.serving import openapi
from raystyle.serving.access import Access, as_request_error, record_of
from raystyle.serving.catalogue import PROBE_TIMEOUT_S, SCRAPE_MAX_AGE_S, Backend, Catalogue
from raystyle.serving.compare import compare
from raystyle.serving.completions import chat, completions
from raystyle.serving.contract import BASE, Card, Listing
from raystyle.serving.errors import RequestError
from raystyle.serving.guard import Guard
from raystyle.serving.keys import Keys
from raystyle.serving.limits import Admission, Rates, capacity
from raystyle.serving.metrics import Metrics
from raystyle.serving.running import Service

PLAYGROUND = pathlib.Path(__file__).parent / "playground"
MEDIA_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}


class Application:
    """The ASGI application, and how to end it."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    async def drain(self) -> bool:
        """Refuses new work, waits up to `drain_timeout_s` for what runs; False where some of it still does."""
        return await self._service.admission.drain(self._service.config.drain_timeout_s)


def make_app(config: ServeConfig, backend: Backend, keys: Keys, admin_keys: Keys) -> Application:
    """The application for a backend. Nothing of it is shared with another one."""
    rates, metrics = Rates(config), Metrics()
    service = Service(config, backend, Catalogue(backend), Admission(capacity(config)), rates, metrics)
    # Router raises what it does not know, for `Access` to tell, where it is part of an application.
    router = Router(_routes(service), redirect_slashes=False)

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = router
        await router(scope, receive, send)

    return Application(Access(Guard(routed, config, keys, admin_keys, rates), metrics), service)


def _routes(service: Service) -> list[Route]:
    document = JSONResponse(openapi.document())
    page = _page()

    def route(method: str, path: str, handler: Callable[[Service, Request], Awaitable[ASGIApp]]) -> Route:
        return Route(path, functools.partial(handler, service), methods=[method])

    async def openapi_json(service: Service, request: Request) -> ASGIApp:
        return document

    async def file(service: Service, request: Request) -> ASGIApp:
        found = page.get(request.path_params.get("name", "index.html"))
        if found is None:
            raise RequestError("not_found", "the page has no such file")
        return found

    return [
        route("GET", "/healthz", _healthz),
        route("GET", "/readyz", _readyz),
        route("GET", "/metrics", _metrics),
        route("GET", "/openapi.json", openapi_json),
        route("GET", "/", file),
        route("GET", "/static/{name}", file),
        route("GET", "/v1/models", _models),
        route("GET", "/v1/models/{name:path}", _model),
        route("POST", "/v1/completions", completions),
        route("POST", "/v1/chat/completions", chat),
        route("POST", "/v1/compare", compare),
        route("POST", "/admin/refresh", _refresh),
    ]


def _page() -> dict[str, Response]:
    """The page's files by name. Read once: no path of a request ever becomes a path of this machine."""
    return {
        path.name: Response(
            path.read_bytes(), media_type=MEDIA_TYPES[path.suffix], headers={"cache-control": "no-cache"}
        )
        for path in sorted(PLAYGROUND.glob("*"))
        if path.suffix in MEDIA_TYPES
    }


async def _healthz(service: Service, request: Request) -> ASGIApp:
    return JSONResponse({"status": "ok"})


async def _readyz(service: Service, request: Request) -> ASGIApp:
    if service.admission.is_draining:
        raise RequestError("unavailable", "the server is about to stop")
    try:
        await service.catalogue.listing(timeout_s=PROBE_TIMEOUT_S)
    except Exception as error:
        told = as_request_error(error, record_of(request.scope).id)
        raise RequestError("unavailable", f"the model does not answer yet: {told.message}") from error
    return JSONResponse({"status": "ready"})


async def _metrics(service: Service, request: Request) -> ASGIApp:
    try:
        listing = await service.catalogue.listing(SCRAPE_MAX_AGE_S, PROBE_TIMEOUT_S)
    except Exception as error:
        as_request_error(error, record_of(request.scope).id)
        listing = None
    return Response(service.metrics.text(listing), media_type="text/plain; version=0.0.4")


async def _models(service: Service, request: Request) -> ASGIApp:
    return JSONResponse(_told_listing(await service.catalogue.listing()))


async def _model(service: Service, request: Request) -> ASGIApp:
    card, _ = await service.catalogue.find(request.path_params["name"])
    return JSONResponse(_told_card(card))


async def _refresh(service: Service, request: Request) -> ASGIApp:
    return JSONResponse(_told_listing(service.catalogue.put(await service.backend.refresh())))


def _told_listing(listing: Listing) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [_told_card(card) for card in listing.cards if not card.refused],
        "refused": [{"id": card.name, "reason": card.refused} for card in listing.cards if card.refused],
        "engine": listing.engine,
        "max_length": listing.max_length,
        "can_scale": listing.can_scale,
        "has_chat_template": listing.has_chat_template,
    }


def _told_card(card: Card) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "raystyle",
        "parent": None if card.kind == BASE else BASE,
        "kind": card.kind,
        "digest": card.digest,
        "step": card.step,
        "effect": card.effect,
        "base_verified": card.base_verified,
        "markers": list(card.markers),
    }
