"""Errors as RFC 9457 problem details."""

import asyncio
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY, RequestBodyLimitMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..queue import (
    IdempotencyConflictError,
    InvalidArgumentError,
    PayloadTooLargeError,
    QueueUnavailableError,
)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = {"Retry-After": "2"}  # seconds
NOT_AVAILABLE = "The service is not available; see its log."
NO_JSON = 'Send the body as JSON, with the header "Content-Type: application/json".'
# Where types are checked, only a client's data can be an invalid argument: JSON nested too deep.
REFUSALS: dict[type[Exception], int] = {
    InvalidArgumentError: 400,
    PayloadTooLargeError: 413,
    IdempotencyConflictError: 422,
}
logger = logging.getLogger(__name__)


class Problem(BaseModel):
    """The body of every error; `errors` names the places of a request that is not valid."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    errors: list[dict[str, str]] | None = None


_DESCRIBED = {
    "description": "A problem.",
    "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
}
PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {"4XX": _DESCRIBED, "5XX": _DESCRIBED}


def add_error_handlers(app: FastAPI, max_body: int) -> None:
    """Answer every error of this app as problem details, a body of more bytes than these too."""
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(RequestValidationError)(_invalid_request)
    app.exception_handler(QueueUnavailableError)(_queue_unavailable)
    for error in REFUSALS:
        app.exception_handler(error)(_refused_by_queue)
    app.exception_handler(413)(_body_too_long)
    app.exception_handler(Exception)(_unexpected_error)
    app.add_middleware(_limit_body, max_body)
    app.add_middleware(_LogLateErrors)


def problem(
    status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    """Return problem details as a response."""
    body = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, **more)
    content = body.model_dump(exclude_none=True)
    return JSONResponse(content, status, headers, media_type=MEDIA_TYPE)


async def _http_error(_request: Request, error: HTTPException) -> JSONResponse:
    return problem(error.status_code, error.detail, headers=error.headers)


async def _invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
    found = error.errors()
    unread = any(each["loc"] == ("body",) and each["type"] != "missing" for each in found)
    if unread and "json" not in request.headers.get("content-type", ""):
        return problem(415, NO_JSON)
    errors = [{"location": ".".join(map(str, e["loc"])), "message": e["msg"]} for e in found]
    return problem(422, "The request is not valid.", errors=errors)


async def _queue_unavailable(_request: Request, error: QueueUnavailableError) -> JSONResponse:
    detail = f"{error}."
    if error.maybe_enqueued:
        detail += " The job may have been enqueued: send the same Idempotency-Key again."
    return problem(503, detail, headers=RETRY_AFTER)


async def _refused_by_queue(_request: Request, error: Exception) -> JSONResponse:
    return problem(REFUSALS[type(error)], f"{error}.")


async def _body_too_long(request: Request, _error: HTTPException) -> JSONResponse:
    return _too_long(request.scope[MAX_BODY_SIZE_SCOPE_KEY])


def _too_long(max_body: int) -> JSONResponse:
    return problem(413, f"The body has more than {max_body} bytes.")


async def _unexpected_error(_request: Request, _error: Exception) -> JSONResponse:
    return problem(500, "Internal server error; see the log.")


def _limit_body(app: ASGIApp, max_body: int) -> ASGIApp:
    """Read no more than this of a body.

    Starlette counts the bytes that come; where a length is declared, it would answer with text.
    """
    limited = RequestBodyLimitMiddleware(app, max_body)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        declared = Headers(raw=scope.get("headers", [])).get("content-length", "")
        if declared.isdecimal() and int(declared) > max_body:
            await _too_long(max_body)(scope, receive, send)
        else:
            await limited(scope, receive, send)

    return answer


class _LogLateErrors:
    """Log exceptions that are raised after the response, as by a background task.

    The server would close the client's connection, and the next request on it would get no answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        complete = False

        async def watch(message: Message) -> None:
            nonlocal complete
            await send(message)
            if message["type"] == "http.response.body":
                complete = not message.get("more_body", False)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            if not complete:
                raise
            logger.exception("after the response to %s %s", scope["method"], scope["path"])


def with_head(app: ASGIApp) -> ASGIApp:
    """Answer HEAD as GET, without the body: of a stream or a file, nothing is made."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") != "HEAD":
            await app(scope, receive, send)
            return

        async def send_headers(message: Message) -> None:
            if not message.get("more_body", False):
                await send(message)
            elif not call.cancelling():
                await send({"type": "http.response.body"})
                call.cancel()

        call = asyncio.ensure_future(app({**scope, "method": "GET"}, receive, send_headers))
        try:
            await asyncio.wait({call})
        finally:
            call.cancel()
        if not call.cancelled():
            call.result()

    return answer
