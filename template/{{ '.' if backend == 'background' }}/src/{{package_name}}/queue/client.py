"""The queue as the service uses it: enqueue tasks, look at jobs, abort them."""

import hashlib
import hmac
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, ParamSpec, Self
from uuid import uuid4

from fastapi import BackgroundTasks

from . import tracing
from .attempt import Failure, Interruption
from .errors import IdempotencyConflictError, PayloadTooLargeError
from .models import Job, JobStatus, QueueHealth, Receipt
from .monitor import Monitor
from .settings import QueueSettings
from .table import JobTable, Record
from .task import Task
from .waiting import Waiting

P = ParamSpec("P")
ABORTED = Failure("CancelledError", "", public=True)  # the error of an aborted job
PERIODIC = "cron:"  # how the ids of periodic jobs begin


class TaskQueue:
    """Enqueues tasks, and reports what has become of them.

    Enqueueing raises `InvalidArgumentError` where an argument does not fit the task,
    `PayloadTooLargeError`, and `QueueUnavailableError` when memory is full of unfinished jobs.

    Args:
        settings: The queue's settings.

    Attributes:
        monitor: For operators, the jobs of all owners.
    """

    def __init__(self, settings: QueueSettings) -> None:
        self.settings = settings
        self.table = JobTable(settings)
        self.waiting = Waiting()
        self.monitor = Monitor(settings, self.table, self.waiting)
        self._secret = secrets.token_bytes()
        self._background_tasks: BackgroundTasks | None = None
        self._key: str | None = None
        self._prefix = ""

    def after_response(self, background_tasks: BackgroundTasks) -> Self:
        """Return this queue for one request: what it enqueues starts when the response is sent.

        The jobs do not run as part of the request: they hold up neither its connection nor the end
        of the server. Where no response is sent, as after an error, they start within a second.
        """
        queue = self._copy()
        queue._background_tasks = background_tasks  # noqa: SLF001 - of this class
        return queue

    def owned_by(self, owner: str, /) -> Self:
        """Return this queue as one of its users may see it.

        What it enqueues belongs to this owner, whose name the ids begin with; idempotency keys and
        `unique` jobs are the owner's own. It knows the owner's jobs only, and of what they failed
        with only what was raised for the owner, as by `Discard`.
        """
        queue = self._copy()
        queue._prefix = f"{owner}-"  # noqa: SLF001 - of this class
        return queue

    def once(self, key: str | None, /) -> Self:
        """Return this queue with an idempotency key for the next call.

        The same task with the same key is one job, as long as its outcome is kept; `created` of the
        receipt says whether it is a new one. With other arguments, enqueueing raises
        `IdempotencyConflictError`. A key whose job failed or was aborted is free again after
        `REUSE_FAILED_KEY` seconds. Without a key, each call is a job of its own. A `unique` task takes
        no key.
        """
        queue = self._copy()
        queue._key = key  # noqa: SLF001 - of this class
        return queue

    async def enqueue(self, task: Task[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        """Run a task as soon as its queue has a free slot; from a route, after the response."""
        return self._send(self._record(task, args, kwargs, self._key))

    async def enqueue_in(
        self, delay: timedelta, task: Task[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Receipt:
        """Run a task after a delay; at once if it is negative."""
        record = self._record(task, args, kwargs, self._key)
        record.due += max(0, delay.total_seconds())
        return self._send(record)

    async def enqueue_at(
        self, when: datetime, task: Task[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Receipt:
        """Run a task at a time, which needs a timezone; at once if it has passed."""
        if when.tzinfo is None:
            raise TypeError("a naive datetime names no moment: give it a timezone")
        record = self._record(task, args, kwargs, self._key)
        record.due = max(record.due, when.timestamp())
        return self._send(record)

    async def enqueue_many(
        self, task: Task[..., Any], calls: Iterable[Mapping[str, Any]], /
    ) -> list[Receipt]:
        """Run a task once for each set of arguments; all are enqueued, or none."""
        keys = (None if self._key is None else f"{n}:{self._key}" for n in itertools.count())
        records = [
            self._record(task, (), call, key) for call, key in zip(calls, keys, strict=False)
        ]
        with tracing.sending(task.name, task.queue, len(records)):
            for record in records:
                record.trace = tracing.current_trace()
            return self.submit(*records)

    async def schedule(self, task: Task[..., Any], now: datetime, /) -> None:
        """Enqueue the next run of a periodic task, once however often this is called."""
        if task.cron is None:
            raise TypeError(f"{task.name} has no cron schedule")
        self.waiting.schedules[task.name] = task.cron
        due = task.cron.next_after(now).timestamp()
        self.submit(Record(f"{PERIODIC}{task.name}:{due:.0f}", task, b"{}", due))

    async def job(self, job_id: str, /) -> Job | None:
        """Return the state of a job, or None if it is unknown or was forgotten."""
        record = self._find(job_id)
        if record is None:
            return None
        job = record.describe()
        return job.for_owner() if self._prefix else job

    async def abort(self, job_id: str, /) -> bool:
        """Abort a job, deferred, queued or running; return False if there is no such job to abort.

        A running job is cancelled. A `def` task cannot be: it runs on in its thread.
        """
        record = self._find(job_id)
        if record is None or record.finished_at is not None:
            return False
        if record.attempt is not None:
            record.attempt.interrupt(Interruption.ABORT)
        else:
            self.waiting.withdraw(record)
            self.table.finish(record, JobStatus.ABORTED, failure=ABORTED)
        return True

    async def health(self) -> QueueHealth:
        """Return the number of unfinished jobs, and how long the oldest due one has waited.

        This process is the one worker.
        """
        oldest = self.waiting.oldest_due()
        return QueueHealth(
            depth=len(self.table.unfinished()),
            oldest_seconds=None if oldest is None else max(0.0, time.time() - oldest),
            workers=int(self.waiting.has_runner()),
        )

    def submit(self, *records: Record) -> list[Receipt]:
        """Enqueue jobs whose ids are not in use, all or none."""
        new: dict[str, Record] = {}
        receipts: list[Receipt] = []
        for record in records:
            holder = new.get(record.job_id) or self.table.find_holder(record.job_id)
            if holder is None:
                new[record.job_id] = record
            elif holder.fingerprint != record.fingerprint:
                raise IdempotencyConflictError(record.job_id)
            receipts.append(Receipt(record.job_id, created=holder is None))
        self.table.add(*new.values())
        for record in new.values():
            if self._background_tasks is None or record.due > time.time():
                self.waiting.put(record)
            else:
                self.waiting.hold(record)
                self._background_tasks.add_task(self.waiting.release, record)
        return receipts

    def _send(self, record: Record) -> Receipt:
        with tracing.sending(record.task.name, record.task.queue):
            tracing.note_job(record.job_id)
            record.trace = tracing.current_trace()
            [receipt] = self.submit(record)
        return receipt

    def _copy(self) -> Self:
        queue = object.__new__(type(self))
        queue.__dict__.update(self.__dict__)  # at a tenth of what `copy.copy` takes
        return queue

    def _record(
        self,
        task: Task[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        key: str | None,
    ) -> Record:
        arguments = task.arguments.encode(args, kwargs)
        if len(arguments) > self.settings.max_payload:
            raise PayloadTooLargeError(
                f"{task.name}: {len(arguments)} bytes of arguments, "
                f"{self.settings.max_payload} allowed"
            )
        fingerprint = b""
        unique_key = task.unique_key(*args, **kwargs)
        if unique_key is not None:
            if key is not None:
                raise TypeError(f"{task.name} is unique by its arguments: it takes no key")
            job_id = self._job_id(f"{task.name}:unique:{unique_key}")
        elif key is not None:
            job_id = self._job_id(f"{task.name}:key:{key}")
            canonical = task.arguments.canonical(task.arguments.names, args, kwargs)
            fingerprint = hashlib.sha256(canonical.encode()).digest()
        else:
            job_id = self._prefix + uuid4().hex
        return Record(job_id, task, arguments, time.time(), fingerprint, owner=self._prefix)

    def _job_id(self, name: str) -> str:
        """Return an id that is the same for the same name, and cannot be guessed from it."""
        text = f"{self._prefix}{name}"
        return self._prefix + hmac.new(self._secret, text.encode(), "sha256").hexdigest()[:32]

    def _find(self, job_id: str) -> Record | None:
        return self.table.find(job_id) if job_id.startswith(self._prefix) else None


@asynccontextmanager
async def open_queue(settings: QueueSettings) -> AsyncGenerator[TaskQueue]:
    """Open the process's one queue; `run_jobs_here` runs its jobs."""
    yield TaskQueue(settings)
