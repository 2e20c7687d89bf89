"""The dead letter queue: jobs that failed for good, kept for whoever looks after them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import QueueUnavailableError
from .models import DeadJob, JobStatus

if TYPE_CHECKING:
    from .client import TaskQueue


class DeadJobs:
    """The dead jobs of a service.

    Args:
        queue: The queue.
    """

    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue
        self._store = queue.store

    async def count(self) -> int:
        """Return the number of dead jobs."""
        return await self._queue.read(lambda: self._store.count(JobStatus.FAILED))

    async def list(self, limit: int = 100, offset: int = 0) -> list[DeadJob]:
        """Return dead jobs, the newest first."""
        return await self._queue.read(lambda: self._store.dead_jobs(limit, offset))

    async def get(self, job_id: str) -> DeadJob | None:
        """Return a dead job, or None if there is no such dead job."""
        return await self._queue.read(lambda: self._store.dead_job(job_id))

    async def retry(self, job_id: str) -> bool:
        """Enqueue a dead job again, under its id; return False if there is no such dead job.

        While the broker is away, it is due as soon as a worker can publish it.

        Raises:
            ValueError: It cannot be published: its workflow or its queue is not known.
        """
        job = await self._queue.read(lambda: self._store.revive(job_id))
        if job is None:
            return False
        try:
            await self._queue.publish(lambda: self._queue.publisher.publish(job))
        except QueueUnavailableError:
            await self._queue.read(lambda: self._store.release([job]))
            return True
        await self._queue.read(lambda: self._store.published(job))
        return True

    async def delete(self, job_id: str) -> bool:
        """Forget a dead job; return False if there is no such dead job."""
        return await self._queue.read(lambda: self._store.forget(job_id))
