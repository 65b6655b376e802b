"""The HTTP application: the protocols' routes, health, readiness, metrics, and what can be known of the server."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import reduce
from operator import or_
from typing import Annotated, Any

from fastapi import Body as BodyParameter
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import Discriminator, Tag
from starlette.exceptions import HTTPException

from xrlhf.serving.gate import Application, Gate
from xrlhf.serving.page import make_page
from xrlhf.serving.protocols import ROUTES, Call, ErrorShape, Route, error_shape
from xrlhf.serving.refusal import Refusal, RefusalKind
from xrlhf.serving.service import RewardService
from xrlhf.version import __version__

__all__ = ["build_app", "build_routes"]

_STATUSES = {
    400: "The request is wrong.",
    401: "The key is missing or wrong.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    422: "The request is wrong, has too many inputs, or a conversation is too long.",
    424: "The model failed.",
    429: "The server is full: come back after the seconds in Retry-After.",
    500: "The model failed.",
    503: "The server is loading its model, ending, or full.",
}
_FEW = 3
"""How many mistakes in a body are named."""


def build_app(service: RewardService, *, api_key: str | None = None) -> Application:
    """The whole application, everything that each request has to pass included.

    Args:
        service: Gives the scores.
        api_key: What clients have to send on every route but health and readiness; None for nothing.
    """
    return Gate(build_routes(service, needs_key=api_key is not None), service.limits, service.metrics, api_key)


def build_routes(service: RewardService, *, needs_key: bool = False) -> FastAPI:
    """The routes alone, with their OpenAPI description at ``/openapi.json``."""
    # No pages of documentation: they would load scripts from elsewhere.
    app = FastAPI(
        title="xrlhf reward server",
        version=__version__,
        summary="Scores of conversations by a reward model.",
        docs_url=None,
        redoc_url=None,
    )
    for route in ROUTES.values():
        _add(app, route, service)
    _add_health(app, service)
    _add_page(app, service, needs_key=needs_key)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _failed)
    return app


def _add(app: FastAPI, route: Route, service: RewardService) -> None:
    description = "\n\n".join(endpoint.handle.__doc__ or "" for endpoint in route.endpoints)
    app.post(
        route.path,
        response_model=reduce(or_, (endpoint.answer for endpoint in route.endpoints)),
        responses={status: {"description": text} for status, text in _STATUSES.items()},
        tags=[route.protocol],
        name=route.path,
        description=description,
    )(_handler(route, service))


def _handler(route: Route, service: RewardService) -> Callable[..., Coroutine[Any, Any, Response]]:
    async def handle(body: Any, request: Request) -> Response:
        endpoint = next(endpoint for endpoint in route.endpoints if isinstance(body, endpoint.body))
        call = Call(service, request.receive, request.state.request_id)
        try:
            content = await endpoint.handle(body, call)
        except Refusal as refusal:
            return _refused(refusal, endpoint.errors)
        return JSONResponse(content, headers=call.headers)

    handle.__annotations__ = {"body": _body_type(route), "request": Request, "return": Response}
    return handle


def _body_type(route: Route) -> Any:
    """What a route takes: one kind of body, or several told apart by their keys."""
    if len(route.endpoints) == 1:
        return Annotated[route.endpoints[0].body, BodyParameter()]
    tagged = [Annotated[endpoint.body, Tag(endpoint.key)] for endpoint in route.endpoints]
    return Annotated[reduce(or_, tagged), Discriminator(_tag_of(route)), BodyParameter()]


def _tag_of(route: Route) -> Callable[[Any], str]:
    def tag(body: Any) -> str:
        # A body that has been read already is one of ours.
        read = next((endpoint for endpoint in route.endpoints if isinstance(body, endpoint.body)), None)
        return (read or route.choose(body)).key

    return tag


def _refused(refusal: Refusal, shape: ErrorShape) -> Response:
    status = shape.status(refusal)
    return JSONResponse(shape.body(refusal, status), status_code=status, headers=refusal.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    """A body that does not have the shape; the message names places and kinds, never what stands there."""
    assert isinstance(error, RequestValidationError)
    places = [".".join(str(part) for part in item["loc"] if part != "body") for item in error.errors()]
    named = [
        f"{place or 'body'}: {item['msg']}" for place, item in list(zip(places, error.errors(), strict=True))[:_FEW]
    ]
    more = len(places) - len(named)
    message = "; ".join(named) + (f"; and {more} more" if more else "")
    refusal = Refusal(RefusalKind.INVALID, message, param=places[0] if places else None)
    return _refused(refusal, error_shape(request.url.path, error.body))


async def _http(request: Request, error: Exception) -> Response:
    """No such route, another method, a body that is no JSON."""
    assert isinstance(error, HTTPException)
    kinds = {404: RefusalKind.NOT_FOUND, 405: RefusalKind.METHOD}
    refusal = Refusal(
        kinds.get(error.status_code, RefusalKind.INVALID),
        str(error.detail),
        status=error.status_code,
        headers=dict(error.headers or {}),
    )
    return _refused(refusal, error_shape(request.url.path))


async def _failed(request: Request, error: Exception) -> Response:
    """What nobody foresaw; it goes on from here to the log."""
    return _refused(Refusal(RefusalKind.FAILED, "internal error"), error_shape(request.url.path))


def _add_page(app: FastAPI, service: RewardService, *, needs_key: bool) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """The page to look at scores, and to label."""
        try:
            # Whoever has no key is not told what the model is called.
            made = make_page("A reward model" if needs_key else service.model.name, needs_key=needs_key)
        except Refusal as refusal:
            return _refused(refusal, error_shape("/"))
        return HTMLResponse(made.html, headers=made.headers)


def _add_health(app: FastAPI, service: RewardService) -> None:
    @app.get("/health", tags=["server"], responses={503: {"description": "Only a new start helps."}})
    async def health() -> Response:
        """Whether the server runs: 503 where only a new start helps."""
        return JSONResponse(
            {"status": "ok" if service.is_healthy else "failed"}, status_code=200 if service.is_healthy else 503
        )

    @app.get("/ready", tags=["server"], responses={503: {"description": "It does not take requests now."}})
    async def ready() -> Response:
        """Whether the server takes requests: 503 while the model is loaded, and once the server is to end."""
        obstacle = service.obstacle
        if obstacle is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse(
            {"status": obstacle}, status_code=503, headers={"Retry-After": str(service.limits.retry_after)}
        )

    @app.get("/metrics", tags=["server"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counts and times in the text format of Prometheus."""
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get(
        "/info",
        tags=["server"],
        responses={status: {"description": _STATUSES[status]} for status in (401, 503)},
    )
    async def info() -> Response:
        """The model, the activation that each protocol starts from, and the limits."""
        try:
            model = service.model
        except Refusal as refusal:
            return _refused(refusal, error_shape("/info"))
        limits = service.limits
        return JSONResponse(
            {
                **model.describe(),
                "activation": {
                    f"{route.path} ({endpoint.key})" if len(route.endpoints) > 1 else route.path: (
                        endpoint.activation or model.activation
                    )
                    for route in ROUTES.values()
                    for endpoint in route.endpoints
                },
                "truncation": "on request only",
                "limits": {
                    "token_budget": model.token_budget,
                    "max_queue": limits.max_queue,
                    "max_inputs": limits.max_inputs,
                    "max_body": limits.max_body,
                    "overload_status": limits.overload_status,
                },
            }
        )
