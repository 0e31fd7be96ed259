"""The HTTP side: routes, bodies, keys, and answers whole or as server-sent events. An ASGI application of Starlette."""

from __future__ import annotations

import asyncio
import hmac
from pathlib import Path
from typing import Any, AsyncIterator, Collection

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from corpora.strict_json import json_text
from serving.answers import Piece
from serving.errors import ApiError
from serving.metrics import CONTENT_TYPE
from serving.openapi import OPEN_PATHS, document
from serving.service import Exchange, Service

PAGE = Path(__file__).with_name("page.html")
BODY_SECONDS = 30.0  # within which the body of a request must have come
CLOSING_SECONDS = 5.0  # within which a connection that takes no answer must have been closed


class Gone(Exception):
    """The client has hung up."""


def create_application(service: Service, key: str | None = None) -> ASGIApp:
    """The application; with a `key`, requests but those for OPEN_PATHS must bear it."""

    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": _POLICY})

    async def health(request: Request) -> Response:
        status = "ok" if service.open else "failed" if service.error else "draining"
        return JSONResponse({"status": status}, 200 if service.open else 503)

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(service.metrics_text(), media_type=CONTENT_TYPE)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(service)]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != service.name:
            raise ApiError(404, f"This model does not exist; {service.name} is served", "model", "model_not_found")
        return JSONResponse(_model(service))

    async def openapi(request: Request) -> Response:
        return JSONResponse(document(key is not None))

    async def completions(request: Request) -> Response:
        return await complete(service, request)

    application = Starlette(
        routes=[
            Route("/", page),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/openapi.json", openapi),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/completions", completions, methods=["POST"]),
        ],
        exception_handlers={ApiError: _error, HTTPException: _error, Exception: _error},
    )
    paths = {route.path for route in application.routes if isinstance(route, Route)}
    return _Counted(_Guarded(application, key), service, paths)


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": service.started, "owned_by": "local"}


async def _error(request: Request, error: Exception) -> Response:
    return error_response(error)


def error_response(error: Exception) -> Response:
    """In OpenAI's form."""
    headers = {}
    if isinstance(error, HTTPException):  # no such path, another method
        headers = dict(error.headers or {})
        error = ApiError(error.status_code, str(error.detail), code="invalid_request")
    elif not isinstance(error, ApiError):
        error = ApiError(500, "The server failed; its log says why", code="server_failed")
    if error.status == 429:
        headers["Retry-After"] = "1"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413):  # some of the body was not read, so that no further request can follow
        headers["Connection"] = "close"
    return JSONResponse(error.body(), error.status, headers)


async def complete(service: Service, request: Request) -> Response:
    """The answer to POST /v1/completions. Raises ApiError."""
    exchange = Exchange(service)
    body = await read_body(request, service.limits.body)
    await asyncio.get_running_loop().run_in_executor(None, service.prepare, exchange, body)
    service.submit(exchange)
    if exchange.request.stream:
        return EventStream(exchange)
    gone = asyncio.ensure_future(_hung_up(request.receive))
    whole: dict[int, Piece] = {}
    try:
        async for piece in pieces_of(exchange, gone):
            if piece.error is not None:
                raise piece.error
            whole[piece.index] = piece
    except Gone:
        return Response(status_code=499)  # which nobody sees
    finally:
        gone.cancel()
        exchange.cancel()
    record = exchange.record([whole[choice.index].record() for choice in exchange.choices])
    return Response(json_text({**record, "usage": exchange.usage()}), media_type="application/json")


async def read_body(request: Request, most: int) -> bytes:
    """Raises ApiError: no JSON by its type, too large, or not there in time."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which a page of another site cannot send unasked
        raise ApiError(415, "The body must be JSON: send it with the header Content-Type: application/json")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or len(length) > 18 or int(length) > most:
        raise ApiError(413, f"The body is longer than {most} bytes", code="body_too_large")
    parts: list[bytes] = []

    async def read() -> None:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise ApiError(413, f"The body is longer than {most} bytes", code="body_too_large")
            parts.append(part)

    try:
        await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise ApiError(408, f"The body did not come within {BODY_SECONDS:g} seconds") from None
    except ClientDisconnect:
        raise ApiError(400, "The client has hung up") from None
    return b"".join(parts)


async def _hung_up(receive: Receive) -> None:
    """Returns when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def pieces_of(exchange: Exchange, gone: asyncio.Future[None]) -> AsyncIterator[Piece]:
    """Each piece, until every text has ended. Raises Gone if the client hangs up."""
    gone.add_done_callback(lambda _: exchange.pieces.put_nowait(None))
    left = len(exchange.choices)
    while left:
        found = await exchange.pieces.get()
        if found is None:
            raise Gone
        left -= found.finish is not None
        yield found


class EventStream(Response):
    """Pieces as server-sent events, as they come; a client that hangs up frees its slots."""

    media_type = "text/event-stream"

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_hung_up(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in self._events(gone):
                part = b"data: " + event.encode("utf-8") + b"\n\n"
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (Gone, OSError):
            pass
        finally:
            gone.cancel()
            self._exchange.cancel()

    async def _events(self, gone: asyncio.Future[None]) -> AsyncIterator[str]:
        exchange = self._exchange
        usage = {"usage": None} if exchange.request.include_usage else {}
        async for piece in pieces_of(exchange, gone):
            if piece.error is not None:
                yield json_text(piece.error.body())
                return
            yield json_text({**exchange.record([piece.record()]), **usage})
        if usage:
            yield json_text({**exchange.record([]), "usage": exchange.usage()})
        yield "[DONE]"


class _Guarded:
    """Asks for the key, if there is one."""

    def __init__(self, application: ASGIApp, key: str | None) -> None:
        self._application, self._expected = application, None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._expected is not None and scope["path"] not in OPEN_PATHS:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                message = "Incorrect API key provided; send it with the header Authorization: Bearer KEY"
                await error_response(ApiError(401, message, code="invalid_api_key"))(scope, receive, send)
                return
        await self._application(scope, receive, send)


class _Unsent(Exception):
    """The HTTP server takes no answer."""


class _Counted:
    """Counts answers by path and status; those that are none of `paths` are one."""

    def __init__(self, application: ASGIApp, service: Service, paths: Collection[str]) -> None:
        self._application, self._service, self._paths = application, service, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def counted(message: Any) -> None:
            try:
                await send(message)
            except Exception as error:
                raise _Unsent from error
            if message["type"] == "http.response.start":
                self._service.metrics.count(path, message["status"])

        try:
            await self._application(scope, receive, counted)
        except _Unsent as error:
            # It has answered itself, behind a head that it could read and a body that it could not, and is about to
            # close the connection: an error in its log otherwise.
            try:
                await asyncio.wait_for(_hung_up(receive), CLOSING_SECONDS)
            except asyncio.TimeoutError:
                raise (error.__cause__ or error) from None
