"""The runner: takes jobs when they are due, and runs an attempt at each, in the API's process."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json

from .attempt import (
    Again,
    Attempt,
    Failure,
    Interrupted,
    Interruption,
    Limits,
    Outcome,
    Success,
    failure,
    left_behind,
    log_failure,
)
from .client import ABORTED, PERIODIC, TaskQueue
from .errors import JobExpiredError, QueueUnavailableError
from .models import JobContext, JobStatus
from .rates import RateLimits
from .settings import QueueSettings
from .table import Record
from .task import Task
from .threads import DaemonThreads

logger = logging.getLogger(__name__)
CRON_INTERVAL = 10  # seconds


@asynccontextmanager
async def run_jobs_here(
    tasks: Iterable[Task[..., Any]], queue: TaskQueue, resources: Any
) -> AsyncGenerator[None]:
    """Run the queue's jobs in this process, as long as the block runs.

    At its end, jobs that are due or running get `SHUTDOWN_GRACE` seconds; then they are lost, as
    deferred ones are.

    Args:
        tasks: The tasks of the service.
        queue: The queue.
        resources: What tasks get as `ctx.resources`.

    Raises:
        ValueError: Two tasks have the same name, or a task's queue is not in `QUEUES`.
    """
    runner = Runner(tasks, queue, resources)
    dispatching = queue.waiting.runner = asyncio.create_task(runner.dispatch())
    scheduling = asyncio.create_task(runner.schedule_periodic_tasks())
    logger.info("jobs run in this process, and are lost when it ends")
    try:
        yield
    finally:
        dispatching.cancel()
        scheduling.cancel()
        await asyncio.wait([dispatching, scheduling])
        await runner.drain()


class Runner:
    """Runs jobs, as many at a time as `QUEUES` says. See `run_jobs_here`."""

    def __init__(self, tasks: Iterable[Task[..., Any]], queue: TaskQueue, resources: Any) -> None:
        self._queue = queue
        self._table = queue.table
        self._waiting = queue.waiting
        self._settings = settings = queue.settings
        self._resources = resources
        self._periodic_tasks = [task for task in _validate(tasks, settings) if task.cron]
        self._rates = RateLimits()
        self._slots_used: Counter[str] = Counter()
        self._running: dict[asyncio.Task[None], Record] = {}
        self._threads = DaemonThreads()

    async def dispatch(self, *, until_idle: bool = False) -> None:
        """Start jobs whenever they are ready and have a slot.

        Args:
            until_idle: Return when no job is ready or running.
        """
        while True:
            self._waiting.news.clear()
            for name, slots in self._settings.queues.items():
                while self._slots_used[name] < slots and (record := self._waiting.take(name)):
                    self._start(record)
            if until_idle and not self._running:
                return
            await self._waiting.news.wait()

    async def schedule_periodic_tasks(self) -> None:
        """Keep the next run of each periodic task in the queue."""
        while True:
            now = datetime.now(self._settings.timezone)
            for task in self._periodic_tasks:
                try:
                    await self._queue.schedule(task, now)
                except QueueUnavailableError as error:
                    logger.warning("periodic task %s cannot be enqueued: %s", task.name, error)
            await asyncio.sleep(CRON_INTERVAL)

    async def drain(self) -> None:
        """Let jobs that are due or running end, then cancel what is left, and report it."""
        self._waiting.release_all()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.shutdown_grace):
                await self.dispatch(until_idle=True)
        unfinished = self._table.unfinished()
        for record in unfinished:
            if record.attempt is not None:
                record.attempt.interrupt(Interruption.SHUTDOWN)
            else:
                self._waiting.remove(record)
                self._table.finish(record, JobStatus.ABORTED, failure=ABORTED)
        while self._running:  # an attempt that ignores its cancellation is left behind
            await asyncio.wait(self._running)
        lost = Counter(each.task.name for each in unfinished if _is_lost(each))
        if lost:
            names = ", ".join(f"{name} ({count})" for name, count in lost.items())
            logger.warning("jobs that had not finished are lost: %s", names)
        if calls := left_behind():
            logger.warning("calls that go on although their jobs have ended: %d", calls)

    def _start(self, record: Record) -> None:
        self._slots_used[record.task.queue] += 1
        running = asyncio.create_task(self._run(record))
        self._running[running] = record
        running.add_done_callback(self._free_slot)

    def _free_slot(self, running: "asyncio.Task[None]") -> None:
        self._slots_used[self._running.pop(running).task.queue] -= 1
        self._waiting.news.set()

    async def _run(self, record: Record) -> None:
        if record.finished_at is not None:
            return  # it was aborted meanwhile
        waiting = self._waiting.count_limited(record.task.name)
        if seconds := self._rates.acquire(record.task, waiting):
            self._waiting.limit(record, seconds)
            return
        self._settle(record, await self._attempt(record))

    async def _attempt(self, record: Record) -> Outcome:
        settings = self._settings
        record.status = JobStatus.IN_PROGRESS
        record.attempts += 1
        record.started_at = datetime.now(UTC)
        late = time.time() - record.due - settings.job_expires
        if record.attempts == 1 and late > 0:
            return failure(JobExpiredError(f"it was due too long ago, by {late:.0f} s"))
        context = JobContext(self._resources, record.job_id, record.attempts, record.enqueued_at)
        limits = Limits(settings.job_timeout, settings.max_attempts, settings.max_result)
        record.attempt = Attempt(record.task, context, limits, self._threads, record.trace)
        try:
            return await record.attempt.run((), from_json(record.arguments))
        finally:
            record.attempt = None

    def _settle(self, record: Record, outcome: Outcome) -> None:
        """Store what becomes of a job."""
        name = record.task.name
        match outcome:
            case Success(document):
                self._table.finish(record, JobStatus.COMPLETE, result=document)
            case Failure():
                log_failure(record.job_id, name, record.attempts, outcome)
                self._table.finish(record, JobStatus.FAILED, failure=outcome)
                return
            case Again(delay, reason):
                logger.warning(
                    "job %s (%s) runs again in %.1f s: %s", record.job_id, name, delay, reason
                )
                record.status = JobStatus.QUEUED
                record.due = time.time() + delay
                self._waiting.put(record)
                return
            case Interrupted():
                self._table.finish(record, JobStatus.ABORTED, failure=ABORTED)
        seconds = (datetime.now(UTC) - (record.started_at or record.enqueued_at)).total_seconds()
        logger.info("job %s (%s) %s in %.3f s", record.job_id, name, record.status, seconds)


def _validate(tasks: Iterable[Task[..., Any]], settings: QueueSettings) -> list[Task[..., Any]]:
    valid = list(tasks)
    for name, count in Counter(task.name for task in valid).items():
        if count > 1:
            raise ValueError(f"two tasks have the name {name}")
    for task in valid:
        if task.queue not in settings.queues:
            raise ValueError(f"QUEUES must name {task.queue!r}, the queue of task {task.name}")
    return valid


def _is_lost(record: Record) -> bool:
    if record.started_at is None and record.job_id.startswith(PERIODIC):
        return False  # the next process schedules it again
    return record.status is JobStatus.ABORTED
