"""Failures of the database, answered in time with 503."""

import asyncio
import logging
import time

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import InterfaceError, OperationalError
from starlette.types import ASGIApp, Receive, Scope, Send

from ..db import DATABASE_TIMEOUT, Sessions
from .errors import RETRY_AFTER, problem

TICK = 0.1  # seconds
UNAVAILABLE = "The database is not available."
logger = logging.getLogger(__name__)


def add_database_errors(app: FastAPI) -> None:
    """Answer 503 while the database of this app is down or hangs."""
    app.exception_handler(InterfaceError)(_unavailable)
    app.exception_handler(OperationalError)(_unavailable)
    app.add_middleware(_with_deadline)


async def _unavailable(_request: Request, error: OperationalError) -> JSONResponse:
    logger.warning("the database is unavailable: %s", error.orig)
    return problem(503, UNAVAILABLE, RETRY_AFTER)


def _with_deadline(app: ASGIApp) -> ASGIApp:
    """Answer 503 where a request waits for a database that hangs.

    A driver may wait for ever and ignore its cancellation, so such a request is left to itself. A
    database that answers other requests does not hang: it is busy.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        started = time.monotonic()
        call = asyncio.ensure_future(app(scope, receive, send))
        call.add_done_callback(lambda call: call.cancelled() or call.exception())
        try:
            while not (await asyncio.wait({call}, timeout=TICK))[0]:
                sessions: Sessions | None = scope.get("state", {}).get("sessions")
                if sessions is None:
                    continue
                if time.monotonic() - max(started, sessions.answered_at) > DATABASE_TIMEOUT:
                    await problem(503, UNAVAILABLE, RETRY_AFTER)(scope, receive, send)
                    return
            call.result()
        finally:
            call.cancel()

    return answer
