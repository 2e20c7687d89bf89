"""What a worker does beside its jobs: signs of life, aborts, and the schedule of periodic jobs."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from redis.exceptions import RedisError

from .attempt import Interruption
from .client import TaskQueue
from .connection import code, passes
from .documents import STORED_MS
from .keys import ABORTS
from .settings import LIFETIME
from .task import Task

logger = logging.getLogger(__name__)
ABORT_INTERVAL = 0.5  # seconds
CRON_INTERVAL = 10  # seconds
ABORTS_KEPT = 86_400  # seconds


class Interruptible(Protocol):
    """A running job."""

    def interrupt(self, cause: Interruption) -> None:
        """Cancel its attempt."""


class Upkeep:
    """The routines of one worker. They wait for Redis, and leave it to the worker to log that.

    Args:
        worker_id: The worker's id.
        queue: The queue.
        redis: The worker's client.
        tasks: The tasks that it knows.
    """

    def __init__(
        self, worker_id: str, queue: TaskQueue, redis: Any, tasks: Iterable[Task[..., Any]]
    ) -> None:
        self._name = f"{socket.gethostname()}:{worker_id}"
        self._queue = queue
        self._keys = queue.keys
        self._settings = queue.settings
        self._redis = redis
        self._tasks = list(tasks)
        unserved = {task.queue for task in self._tasks} - set(self._settings.queues)
        for name in sorted(unserved):
            logger.warning("this worker does not run queue %s: it is not in QUEUES", name)

    async def run(self, running: Mapping[bytes, Interruptible]) -> None:
        """Run all routines, until cancelled.

        Args:
            running: The jobs that run, by their ids; it changes.
        """
        interval = self._settings.health_interval
        # No task group: it passes a cancellation on only once.
        await asyncio.gather(
            self._repeat("its signs of life", lambda: self._show_life(running), interval),
            self._repeat("aborts", lambda: self._watch_aborts(running), ABORT_INTERVAL),
            self._repeat("periodic tasks", self._schedule, min(CRON_INTERVAL, interval)),
            return_exceptions=True,  # or a cancellation would not wait for all of them
        )

    async def _repeat(
        self, what: str, routine: Callable[[], Awaitable[None]], interval: float
    ) -> None:
        """Run a routine again and again; log what does not pass by itself, once."""
        logged = ""
        while True:
            problem = ""
            try:
                await routine()
            except Exception as error:  # noqa: BLE001 - what goes wrong here must not end it
                cause = error.__cause__ or error
                problem = "" if passes(cause) else code(cause)
            if problem and problem != logged:
                logger.error("this worker fails to look after %s: %s", what, problem)
            logged = problem
            await asyncio.sleep(interval)

    async def say_goodbye(self) -> None:
        """Take back the signs of life."""
        with contextlib.suppress(RedisError, OSError):
            await self._redis.zrem(self._keys.workers, self._name)
            if not await self._redis.exists(self._keys.workers):
                await self._redis.delete(self._keys.health)

    async def _show_life(self, running: Mapping[bytes, Interruptible]) -> None:
        """Write signs of life: ours for each worker, and ARQ's, which all of them share."""
        interval = self._settings.health_interval
        seconds, microseconds = await self._redis.time()
        now = seconds * 1000 + microseconds // 1000
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zadd(self._keys.workers, {self._name: now})
            pipe.zremrangebyscore(self._keys.workers, "-inf", now - LIFETIME * interval * 1000)
            if self._tasks:
                pipe.zadd(self._keys.tasks, {task.name: now for task in self._tasks})
            pipe.zremrangebyscore(self._keys.tasks, "-inf", now - STORED_MS)
            pipe.zremrangebyscore(ABORTS, "-inf", now - ABORTS_KEPT * 1000)
            text = f"{datetime.now(UTC):%b-%d %H:%M:%S} j_ongoing={len(running)}"
            pipe.psetex(self._keys.health, int((interval + 1) * 1000), text)
            await pipe.execute()

    async def _watch_aborts(self, running: Mapping[bytes, Interruptible]) -> None:
        """Cancel running jobs that are to be aborted."""
        if not (ids := list(running)):
            return
        for job_id, score in zip(ids, await self._redis.zmscore(ABORTS, ids), strict=True):
            if score is not None and job_id in running:
                running[job_id].interrupt(Interruption.ABORT)

    async def _schedule(self) -> None:
        """Enqueue the next run of each periodic task; workers agree on its id."""
        periodic = [task for task in self._tasks if task.cron]
        if not periodic:
            return
        seconds, _ = await self._redis.time()
        now = datetime.fromtimestamp(seconds, self._settings.timezone)
        for task in periodic:
            await self._queue.schedule(task, now)
