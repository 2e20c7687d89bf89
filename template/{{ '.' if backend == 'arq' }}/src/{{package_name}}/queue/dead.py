"""The dead letter queue: jobs that failed permanently, kept for whoever looks after them."""

from contextlib import suppress

from arq import ArqRedis
from pydantic import ValidationError
from pydantic_core import to_json

from .connection import Script, translate_redis_errors
from .documents import (
    STORED_MS,
    UNKNOWN_TASK,
    ChainLink,
    StoredResult,
    job_document,
    job_from_result,
)
from .keys import Keys
from .models import DeadJob
from .settings import QueueSettings
from .task import DEFAULT_QUEUE


class DeadJobs:
    """The dead jobs of a service.

    Args:
        redis: The client.
        settings: The queue's settings.
        timeout: Seconds to wait for Redis; None for as long as it takes to answer.
    """

    def __init__(self, redis: ArqRedis, settings: QueueSettings, timeout: float | None) -> None:
        self._redis = redis
        self._keys = Keys(settings.queue_name)
        self._keep_ms = settings.keep_dead * 1000
        self._timeout = timeout
        self._requeue = Script(redis, "requeue_dead")

    async def count(self) -> int:
        """Return the number of dead jobs."""
        async with translate_redis_errors(self._timeout):
            seconds, _ = await self._redis.time()
            oldest = seconds * 1000 - self._keep_ms
            return int(await self._redis.zcount(self._keys.dead, oldest, "+inf"))

    async def list(self, limit: int = 100, offset: int = 0) -> "list[DeadJob]":
        """Return dead jobs, the newest first."""
        async with translate_redis_errors(self._timeout):
            ids = await self._redis.zrevrange(self._keys.dead, offset, offset + limit - 1)
            names = [job_id.decode(errors="replace") for job_id in ids]
            keys = [self._keys.dead_job(name) for name in names]
            documents: list[bytes | None] = await self._redis.mget(keys) if keys else []
        found = zip(names, documents, strict=True)
        return [dead_job(name, document) for name, document in found if document]

    async def get(self, job_id: str) -> DeadJob | None:
        """Return a dead job, or None if there is no such dead job."""
        async with translate_redis_errors(self._timeout):
            [document] = await self._redis.mget([self._keys.dead_job(job_id)])
        return dead_job(job_id, document) if document else None

    async def retry(self, job_id: str) -> bool:
        """Enqueue a dead job again, under its id; return False if there is no such dead job.

        Raises:
            ValueError: What the job was to do is not known.
        """
        async with translate_redis_errors(self._timeout):
            [document] = await self._redis.mget([self._keys.dead_job(job_id)])
            if document is None:
                return False
            try:
                stored = StoredResult.model_validate_json(document)
            except ValidationError:
                raise ValueError("what this job was to do is not known") from None
            if stored.f == UNKNOWN_TASK:
                raise ValueError("what this job was to do is not known")
            queue = stored.q or DEFAULT_QUEUE
            payload = job_document(
                stored.f,
                to_json(stored.k),
                stored.ft,
                queue,
                positional=to_json(stored.a),
                chain=to_json(stored.c),
                trace=stored.tc,
            )
            return await self._take(job_id, self._keys.queue(queue), payload, stored.c)

    async def delete(self, job_id: str) -> bool:
        """Forget a dead job; return False if there is no such dead job."""
        async with translate_redis_errors(self._timeout):
            return await self._take(job_id, self._keys.service, b"", None)

    async def _take(self, job_id: str, queue: str, payload: bytes, link: ChainLink | None) -> bool:
        chain = (link.id, f"{link.index} queued") if link else ("", "")
        service = self._keys.service
        return bool(await self._requeue(service, job_id, queue, payload, STORED_MS, *chain))


def dead_job(job_id: str, document: bytes) -> DeadJob:
    """Return a job that failed from its stored result."""
    job = DeadJob(**job_from_result(job_id, document).model_dump())
    with suppress(ValidationError):
        stored = StoredResult.model_validate_json(document)
        job.positional, job.arguments = stored.a, stored.k
        job.traceback = stored.error().traceback
    return job
