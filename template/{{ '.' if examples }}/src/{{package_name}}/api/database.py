"""Failures of the database, answered in time with 503."""

import asyncio
import logging

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import InterfaceError, OperationalError
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import NOT_AVAILABLE, RETRY_AFTER, problem

logger = logging.getLogger(__name__)


def add_database_errors(app: FastAPI) -> None:
    """Answer 503 while the database of this app is down or hangs."""
    app.exception_handler(InterfaceError)(_unavailable)
    app.exception_handler(OperationalError)(_unavailable)
    app.add_middleware(_with_deadline)


async def _unavailable(_request: Request, error: OperationalError) -> JSONResponse:
    logger.warning("the database is unavailable: %s", error.orig)
    return problem(503, NOT_AVAILABLE, RETRY_AFTER)


def _with_deadline(app: ASGIApp) -> ASGIApp:
    """Answer 503 where a request waits for a database that hangs.

    A driver may wait for ever and ignore its cancellation: such a request is left to itself.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        hanging: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        scope.setdefault("state", {})["database_hangs"] = hanging
        call = asyncio.ensure_future(app(scope, receive, send))
        call.add_done_callback(lambda call: call.cancelled() or call.exception())
        try:
            await asyncio.wait({call, hanging}, return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                call.result()
            else:
                logger.warning("the database does not answer")
                await problem(503, NOT_AVAILABLE, RETRY_AFTER)(scope, receive, send)
        finally:
            call.cancel()

    return answer
