"""The application: routes, errors and life cycle over one `Service`."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import logging
from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from comgrad.errors import ComgradError
from comgrad.service.api import people, questions, uploads, vectors
from comgrad.service.api import results as r
from comgrad.service.api.answers import REFUSED
from comgrad.service.api.results import sends
from comgrad.service.auth.http import Who, principal
from comgrad.service.core import Service, service_of
from comgrad.service.errors import Forbidden, TooMany, outward, status_of
from comgrad.service.settings import Settings
from comgrad.service.web.answers import Json, JsonRoute
from comgrad.service.web.guard import Guard
from comgrad.service.web.metrics import Metrics
from comgrad.workflows.registry import Registry

log = logging.getLogger("comgrad.service")
API = "/api/v1"
THREADS = 100  # requests that wait for the database or for their turn to compute


def create_app(settings: Settings, *, registry: Registry | None = None) -> FastAPI:
    """The application; its service starts and stops with it.

    Raises:
        StorageError: the registry or the database cannot be opened.
    """
    service = Service(settings, registry)

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        await run_in_threadpool(service.start)
        try:
            yield
        finally:
            await run_in_threadpool(service.stop)

    app = FastAPI(
        title="ComGrad",
        summary="Share, search and compare task vectors, and start ahead.",
        version=_version(),
        openapi_url=f"{API}/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=life,
        redirect_slashes=False,
        default_response_class=Json,
    )
    app.state.service = service
    app.state.metrics = Metrics(service.jobs.counts, service.scopes.size)
    app.state.render_error = None
    app.add_middleware(Guard, settings=settings, metrics=lambda: app.state.metrics)
    _errors(app)
    app.include_router(_site())
    for router in (people.router, vectors.router, questions.router, uploads.router, _about()):
        app.include_router(router, prefix=API, responses=REFUSED)
    if settings.pages:
        from comgrad.service import pages

        app.include_router(pages.router())
        app.mount("/static", pages.static(), name="static")
        app.state.render_error = pages.render_error
    return app


def _version() -> str:
    try:
        return version("comgrad")
    except PackageNotFoundError:
        return "0"


def _site() -> APIRouter:
    """What an operator's programs ask."""
    router = APIRouter(tags=["site"], default_response_class=Json, route_class=JsonRoute)

    @router.get("/healthz", **sends(r.Health))
    async def health() -> dict[str, Any]:
        """Whether the process answers."""
        return {"ok": True}

    @router.get(
        "/readyz",
        response_model=None,
        responses={200: {"model": r.Ready}, 503: {"model": r.Ready, "description": "Not yet"}},
    )
    def ready(request: Request) -> Response:
        """Whether it can do its work: 503 until then."""
        parts = service_of(request).ready()
        return Json({"ok": all(parts.values()), "parts": parts}, 200 if all(parts.values()) else 503)

    @router.get("/metrics", response_class=PlainTextResponse, responses={403: {"description": "Refused"}})
    def metrics(request: Request) -> Response:
        """Figures for Prometheus; from this machine, or with the token that the settings name."""
        token = service_of(request).settings.metrics_token
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token is not None:
            allowed = hmac.compare_digest(given.encode(), token.encode())
        else:
            allowed = _is_loopback(request.scope.get("comgrad.client", ""))
        if not allowed:
            raise Forbidden("the metrics", "they are for the site's own machines", "send the metrics token")
        return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _about() -> APIRouter:
    router = APIRouter(tags=["site"], default_response_class=Json, route_class=JsonRoute)

    @router.get("/service", **sends(r.About))
    def about(request: Request, who: Who) -> dict[str, Any]:
        """What this service is and what it takes."""
        service = service_of(request)
        s = service.settings
        limits = {"upload_bytes": s.max_upload_bytes, "chunk_bytes": s.max_chunk_bytes, "vectors": s.max_vectors}
        return {
            "name": "comgrad",
            "version": _version(),
            "api": 1,
            "first_start": service.accounts.needs_first_start(),
            "open_sign_up": s.open_sign_up,
            "signed_in": who.handle or None,
            "limits": limits,
        }

    return router


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _errors(app: FastAPI) -> None:
    """Every error as JSON in three parts; on pages as the pages show it."""

    def answer(request: Request, error: ComgradError, status: int) -> Response:
        request.app.state.metrics.refused.labels(error.code).inc()
        headers = {"Retry-After": str(int(error.seconds) + 1)} if isinstance(error, TooMany) else {}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        show = request.app.state.render_error
        if show is not None and not request.url.path.startswith("/api/"):
            response: Response = show(request, error, status)
            response.headers.update({k: v for k, v in headers.items() if k != "WWW-Authenticate"})
            return response
        return Json({"error": error.as_dict()}, status, headers)

    @app.exception_handler(ComgradError)
    async def refused(request: Request, error: ComgradError) -> Response:
        status = status_of(error)
        if status >= 500:
            log.error("storage", extra={"code": error.code, "why": str(error)})
        return answer(request, outward(error), status)

    @app.exception_handler(RequestValidationError)
    async def unreadable(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()[0] if error.errors() else {"loc": ("body",), "msg": "it cannot be read"}
        place = ".".join(str(p) for p in found["loc"])[:100]
        why = str(found["msg"])[:300]
        return answer(
            request, ComgradError(f"'{place}' of the request", why, "see the API's description", code="bad-value"), 422
        )

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, ComgradError):  # a body that was cut off while it was read
            return answer(request, error.__cause__, status_of(error.__cause__))
        words = {
            404: ("not-found", "there is nothing at this address"),
            405: ("method", "this address takes other methods"),
        }
        code, why = words.get(error.status_code, ("http", str(error.detail)[:200]))
        what, remedy = "the request", "see the API's description"
        if not request.url.path.startswith("/api/") and error.status_code in words:
            with contextlib.suppress(ComgradError):
                request.state.who = await principal(request)  # no route was reached that asks
            what, remedy = f"'{request.url.path[:100]}'", "check the address, search the catalogue, or start over"
        made = answer(request, ComgradError(what, why, remedy, code=code), error.status_code)
        made.headers.update(error.headers or {})
        return made
