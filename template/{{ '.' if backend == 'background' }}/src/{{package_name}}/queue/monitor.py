"""The monitor: what operators see of the jobs in this process, and what they do with them."""

import asyncio
import heapq
import os
import socket
import time
from collections import Counter
from datetime import datetime

from pydantic_core import from_json

from .models import JobStatus
from .monitoring import (
    JobDetails,
    ListedJob,
    Overview,
    PeriodicTask,
    QueueState,
    RunningJob,
    TaskFigures,
    WorkerState,
)
from .settings import QueueSettings
from .table import JobTable, Record
from .waiting import Waiting

WAITING = (JobStatus.DEFERRED, JobStatus.QUEUED)
SLICE = 1_000_000  # bytes of jobs that a search reads before requests and jobs go on


class Monitor:
    """Shows operators the jobs of this process, and retries, deletes and pauses for them.

    It knows the jobs of all owners. A job that failed is dead as long as it is in the table.

    Args:
        settings: The queue's settings.
        table: The jobs.
        waiting: Those of them that wait.
    """

    def __init__(self, settings: QueueSettings, table: JobTable, waiting: Waiting) -> None:
        self._settings = settings
        self._table = table
        self._waiting = waiting

    async def overview(self) -> Overview:
        """Return the state of the queue; this process is the one worker."""
        figures = self._table.figures
        unfinished = [(each.state, each) for each in self._table.unfinished()]
        running = [each for state, each in unfinished if state is JobStatus.IN_PROGRESS]
        by_queue = Counter((each.task.queue, state) for state, each in unfinished)
        counts = figures.finished() + Counter(state for state, _ in unfinished)
        now = datetime.now(self._settings.timezone)
        return Overview(
            counts={status: counts[status] for status in JobStatus},
            dead=sum(each.status is JobStatus.FAILED for each in self._table.records()),
            minutes=figures.minutes(now),
            queues=[self._queue(name, by_queue) for name in self._settings.queues],
            workers=[_this_worker(running)] if self._waiting.has_runner() else [],
            periodic=[
                PeriodicTask(function=name, schedule=cron.fields, next_run=cron.next_after(now))
                for name, cron in self._waiting.schedules.items()
            ],
            tasks=sorted({each.task.name for _, each in unfinished} | figures.tasks.keys()),
        )

    async def jobs(
        self,
        *,
        status: JobStatus | None = None,
        task: str | None = None,
        search: str = "",
        limit: int = 50,
    ) -> list[ListedJob]:
        """Return jobs: waiting ones by when they are due, others the newest first.

        Args:
            status: Only jobs in this state.
            task: Only jobs of this task.
            search: Only jobs that have this text in their id, their arguments as JSON, or the name
                of their task, in upper or lower case.
            limit: At most so many.
        """
        found: list[Record] = []
        text = search.casefold()
        read = 0
        for record in self._table.records():
            if (
                status in (None, record.state)
                and task in (None, record.task.name)
                and (not text or _has(record, text))
            ):
                found.append(record)
            read += record.size
            if text and read > SLICE:
                read = 0
                await asyncio.sleep(0)
        if status in WAITING:
            first = heapq.nsmallest(limit, found, key=lambda each: each.due)
        else:
            first = heapq.nlargest(limit, found, key=_last_event)
        return [ListedJob(**each.summarize().model_dump(), due_at=each.due_at) for each in first]

    async def details(self, job_id: str) -> JobDetails | None:
        """Return all that is known of a job, or None if it is unknown or was forgotten."""
        record = self._table.find(job_id)
        if record is None:
            return None
        return JobDetails(
            **record.describe().model_dump(),
            arguments=from_json(record.arguments),
            traceback=record.traceback,
            queue=record.task.queue,
            due_at=record.due_at,
            dead=record.status is JobStatus.FAILED,
        )

    async def retry(self, job_id: str) -> bool:
        """Enqueue a job that failed again, under its id; return False if there is no such job."""
        dead = self._find_dead(job_id)
        if dead is None:
            return False
        record = Record(job_id, dead.task, dead.arguments, time.time(), dead.fingerprint)
        record.trace, record.owner = dead.trace, dead.owner
        self._table.add(record)
        self._waiting.put(record)
        return True

    async def delete(self, job_id: str) -> bool:
        """Forget a job that failed; return False if there is no such job."""
        dead = self._find_dead(job_id)
        if dead is not None:
            self._table.forget(job_id)
        return dead is not None

    async def pause(self, queue: str) -> None:
        """Begin no more jobs of a queue; those that run go on.

        Raises:
            ValueError: There is no such queue.
        """
        self._check(queue)
        self._waiting.paused.add(queue)

    async def resume(self, queue: str) -> None:
        """Begin the jobs of a queue again.

        Raises:
            ValueError: There is no such queue.
        """
        self._check(queue)
        self._waiting.paused.discard(queue)
        self._waiting.news.set()

    async def figures(self) -> dict[str, TaskFigures]:
        """Return the figures of each task by its name, since this process began."""
        return self._table.figures.tasks

    def _queue(self, name: str, counts: Counter[tuple[str, JobStatus]]) -> QueueState:
        oldest = self._waiting.oldest_due(name)
        return QueueState(
            name=name,
            waiting=sum(counts[name, status] for status in WAITING),
            running=counts[name, JobStatus.IN_PROGRESS],
            oldest_seconds=None if oldest is None else max(0.0, time.time() - oldest),
            paused=name in self._waiting.paused,
        )

    def _find_dead(self, job_id: str) -> Record | None:
        record = self._table.find(job_id)
        return record if record is not None and record.status is JobStatus.FAILED else None

    def _check(self, queue: str) -> None:
        if queue not in self._settings.queues:
            raise ValueError(f"QUEUES does not name {queue!r}")


def _this_worker(running: list[Record]) -> WorkerState:
    jobs = [
        RunningJob(job_id=each.job_id, function=each.task.name, started_at=each.started_at)
        for each in running
    ]
    return WorkerState(name=f"{socket.gethostname()}:{os.getpid()}", jobs=jobs)


def _has(record: Record, text: str) -> bool:
    texts = record.job_id, record.task.name, record.arguments.decode()
    return any(text in each.casefold() for each in texts)


def _last_event(record: Record) -> datetime:
    return record.finished_at or record.started_at or record.enqueued_at
