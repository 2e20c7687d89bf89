"""Enqueueing in batches: all jobs of one turn of the event loop go to Redis in one round trip."""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

from arq import ArqRedis
from redis.exceptions import RedisError

from .connection import Script, code, has_done_nothing, passes
from .documents import STORED_MS
from .errors import QueueUnavailableError
from .settings import QueueSettings

MOST_JOBS = 1000
MOST_BYTES = 4_194_304
FIRST_PAUSE = 0.05  # seconds
LONGEST_PAUSE = 1


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job on its way to Redis.

    Attributes:
        queue: The key of its queue.
        job_id: Its id.
        document: The job as it is stored.
        delay_ms: How long it waits before it is due.
        due_ms: When it is due, in milliseconds since 1970; 0 for now plus the delay.
        kind: "" for an id that is new, "unique" or "key" for one that may exist already.
    """

    queue: str
    job_id: str
    document: bytes
    delay_ms: int = 0
    due_ms: int = 0
    kind: str = ""


@dataclass(frozen=True, slots=True)
class _Waiting:
    job: NewJob
    reply: "asyncio.Future[bytes | None]"
    deadline: float  # of the event loop's clock


class Batch:
    """Sends jobs together. One batch is on its way at a time; those that come meanwhile follow.

    Args:
        redis: The client.
        settings: The queue's settings.
        timeout: Seconds until the sender of a job gets an error; None to try until it is sent.
    """

    def __init__(self, redis: ArqRedis, settings: QueueSettings, timeout: float | None) -> None:
        self._script = Script(redis, "enqueue")
        self._settings = settings
        self._timeout = timeout
        self._waiting: deque[_Waiting] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._server_ahead: float | None = None  # seconds, of the server's clock and the loop's

    async def send(self, job: NewJob) -> bytes | None:
        """Enqueue a job.

        Returns:
            None if the job was created, else what is stored of the job that has its id.

        Raises:
            QueueUnavailableError: Redis did not answer in time.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._timeout or 0)
        waiting = _Waiting(job, loop.create_future(), deadline)
        self._waiting.append(waiting)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all())
        return await waiting.reply

    async def send_many(self, jobs: list[NewJob]) -> list[bytes | None]:
        """Enqueue jobs, up to a thousand in one round trip."""
        return await asyncio.gather(*(self.send(job) for job in jobs))

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                if batch := self._take():
                    await self._send(batch)
        finally:
            self._sender = None
            for left in self._waiting:
                left.reply.cancel()
            self._waiting.clear()

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._waiting and len(batch) < MOST_JOBS and size < MOST_BYTES:
            waiting = self._waiting.popleft()
            if not waiting.reply.done():  # else its sender has gone
                batch.append(waiting)
                size += len(waiting.job.document)
        return batch

    async def _send(self, batch: list[_Waiting]) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                replies = await self._run(batch)
            except (RedisError, OSError) as error:
                if self._timeout is None and passes(error):
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                    continue
                maybe = not has_done_nothing(error)
                self._refuse(batch, f"Redis is not available: {code(error)}", maybe=maybe)
            else:
                if replies is None:
                    self._refuse(batch, "Redis answered too late", maybe=False)
                else:
                    for waiting, reply in zip(batch, replies, strict=True):
                        if not waiting.reply.done():
                            waiting.reply.set_result(None if reply == 1 else reply[1] or b"")
            return

    async def _run(self, batch: list[_Waiting]) -> list[Any] | None:
        loop = asyncio.get_running_loop()
        deadline = min(waiting.deadline for waiting in batch) if self._timeout else None
        last_moment = 0
        if deadline and self._server_ahead is not None:
            last_moment = int((deadline + self._server_ahead) * 1000)
        arguments: list[Any] = [
            self._settings.queue_name,
            last_moment,
            STORED_MS,
            int(self._settings.reuse_failed_key * 1000),
        ]
        for waiting in batch:
            job = waiting.job
            arguments += (
                job.queue,
                job.job_id,
                job.document,
                job.delay_ms,
                job.due_ms,
                job.kind,
            )
        before = loop.time()
        async with asyncio.timeout_at(deadline):
            now, *rest = await self._script(*arguments)
        replies: list[Any] = rest
        if replies == [b"late"]:
            return None
        # The server's clock was read between the two moments: assume the earlier one, so that it
        # never refuses what is in time.
        self._server_ahead = now / 1000 - before
        return replies

    def _refuse(self, batch: list[_Waiting], message: str, *, maybe: bool) -> None:
        for waiting in batch:
            if not waiting.reply.done():
                waiting.reply.set_exception(QueueUnavailableError(message, maybe_enqueued=maybe))
