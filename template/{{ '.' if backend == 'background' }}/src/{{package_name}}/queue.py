"""The one seam between the service and its queue, which is this process: FastAPI BackgroundTasks.

Jobs run after the response that enqueued them has been sent, in the process that sent it. They
and all that is known of them are lost when the process ends, deferred ones included, and another
process of the same service knows nothing of them. Routes and tasks enqueue through `TaskQueue`
and would not notice another backend behind it.
"""

import asyncio
import copy
import hmac
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, Self
from uuid import uuid4

from fastapi import BackgroundTasks
from pydantic_core import from_json, to_json

from .job import Job, JobInfo, JobStatus, QueueHealth, QueueUnavailableError
from .resources import Context
from .task import Retry, Task

P = ParamSpec("P")
logger = logging.getLogger(__name__)


class TaskQueue:
    """Enqueues tasks, and tells what has become of them.

    To enqueue raises a `TypeError` that names an argument which does not fit the task, and
    `QueueUnavailableError` when too many jobs wait already.
    """

    def __init__(self, table: "JobTable") -> None:
        self._table = table
        self._background_tasks: BackgroundTasks | None = None
        self.key: str | None = None
        self._secret = secrets.token_bytes()

    def after_response(self, background_tasks: BackgroundTasks) -> Self:
        """Return this queue for one request: what it enqueues runs when the response is sent."""
        queue = copy.copy(self)
        queue._background_tasks = background_tasks  # noqa: SLF001 - of this class
        return queue

    def once(self, key: str | None) -> Self:
        """Return a queue that enqueues each task once for this key, then gives that job back.

        A key is remembered for as long as its job is in the table.
        """
        queue = copy.copy(self)
        queue.key = key
        return queue

    async def enqueue(self, task: Task[P, Any], *args: P.args, **kwargs: P.kwargs) -> Job:
        """Run a task once the response is sent; from within a task, at once."""
        return self._enqueue(task, task.encode(*args, **kwargs))

    async def enqueue_in(
        self, delay: timedelta, task: Task[P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> Job:
        """Run a task after a delay."""
        return self._enqueue(task, task.encode(*args, **kwargs), delay)

    async def enqueue_at(
        self, when: datetime, task: Task[P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> Job:
        """Run a task at a time with a timezone; at once if it has passed."""
        delay = when - datetime.now(UTC)
        return self._enqueue(task, task.encode(*args, **kwargs), delay)

    async def job(self, job_id: str) -> JobInfo | None:
        """Tell what is known of a job; None if it never was, or has left the table."""
        return self._table.find(job_id)

    async def abort(self, job_id: str) -> None:
        """End a job: before it starts, or by cancelling it."""
        self._table.abort(job_id)

    async def health(self) -> QueueHealth:
        """Tell how many jobs wait, and for how long the first has been due; this is the worker."""
        return self._table.health()

    async def reserve(self, task: Task[..., Any], job_id: str) -> float:
        """Take the next start that a task's rate limit leaves; return the seconds until then."""
        return self._table.reserve(task, job_id)

    def _enqueue(
        self, task: Task[..., Any], arguments: dict[str, Any], delay: timedelta = timedelta(0)
    ) -> Job:
        task.check_size(arguments, self._table.settings.max_payload)
        job_id = uuid4().hex
        if key := task.key(arguments) or self.key:
            name = f"{task.name}:{key}".encode()
            job_id = hmac.new(self._secret, name, "sha256").hexdigest()[:32]
            if self._table.find(job_id) is not None:
                return Job(job_id, created=False)
        deferred = delay > timedelta(0)
        status = JobStatus.DEFERRED if deferred else JobStatus.QUEUED
        now = datetime.now(UTC)
        info = JobInfo(job_id=job_id, status=status, function=task.name, enqueued_at=now)
        self._table.add(_Record(info, task, arguments))
        if deferred or self._background_tasks is None:
            self._table.start(job_id, delay.total_seconds())
        else:
            self._background_tasks.add_task(self._table.run, job_id)
        return Job(job_id)


@asynccontextmanager
async def open_queue(ctx: Context) -> AsyncGenerator[TaskQueue]:
    """Own the process's one table of jobs; at the end, let running ones finish."""
    logger.warning("jobs run in this process, and are lost when it ends")
    table = JobTable(ctx)
    try:
        yield TaskQueue(table)
    finally:
        await table.drain()


@dataclass(eq=False)
class _Record:
    """A row of the table of jobs."""

    info: JobInfo
    task: Task[..., Any]
    arguments: dict[str, Any]
    handle: asyncio.Task[None] | None = None


class JobTable:
    """The jobs of this process: those that wait or run, and as many ended ones as fit."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.settings = ctx["settings"]
        self._records: dict[str, _Record] = {}
        self._slots = asyncio.Semaphore(self.settings.max_jobs)
        self._starts: dict[str, deque[float]] = {}
        self._reserved: set[str] = set()

    def find(self, job_id: str) -> JobInfo | None:
        """Tell what is known of a job."""
        record = self._records.get(job_id)
        return record.info.model_copy() if record else None

    def add(self, record: _Record) -> None:
        """Note a job, in the place of the oldest that has ended if the table is full.

        Raises:
            QueueUnavailableError: It is full of jobs that have not ended.
        """
        if len(self._records) >= self.settings.keep_jobs:
            ended = (each.info.job_id for each in self._records.values() if each.info.finished_at)
            oldest = next(ended, None)
            if oldest is None:
                raise QueueUnavailableError(f"{len(self._records)} jobs are waiting already")
            del self._records[oldest]
        self._records[record.info.job_id] = record

    def health(self) -> QueueHealth:
        """Tell how many jobs have not ended, and for how long the first has been due."""
        waiting = [each.info for each in self._records.values() if not each.info.finished_at]
        queued = [each for each in waiting if each.status is JobStatus.QUEUED]
        ages = [datetime.now(UTC) - each.enqueued_at for each in queued if each.enqueued_at]
        oldest = max(ages).total_seconds() if ages else None
        return QueueHealth(depth=len(waiting), oldest_seconds=oldest, worker=True)

    def reserve(self, task: Task[..., Any], job_id: str) -> float:
        """Keep a start for a job that a rate limit makes wait; it waits once."""
        if task.rate_limit is None or job_id in self._reserved:
            self._reserved.discard(job_id)
            return 0
        count, seconds = task.rate_limit
        starts = self._starts.setdefault(task.name, deque(maxlen=count))
        now = time.monotonic()
        start = max(now, starts[0] + seconds if len(starts) == count else 0)
        starts.append(start)
        if start > now:
            self._reserved.add(job_id)
            self._records[job_id].info.attempts -= 1  # waiting is no try
        return start - now

    def start(self, job_id: str, delay: float = 0) -> "asyncio.Task[None]":
        """Run a job on its own, after a delay in seconds."""
        record = self._records[job_id]
        record.handle = asyncio.create_task(self._run(record, delay), name=f"job {job_id}")
        return record.handle

    async def run(self, job_id: str) -> None:
        """Run a job, and return when it has ended."""
        await asyncio.wait([self.start(job_id)])

    def abort(self, job_id: str) -> None:
        """End a job where it is."""
        record = self._records[job_id]
        self._end(record.info, JobStatus.ABORTED, error="CancelledError")
        if record.handle is not None:
            record.handle.cancel()

    async def drain(self) -> None:
        """Let running jobs end within `shutdown_grace`; abort what is left."""
        open_ = [each for each in self._records.values() if not each.info.finished_at]
        running = [each for each in open_ if each.info.status is JobStatus.IN_PROGRESS]
        if handles := [each.handle for each in running if each.handle]:
            await asyncio.wait(handles, timeout=self.settings.shutdown_grace)
        lost = [each for each in open_ if not each.info.finished_at]
        for record in lost:
            self.abort(record.info.job_id)
        if lost:
            logger.warning("%d jobs that had not ended are lost", len(lost))
        await asyncio.gather(*(each.handle for each in lost if each.handle), return_exceptions=True)

    async def _run(self, record: _Record, delay: float) -> None:
        await asyncio.sleep(delay)
        while not record.info.finished_at:
            try:
                async with self._slots:
                    await self._try(record)
            except Retry as retry:
                record.info.status = JobStatus.DEFERRED
                await asyncio.sleep(retry.defer)

    async def _try(self, record: _Record) -> None:
        info = record.info
        info.status = JobStatus.IN_PROGRESS
        info.attempts += 1
        info.started_at = datetime.now(UTC)
        job = {"job_id": info.job_id, "job_try": info.attempts, "enqueue_time": info.enqueued_at}
        try:
            result = await record.task.run({**self._ctx, **job}, **record.arguments)
            info.result = from_json(to_json(result, inf_nan_mode="null"))
        except Exception as error:
            tries = max(record.task.retries + 1, self.settings.max_tries)
            if isinstance(error, Retry) and info.attempts < tries:
                raise
            logger.exception("job %s (%s) failed", info.job_id, info.function)
            text = f"{type(error).__name__}: {error}".removesuffix(": ")
            self._end(info, JobStatus.FAILED, error=text)
        else:
            self._end(info, JobStatus.COMPLETE)

    def _end(self, info: JobInfo, status: JobStatus, error: str | None = None) -> None:
        info.status = status
        info.error = error
        info.finished_at = datetime.now(UTC)
