"""The table of jobs in this process's memory: bounded in number, in bytes and in time."""

import asyncio
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json

from .attempt import Attempt, Failure
from .errors import QueueUnavailableError
from .figures import Figures
from .models import Job, JobStatus
from .settings import QueueSettings
from .task import Task

FAILURES = {JobStatus.FAILED, JobStatus.ABORTED}
LATEST = datetime.max.replace(tzinfo=UTC, microsecond=0)


@dataclass(eq=False, slots=True)
class Record:
    """A job in the table.

    Attributes:
        job_id: Its id.
        task: Its task.
        arguments: Its arguments as JSON.
        due: When it may start, in seconds since 1970.
        fingerprint: The hash of its arguments, if it was enqueued under an idempotency key.
        status: Its state; `QUEUED` also while it is deferred.
        result: What the task returned, as JSON.
        error: What it failed with.
        error_is_public: Whether the job's owner may read that.
        traceback: Where that was raised.
        attempts: The number of attempts that have begun.
        enqueued_at: When it was enqueued.
        started_at: When its last attempt began.
        finished_at: When it finished.
        timer: Ends its wait, if it is not due yet.
        attempt: The running attempt.
        trace: Where its sender is in which trace, as `tracing.current_trace` says.
        owner: Whose it is; empty if it is the service's own.
    """

    job_id: str
    task: Task[..., Any]
    arguments: bytes
    due: float
    fingerprint: bytes = b""
    status: JobStatus = JobStatus.QUEUED
    result: bytes = b"null"
    error: str | None = None
    error_is_public: bool = True
    traceback: str = ""
    attempts: int = 0
    enqueued_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started_at: datetime | None = None
    finished_at: datetime | None = None
    timer: asyncio.TimerHandle | None = None
    attempt: Attempt | None = None
    trace: str = ""
    owner: str = ""

    @property
    def size(self) -> int:
        """The bytes that the table counts for this job."""
        texts = len(self.error or "") + len(self.traceback)
        return len(self.arguments) + len(self.result) + texts

    @property
    def state(self) -> JobStatus:
        """Its status as callers see it."""
        deferred = self.status is JobStatus.QUEUED and self.due > time.time()
        return JobStatus.DEFERRED if deferred else self.status

    @property
    def due_at(self) -> datetime:
        """When it may start."""
        return datetime.fromtimestamp(min(self.due, LATEST.timestamp()), UTC)

    def describe(self) -> Job:
        """Return the job as callers see it."""
        return self.summarize().model_copy(update={"result": from_json(self.result)})

    def summarize(self) -> Job:
        """Return the job without its result, which may be large."""
        return Job(
            job_id=self.job_id,
            status=self.state,
            error=self.error,
            error_is_public=self.error_is_public,
            function=self.task.name,
            attempts=self.attempts,
            enqueued_at=self.enqueued_at,
            started_at=self.started_at,
            finished_at=self.finished_at,
        )


class JobTable:
    """The jobs of this process.

    Args:
        settings: The queue's settings, read whenever they are needed.

    Attributes:
        figures: Count the jobs that have finished.
    """

    def __init__(self, settings: QueueSettings) -> None:
        self.figures = Figures()
        self._settings = settings
        self._unfinished: dict[str, Record] = {}
        self._finished: OrderedDict[str, Record] = OrderedDict()
        self._unfinished_bytes = 0
        self._finished_bytes = 0
        self._jobs_of = Counter[str]()  # unfinished ones, by owner
        self._bytes_of = Counter[str]()

    def find(self, job_id: str) -> Record | None:
        """Return a job, or None if it is unknown or was forgotten."""
        self._forget_expired()
        return self._unfinished.get(job_id) or self._finished.get(job_id)

    def find_holder(self, job_id: str) -> Record | None:
        """Return the job that holds a key; not one that failed or was aborted long enough ago.

        A `unique` job holds its arguments no longer than until then.
        """
        record = self.find(job_id)
        if record is not None and record.status in FAILURES and record.finished_at:
            age = datetime.now(UTC) - record.finished_at
            if record.task.unique or age.total_seconds() >= self._settings.reuse_failed_key:
                return None
        return record

    def unfinished(self) -> list[Record]:
        """Return the jobs that wait or run, in the order in which they were enqueued."""
        return list(self._unfinished.values())

    def records(self) -> list[Record]:
        """Return all jobs."""
        self._forget_expired()
        return [*self._unfinished.values(), *self._finished.values()]

    def add(self, *records: Record) -> None:
        """Store new jobs, all or none.

        Raises:
            QueueUnavailableError: The table is full of jobs that have not finished, or half of it is
                full of their owner's.
        """
        size = sum(record.size for record in records)
        jobs = len(self._unfinished) + len(records)
        if (
            jobs > self._settings.max_stored_jobs
            or self._unfinished_bytes + size > self._settings.max_stored_bytes
        ):
            raise QueueUnavailableError(
                f"{len(self._unfinished)} jobs are waiting or running, and no more fit into memory"
            )
        for owner in {record.owner for record in records if record.owner}:
            of_owner = [record.size for record in records if record.owner == owner]
            if (
                self._jobs_of[owner] + len(of_owner) > self._settings.max_stored_jobs / 2
                or self._bytes_of[owner] + sum(of_owner) > self._settings.max_stored_bytes / 2
            ):
                raise QueueUnavailableError(
                    f"{self._jobs_of[owner]} of the caller's jobs are waiting or running, "
                    "and no more than half of the memory is for one caller"
                )
        for record in records:
            self.forget(record.job_id)  # its predecessor, whose key is free again
            self._unfinished[record.job_id] = record
            self._count(record, 1)
        self._unfinished_bytes += size
        self._forget_expired()
        self._forget_surplus(keep=0)

    def finish(
        self,
        record: Record,
        status: JobStatus,
        *,
        result: bytes = b"null",
        failure: Failure | None = None,
    ) -> None:
        """Store a job's outcome."""
        del self._unfinished[record.job_id]
        self._count(record, -1)
        self._unfinished_bytes -= record.size
        record.status, record.result = status, result
        if failure is not None:
            record.error = f"{failure.type}: {failure.message}" if failure.message else failure.type
            record.error_is_public, record.traceback = failure.public, failure.traceback
        record.finished_at = datetime.now(UTC)
        self._finished[record.job_id] = record
        self._finished_bytes += record.size
        self._forget_surplus(keep=1)
        name = record.task.name
        self.figures.count(name, status, record.due, record.started_at, record.finished_at)

    def forget(self, job_id: str) -> None:
        """Forget a job if it has finished."""
        record = self._finished.pop(job_id, None)
        if record is not None:
            self._finished_bytes -= record.size

    def _count(self, record: Record, sign: int) -> None:
        if record.owner:
            self._jobs_of[record.owner] += sign
            self._bytes_of[record.owner] += sign * record.size
            if not self._jobs_of[record.owner]:
                del self._jobs_of[record.owner], self._bytes_of[record.owner]

    def _forget_expired(self) -> None:
        oldest = time.time() - self._settings.keep_result
        while self._finished:
            first = next(iter(self._finished.values()))
            if first.finished_at is None or first.finished_at.timestamp() > oldest:
                return
            self.forget(first.job_id)

    def _forget_surplus(self, keep: int) -> None:
        while len(self._finished) > keep and (
            len(self._unfinished) + len(self._finished) > self._settings.max_stored_jobs
            or self._unfinished_bytes + self._finished_bytes > self._settings.max_stored_bytes
        ):
            self.forget(next(iter(self._finished)))
