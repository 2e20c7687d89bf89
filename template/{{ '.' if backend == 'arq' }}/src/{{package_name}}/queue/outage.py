"""Waiting for Redis: calls are repeated until it is back, and the log has one line for each change."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.exceptions import RedisError

from .connection import code

T = TypeVar("T")
logger = logging.getLogger(__name__)
FIRST_PAUSE = 0.05  # seconds
LONGEST_PAUSE = 1


class Outage:
    """Whether Redis is unavailable, as all calls of one worker see it together."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._abandoned = False

    def abandon(self) -> None:
        """Let waiting calls fail: the worker ends."""
        self._abandoned = True

    async def persist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until Redis answers. The call must be safe to repeat.

        Raises:
            RedisError: The worker ends.
            OSError: The worker ends.
        """
        pause = FIRST_PAUSE
        while True:
            try:
                result = await call()
            except (RedisError, OSError) as error:
                self._begin(error)
                if self._abandoned:
                    raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._end()
                return result

    def _begin(self, error: Exception) -> None:
        if self._since is None:
            self._since = time.monotonic()
            logger.warning("Redis is unavailable, retrying: %s", code(error))

    def _end(self) -> None:
        if self._since is not None:
            logger.warning("Redis is back after %.1f s", time.monotonic() - self._since)
            self._since = None
