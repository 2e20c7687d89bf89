"""Failures of the database, answered in time with 503."""

import asyncio
import logging
import time

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..db import DATABASE_TIMEOUT, Sessions
from .errors import RETRY_AFTER, problem

TICK = 0.1  # seconds
UNAVAILABLE = "The database is not available."
logger = logging.getLogger(__name__)


def add_database_errors(app: FastAPI) -> None:
    """Answer 503 while the database of this app is down or hangs."""
    for error in (InterfaceError, OperationalError, PoolTimeoutError):
        app.exception_handler(error)(_unavailable)
    app.add_middleware(DatabaseDeadline)


async def _unavailable(_request: Request, error: Exception) -> JSONResponse:
    logger.warning(
        "the database is unavailable: %s", error.orig if isinstance(error, DBAPIError) else error
    )
    return problem(503, UNAVAILABLE, RETRY_AFTER)


class DatabaseDeadline:
    """Answers 503 where a request waits for a database that hangs.

    A driver may wait for ever and ignore its cancellation, so the request is left to itself. A
    database that answers other requests is busy, and does not hang.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        answering = abandoned = False

        async def send_in_time(message: Message) -> None:
            nonlocal answering
            answering = True
            if not abandoned:
                await send(message)

        state = scope.setdefault("state", {})
        call = asyncio.ensure_future(self._app(scope, receive, send_in_time))
        call.add_done_callback(lambda call: call.cancelled() or call.exception())
        try:
            while not (await asyncio.wait({call}, timeout=TICK))[0]:
                sessions: Sessions | None = state.get("sessions")
                if answering or sessions is None:
                    continue
                if time.monotonic() - max(started, sessions.answered_at) > DATABASE_TIMEOUT:
                    abandoned = True
                    await problem(503, UNAVAILABLE, RETRY_AFTER)(scope, receive, send)
                    return
            call.result()
        finally:
            call.cancel()
