"""Enqueueing: jobs on their way to Redis."""

import asyncio
from dataclasses import dataclass
from typing import Any

from arq import ArqRedis
from redis.exceptions import RedisError

from .batching import Batcher, batches
from .connection import Script, code, has_done_nothing, passes, timeout_at
from .documents import STORED_MS
from .errors import QueueUnavailableError
from .settings import QueueSettings

PAUSE = 0.2  # seconds between two attempts to reach Redis


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to enqueue.

    Attributes:
        queue: The key of its queue.
        job_id: Its id.
        document: The job as it is stored.
        due: "+" and milliseconds from now, or milliseconds since 1970.
        kind: "" for an id that is new, "unique" or "key" for one that may exist already.
        deadline: When its sender gives up, by the event loop's clock; 0 for never.
    """

    queue: str
    job_id: str
    document: bytes
    due: str = "+0"
    kind: str = ""
    deadline: float = 0


class Enqueuer(Batcher[NewJob, bytes | None]):
    """Enqueues jobs. The reply is None for a new job, else what is stored under its id.

    Args:
        redis: The client.
        settings: The queue's settings.

    Raises:
        QueueUnavailableError: Redis did not answer before the deadline; jobs without one wait.
    """

    def __init__(self, redis: ArqRedis, settings: QueueSettings) -> None:
        super().__init__(self._enqueue)
        self._script = Script(redis, "enqueue")
        self._settings = settings
        self._server_ahead: float | None = None  # seconds, of the server's clock and the loop's

    async def check(self) -> None:
        """Enqueue nothing, which fails where the server would refuse a job."""
        await self._script(self._settings.queue_name, 0, STORED_MS, 0)

    async def enqueue_all(self, jobs: list[NewJob], seconds: float | None) -> list[bytes | None]:
        """Enqueue many jobs, a batch at a time, each of which has so many seconds."""
        loop = asyncio.get_running_loop()
        replies: list[bytes | None] = []
        for batch in batches(jobs):
            try:
                replies += await self._enqueue(batch, loop.time() + seconds if seconds else 0)
            except QueueUnavailableError as error:
                error.maybe_enqueued = error.maybe_enqueued or bool(replies)
                raise
        return replies

    async def _enqueue(
        self, jobs: list[NewJob], deadline: float | None = None
    ) -> list[bytes | None]:
        if deadline is None:
            deadline = min(job.deadline for job in jobs)
        while True:
            try:
                return await self._run(jobs, deadline)
            except (RedisError, OSError) as error:
                if deadline or not passes(error):
                    raise QueueUnavailableError(
                        f"Redis is not available: {code(error)}",
                        maybe_enqueued=not has_done_nothing(error),
                    ) from error
                await asyncio.sleep(PAUSE)

    async def _run(self, jobs: list[NewJob], deadline: float) -> list[bytes | None]:
        loop = asyncio.get_running_loop()
        last_moment = 0
        if deadline and self._server_ahead is not None:
            last_moment = int((deadline + self._server_ahead) * 1000)
        free_again = int(self._settings.reuse_failed_key * 1000)
        arguments: list[Any] = [self._settings.queue_name, last_moment, STORED_MS, free_again]
        for job in jobs:
            arguments += (job.queue, job.job_id, job.document, job.due, job.kind)
        before = loop.time()
        async with timeout_at(deadline or None):
            now, *replies = await self._script(*arguments)
        if replies == [b"late"]:
            raise QueueUnavailableError("Redis answered too late")
        # The script ran between two moments of this clock: of these take the first, so that a job
        # is never refused while its sender waits.
        self._server_ahead = now / 1000 - before
        return [None if reply == 1 else reply[1] or b"" for reply in replies]
