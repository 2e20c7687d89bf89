"""The job records: one row for each job, in a table of the queue's own.

A row is written before its message is sent, when an attempt begins, and when it ends. It decides
what a message does: Celery may deliver one twice, or late, and a row runs once.
"""

import json
import logging
import secrets
import threading
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    Text,
    case,
    create_engine,
    delete,
    event,
    func,
    insert,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateIndex, CreateTable

from .attempt import Failure
from .models import DeadJob, Job, JobStatus
from .settings import QueueSettings

LIFETIME = 3  # health intervals without a sign of life until a worker counts as lost
WITHDRAWN = "withdrawn"  # its message may have been sent although enqueueing failed: it never runs
UNKNOWN_CANVAS = ""  # of a workflow's job that no worker has begun: Celery alone sends it
CLOCKS = 10  # seconds by which those of two hosts may differ
PUBLISHING = 60  # seconds until a deferred job is published again whose publisher was lost
logger = logging.getLogger(__name__)
UNFINISHED = (JobStatus.DEFERRED, JobStatus.QUEUED, JobStatus.IN_PROGRESS)
metadata = MetaData()

jobs = Table(
    "queue_jobs",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("task", String(200), nullable=False),
    Column("queue", String(50), nullable=False),
    Column("positional", Text, nullable=False),
    Column("arguments", Text, nullable=False),
    Column("trace", Text, nullable=False),  # as `tracing.current_trace` says
    Column("canvas", Text),  # of a workflow's job: Celery's options of its message
    Column("status", String(20), nullable=False),
    Column("due_at", Float, nullable=False),
    Column("leased_until", Float),  # by a process that publishes it
    Column("published_at", Float, nullable=False),
    Column("enqueued_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("attempts", Integer, nullable=False),
    Column("worker", String(200)),  # that runs the last attempt
    Column("has_message", Boolean, nullable=False),  # at the broker, for when the worker is lost
    Column("abort", Boolean, nullable=False),
    Column("result", Text),
    Column("error_type", Text),
    Column("error_message", Text),
    Column("error_public", Boolean, nullable=False),
    Column("traceback", Text),
)
_free_at = func.coalesce(jobs.c.leased_until, jobs.c.due_at)
by_status = Index("queue_jobs_by_status", jobs.c.status, jobs.c.due_at)
by_end = Index("queue_jobs_by_end", jobs.c.finished_at)

workflows = Table(
    "queue_workflows",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("kind", String(20), nullable=False),
    Column("tasks", Text, nullable=False),
    Column("jobs", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)
workers = Table(
    "queue_workers",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("seen_at", Float, nullable=False),
)
facts = Table(
    "queue_facts",
    metadata,
    Column("name", String(50), primary_key=True),
    Column("value", Text, nullable=False),
)


@dataclass(slots=True)
class NewJob:
    """A job as it is enqueued; `arguments` is a JSON object."""

    id: str
    task: str
    queue: str
    arguments: str
    due_at: float = 0
    kind: str = ""  # of its id: "key" or "unique" where it stands for more than one call
    canvas: str | None = None
    positional: str = "[]"
    trace: str = ""
    leased_until: float | None = None  # of a deferred one, by this process, which publishes it


@dataclass(frozen=True, slots=True)
class Known:
    """A job that existed when it was to be enqueued; `again` if its message must be sent again."""

    arguments: str
    again: bool


@dataclass(frozen=True, slots=True)
class Begun:
    """An attempt that may run.

    Its arguments are the record's, but for a step of a workflow: a message of an aborted job may be
    left, whose key has another job by now.
    """

    attempt: int
    enqueued_at: datetime
    late: float  # seconds since the job was due, at its first attempt
    trace: str
    arguments: tuple[list[Any], dict[str, Any]] | None


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that has ended before, as its message's first delivery could not tell the broker."""

    status: JobStatus
    result: str | None
    error: str | None


class Store:
    """The queue's tables.

    Args:
        settings: The queue's settings.
        worker: The name of the worker that uses it, if one does.
    """

    def __init__(self, settings: QueueSettings, worker: str = "") -> None:
        self._settings = settings
        self._worker = worker
        url = settings.sqlalchemy_url()
        options: dict[str, Any] = {"pool_pre_ping": True, "hide_parameters": True}
        self._sqlite = url.startswith("sqlite")
        if not self._sqlite:
            options["connect_args"] = {"connect_timeout": 2, "tcp_user_timeout": 15_000}
            options["pool_timeout"] = None
        self.engine: Engine = create_engine(url, **options)
        self._insert = sqlite.insert if self._sqlite else postgresql.insert
        self._turn = threading.Lock()  # SQLite's writers take turns, best without trying
        self._tables = False
        self._signed_at, self._sure_at = time.monotonic(), 0.0
        if self._sqlite:
            event.listen(self.engine, "connect", _share_sqlite)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Generator[Connection]:
        """Open a connection whose statements see what is committed."""
        self._create_tables()
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Generator[Connection]:
        """Open a transaction."""
        self._create_tables()
        if not self._sqlite:
            with self.engine.begin() as connection:
                yield connection
            return
        with self._turn, self.engine.begin() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    def secret(self) -> str:
        """Return what ids are derived with, which every process of the service agrees on."""
        with self.writing() as connection:
            new = {"name": "secret", "value": secrets.token_hex()}
            connection.execute(self._insert(facts).values(new).on_conflict_do_nothing())
            found = select(facts.c.value).where(facts.c.name == "secret")
            return str(connection.execute(found).scalar_one())

    def add(self, new: Sequence[NewJob]) -> list[Known | None]:
        """Store jobs, in one transaction; return what was known of each, None if it is new."""
        with self.writing() as connection:
            return [self._add_one(connection, job) for job in new]

    def _add_one(self, connection: Connection, new: NewJob) -> Known | None:
        now = time.time()
        row = {
            "id": new.id,
            "task": new.task,
            "queue": new.queue,
            "positional": new.positional,
            "arguments": new.arguments,
            "trace": new.trace,
            "canvas": new.canvas,
            "status": JobStatus.DEFERRED if new.due_at > now else JobStatus.QUEUED,
            "due_at": max(new.due_at, now),
            "leased_until": None,
            "published_at": now,
            "enqueued_at": now,
            "started_at": None,
            "finished_at": None,
            "attempts": 0,
            "worker": None,
            "has_message": True,
            "abort": False,
            "result": None,
            "error_type": None,
            "error_message": None,
            "error_public": False,
            "traceback": None,
        }
        adding = self._insert(jobs).values(row).on_conflict_do_nothing().returning(jobs.c.id)
        if connection.execute(adding).first():
            return None
        stored = _locked(connection, new.id)
        if stored is None:  # another process has replaced it just now
            return self._add_one(connection, new)
        if self._is_free(stored, new.kind, now):
            connection.execute(delete(jobs).where(jobs.c.id == new.id))
            connection.execute(insert(jobs).values(row))
            return None
        waiting = stored.status == JobStatus.QUEUED and stored.attempts == 0
        return Known(stored.arguments, again=waiting and now > stored.enqueued_at + 5)

    def _is_free(self, stored: Row[Any], kind: str, now: float) -> bool:
        """Return whether an id may be used again; that of a `unique` job which failed, at once."""
        if stored.status == WITHDRAWN:
            return True
        if stored.finished_at is None:
            return False
        failed = stored.status in {JobStatus.FAILED, JobStatus.ABORTED}
        if failed and kind == "unique":
            return True
        keep = self._settings.reuse_failed_key if failed else self._settings.keep_result
        return bool(now > stored.finished_at + keep)

    def withdraw(self, job_ids: Iterable[str]) -> None:
        """Take back jobs that could not be published: should a message arrive, it does nothing."""
        self._finish_many(job_ids, WITHDRAWN)

    def _finish_many(self, job_ids: Iterable[str], status: str) -> None:
        values = {"status": status, "finished_at": time.time()}
        with self.writing() as connection:
            for job_id in job_ids:
                waiting = jobs.c.status.in_([JobStatus.QUEUED, JobStatus.DEFERRED])
                connection.execute(update(jobs).where(jobs.c.id == job_id, waiting).values(values))

    def job(self, job_id: str) -> Job | None:
        """Return the state of a job."""
        with self.reading() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
        if row is None or row.status == WITHDRAWN or self._expired(row):
            return None
        return Job(**_described(row), error_is_public=row.error_public)

    def _expired(self, row: Row[Any]) -> bool:
        failed = row.status == JobStatus.FAILED
        keep = self._settings.keep_dead if failed else self._settings.keep_result
        return row.finished_at is not None and time.time() > row.finished_at + keep

    def begin(
        self, new: NewJob, *, redelivered: bool, is_known: bool = True
    ) -> Begun | Ended | None:
        """Begin an attempt; None if this message must do nothing.

        A broker that starts again redelivers the messages of jobs that go on: their workers cannot
        acknowledge them any more. They do nothing, and `recover` is there for their jobs.

        A job that may not be known, as its message was not sent by `TaskQueue`, gets its row here. One
        that was known has been deleted.
        """
        now = time.time()
        with self.writing() as connection:
            row = _locked(connection, new.id)
            if row is None and is_known:
                logger.warning("job %s (%s) has no record, and does not run", new.id, new.task)
                return None
            if row is None:
                self._add_one(connection, new)
                row = _locked(connection, new.id)
                assert row is not None  # noqa: S101 - it was added in this transaction
            if row.finished_at is not None:
                if row.status == WITHDRAWN or not redelivered:
                    return None
                return Ended(JobStatus(row.status), row.result, _error(row))
            if self._goes_on(connection, row, redelivered=redelivered):
                return None
            change: dict[str, Any] = {
                "status": JobStatus.IN_PROGRESS,
                "started_at": now,
                "attempts": row.attempts + 1,
                "worker": self._worker,
                "has_message": True,
                "leased_until": None,
                "canvas": new.canvas,
            }
            if new.canvas is not None:  # the result of the step before is among its arguments
                change |= {"positional": new.positional, "arguments": new.arguments}
            if row.abort:
                change = {"status": JobStatus.ABORTED, "finished_at": now}
            connection.execute(update(jobs).where(jobs.c.id == new.id).values(change))
        if row.abort:
            return Ended(JobStatus.ABORTED, None, None)
        late = 0 if row.attempts else now - row.due_at
        own: tuple[list[Any], dict[str, Any]] | None = None
        if new.canvas is None:
            own = json.loads(row.positional), json.loads(row.arguments)
        return Begun(row.attempts + 1, to_datetime(row.enqueued_at), late, row.trace, own)

    def _goes_on(self, connection: Connection, row: Row[Any], *, redelivered: bool) -> bool:
        """Return whether a job runs, or will run again, without this message."""
        if row.status == JobStatus.DEFERRED:
            return bool(row.due_at > time.time() + (0 if redelivered else CLOCKS))
        if row.status != JobStatus.IN_PROGRESS:
            return False
        if redelivered:
            if not self._lives(connection, row.worker):
                return False
            connection.execute(update(jobs).where(jobs.c.id == row.id).values(has_message=False))
        return True

    def complete(self, job_id: str, result: str) -> None:
        """Store a result."""
        self._end(job_id, status=JobStatus.COMPLETE, result=result, finished_at=time.time())

    def fail(self, job_id: str, failure: Failure) -> None:
        """Make a job a dead one."""
        self._end(job_id, **_failed(failure))

    def end_aborted(self, job_id: str) -> None:
        """Mark a job as aborted whose attempt was cancelled."""
        self._end(job_id, status=JobStatus.ABORTED, finished_at=time.time())

    def defer(self, job_id: str, due_at: float, canvas: str | None) -> None:
        """Let a job run again later."""
        values = {"status": JobStatus.DEFERRED, "due_at": due_at, "leased_until": None}
        self._end(job_id, **values, canvas=canvas)

    def release(self, due: Sequence[NewJob]) -> None:
        """Let another process publish deferred jobs."""
        with self.writing() as connection:
            for job in due:
                connection.execute(update(jobs).where(*_leased(job)).values(leased_until=None))

    def give_back(self, job_id: str) -> None:
        """Let another worker run a job whose attempt was cut short, which is no attempt."""
        status = case((jobs.c.has_message, JobStatus.QUEUED), else_=JobStatus.DEFERRED)
        attempts = jobs.c.attempts - 1
        self._end(job_id, status=status, attempts=attempts, published_at=time.time())

    def _end(self, job_id: str, **values: Any) -> None:
        """Store how an attempt ended, unless another worker has begun one since."""
        mine = jobs.c.finished_at.is_(None), jobs.c.worker == self._worker
        self._change(job_id, *mine, **values)

    def _change(self, job_id: str, *only: ColumnElement[bool], **values: Any) -> None:
        with self.writing() as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id, *only).values(values))

    def abort(self, job_id: str) -> bool:
        """Abort a job that waits, or ask the worker that runs it to; False if there is none."""
        with self.writing() as connection:
            row = _locked(connection, job_id)
            if row is None or row.finished_at is not None:
                return False
            change: dict[str, Any] = {"abort": True}
            if row.status != JobStatus.IN_PROGRESS:
                change = {"status": JobStatus.ABORTED, "finished_at": time.time()}
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(change))
            return True

    def to_be_aborted(self, running: Sequence[str]) -> list[str]:
        """Return those of these jobs that are to be aborted."""
        with self.reading() as connection:
            found = select(jobs.c.id).where(jobs.c.id.in_(running), jobs.c.abort)
            return list(connection.execute(found).scalars())

    def due(self, most: int) -> list[NewJob]:
        """Take deferred jobs that are due, which are then this process's to publish."""
        now = time.time()
        leased_until = now + PUBLISHING
        is_due = (*self._deferred(), _free_at <= now)
        with self.reading() as connection:
            if connection.execute(select(jobs.c.id).where(*is_due).limit(1)).first() is None:
                return []
        with self.writing() as connection:
            found = select(jobs).where(*is_due).order_by(jobs.c.due_at).limit(most)
            rows = connection.execute(found.with_for_update(skip_locked=True)).all()
            ids = [row.id for row in rows]
            lease = update(jobs).where(jobs.c.id.in_(ids))
            connection.execute(lease.values(leased_until=leased_until))
        return [_new_job(row, leased_until) for row in rows]

    def next_due(self) -> float | None:
        """Return when the next deferred job is due."""
        with self.reading() as connection:
            first = select(func.min(_free_at)).where(*self._deferred())
            moment: float | None = connection.execute(first).scalar()
            return moment

    def _deferred(self) -> tuple[ColumnElement[bool], ...]:
        """Select deferred jobs of the queues that this process knows."""
        return jobs.c.status == JobStatus.DEFERRED, jobs.c.queue.in_(self._settings.queues)

    def published(self, due: NewJob) -> None:
        """Mark a deferred job as queued, unless its message has arrived already."""
        with self.writing() as connection:
            now = time.time()
            values = {"status": JobStatus.QUEUED, "leased_until": None, "published_at": now}
            connection.execute(update(jobs).where(*_leased(due)).values(values))

    def dead_jobs(self, limit: int, offset: int) -> list[DeadJob]:
        """Return dead jobs, the newest first."""
        found = select(jobs).where(jobs.c.status == JobStatus.FAILED)
        found = found.order_by(jobs.c.finished_at.desc()).limit(limit).offset(offset)
        with self.reading() as connection:
            return [_dead_job(row) for row in connection.execute(found)]

    def dead_job(self, job_id: str) -> DeadJob | None:
        """Return a dead job."""
        found = select(jobs).where(jobs.c.id == job_id, jobs.c.status == JobStatus.FAILED)
        with self.reading() as connection:
            row = connection.execute(found).one_or_none()
        return _dead_job(row) if row else None

    def revive(self, job_id: str) -> NewJob | None:
        """Make a dead job a deferred one that this process is to publish.

        Raises:
            ValueError: It cannot be published.
        """
        with self.writing() as connection:
            row = _locked(connection, job_id)
            if row is None or row.status != JobStatus.FAILED:
                return None
            if row.canvas == UNKNOWN_CANVAS:
                raise ValueError("No worker has begun this workflow: start it again")
            if row.queue not in self._settings.queues:
                raise ValueError(f"QUEUES has no queue {row.queue!r}")
            leased_until = time.time() + PUBLISHING
            values = {
                "status": JobStatus.DEFERRED,
                "due_at": time.time(),
                "leased_until": leased_until,
                "attempts": 0,
                "abort": False,
                "started_at": None,
                "finished_at": None,
                "error_type": None,
                "error_message": None,
                "error_public": False,
                "traceback": None,
            }
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(values))
            return _new_job(row, leased_until)

    def forget(self, job_id: str) -> bool:
        """Delete a dead job's row."""
        with self.writing() as connection:
            dead = jobs.c.id == job_id, jobs.c.status == JobStatus.FAILED
            return bool(connection.execute(delete(jobs).where(*dead)).rowcount)

    def count(self, *statuses: str) -> int:
        """Return how many jobs have one of these statuses."""
        found = select(func.count()).select_from(jobs).where(jobs.c.status.in_(statuses))
        with self.reading() as connection:
            return int(connection.execute(found).scalar_one())

    def oldest_due(self) -> float | None:
        """Return since when the oldest queued job is due."""
        found = select(func.min(jobs.c.due_at)).where(jobs.c.status == JobStatus.QUEUED)
        with self.reading() as connection:
            moment: float | None = connection.execute(found).scalar()
            return moment

    def sign(self) -> None:
        """Show a sign of life of this worker."""
        values = {"name": self._worker, "seen_at": time.time()}
        sign = self._insert(workers).values(values)
        with self.writing() as connection:
            connection.execute(sign.on_conflict_do_update(index_elements=["name"], set_=values))
        if self._has_not_signed():
            self._sure_at = time.monotonic() + LIFETIME * self._settings.health_interval
        self._signed_at = time.monotonic()

    def _has_not_signed(self) -> bool:
        return time.monotonic() > self._signed_at + 2 * self._settings.health_interval

    def recover(self) -> None:
        """Let jobs run again that have no message, and whose workers are lost."""
        lost = (
            jobs.c.status == JobStatus.IN_PROGRESS,
            ~jobs.c.has_message,
            jobs.c.worker.not_in(select(workers.c.name).where(self._is_alive())),
        )
        with self.writing() as connection:
            values = {"status": JobStatus.DEFERRED, "due_at": time.time(), "leased_until": None}
            connection.execute(update(jobs).where(*lost).values(values))

    def queues_to_check(self) -> list[str]:
        """Return the queues with jobs whose messages are overdue."""
        with self.reading() as connection:
            found = select(jobs.c.queue).where(*self._overdue()).distinct()
            return list(connection.execute(found).scalars())

    def defer_overdue(self, queue: str) -> None:
        """Let jobs be published again whose messages are overdue, though the broker has no more."""
        overdue = jobs.c.queue == queue, *self._overdue()
        with self.writing() as connection:
            values = {"status": JobStatus.DEFERRED, "leased_until": None}
            connection.execute(update(jobs).where(*overdue).values(values))

    def _overdue(self) -> tuple[ColumnElement[bool], ...]:
        long_ago = time.time() - self._settings.visibility_timeout
        lives = jobs.c.worker.in_(select(workers.c.name).where(self._is_alive()))
        begun = (jobs.c.status == JobStatus.IN_PROGRESS) & (jobs.c.started_at < long_ago) & ~lives
        waits = or_(jobs.c.status == JobStatus.QUEUED, begun)
        sent_here = jobs.c.canvas.is_distinct_from(UNKNOWN_CANVAS)
        old = jobs.c.published_at < long_ago
        return jobs.c.queue.in_(self._settings.queues), old, sent_here, waits

    def _lives(self, connection: Connection, worker: str) -> bool:
        found = select(workers.c.name).where(workers.c.name == worker, self._is_alive())
        return worker == self._worker or connection.execute(found).first() is not None

    def _is_alive(self) -> ColumnElement[bool]:
        if self._worker and (self._has_not_signed() or time.monotonic() < self._sure_at):
            return true()  # if this worker could not sign, neither could the others
        return workers.c.seen_at > time.time() - LIFETIME * self._settings.health_interval

    def sign_off(self) -> None:
        """Forget this worker, which ends."""
        with self.writing() as connection:
            connection.execute(delete(workers).where(workers.c.name == self._worker))

    def living_workers(self) -> list[str]:
        """Return the workers that have shown a sign of life of late."""
        found = select(workers.c.name).where(self._is_alive())
        with self.reading() as connection:
            return list(connection.execute(found).scalars())

    def expired(self, most: int) -> list[str]:
        """Return jobs that no worker began in time: the broker may have lost their messages."""
        oldest = time.time() - self._settings.job_expires
        late = jobs.c.status == JobStatus.QUEUED, jobs.c.due_at < oldest
        with self.reading() as connection:
            return list(connection.execute(select(jobs.c.id).where(*late).limit(most)).scalars())

    def expire(self, job_id: str, failure: Failure) -> None:
        """Make a job a dead one that is still queued."""
        self._change(job_id, jobs.c.status == JobStatus.QUEUED, **_failed(failure))

    def purge(self) -> None:
        """Delete the rows of jobs, workflows and workers that are no longer kept."""
        settings, now = self._settings, time.time()
        failed = jobs.c.status == JobStatus.FAILED
        old = or_(
            ~failed & (jobs.c.finished_at < now - settings.keep_result),
            failed & (jobs.c.finished_at < now - settings.keep_dead),
        )
        kept = now - max(settings.keep_result, settings.keep_dead)
        with self.writing() as connection:
            connection.execute(delete(jobs).where(old))
            connection.execute(delete(workflows).where(workflows.c.created_at < kept))
            lost = workers.c.seen_at < now - 10 * settings.health_interval, ~self._is_alive()
            connection.execute(delete(workers).where(*lost))

    def add_workflow(self, workflow_id: str, kind: str, steps: Sequence[tuple[str, str]]) -> None:
        """Store a workflow: the task and the job's id of each step."""
        row = {
            "id": workflow_id,
            "kind": kind,
            "tasks": json.dumps([task for task, _ in steps]),
            "jobs": json.dumps([job_id for _, job_id in steps]),
            "created_at": time.time(),
        }
        with self.writing() as connection:
            connection.execute(insert(workflows).values(row))

    def jobs_of(self, job_ids: Sequence[str]) -> list[Job]:
        """Return the states of those jobs that are known, in this order."""
        return [job for job in map(self.job, job_ids) if job]

    def drop_workflow(self, workflow_id: str) -> None:
        """Forget a workflow that could not be published."""
        with self.writing() as connection:
            connection.execute(delete(workflows).where(workflows.c.id == workflow_id))

    def workflow(self, workflow_id: str) -> tuple[str, list[str], list[str]] | None:
        """Return a workflow's kind, the names of its tasks, and the ids of its jobs."""
        with self.reading() as connection:
            found = select(workflows).where(workflows.c.id == workflow_id)
            row = connection.execute(found).one_or_none()
        return (row.kind, json.loads(row.tasks), json.loads(row.jobs)) if row else None

    def _create_tables(self) -> None:
        if self._tables:
            return
        with self._turn:
            if self._sqlite:
                self._settings.data_dir.mkdir(parents=True, exist_ok=True)
            for attempt in (1, 2):
                try:
                    with self.engine.begin() as connection:
                        _create_missing(connection)
                except IntegrityError:  # PostgreSQL: another process is creating them just now
                    if attempt == 2:  # noqa: PLR2004
                        raise
                else:
                    break
            self._tables = True


def to_datetime(moment: float) -> datetime:
    """Return a moment as callers see it."""
    return datetime.fromtimestamp(moment, UTC)


def _create_missing(connection: Connection) -> None:
    for table in metadata.sorted_tables:
        connection.execute(CreateTable(table, if_not_exists=True))
        for index in table.indexes:
            connection.execute(CreateIndex(index, if_not_exists=True))


def _locked(connection: Connection, job_id: str) -> Row[Any] | None:
    found = select(jobs).where(jobs.c.id == job_id).with_for_update()
    return connection.execute(found).one_or_none()


def _leased(job: NewJob) -> tuple[ColumnElement[bool], ...]:
    """Select a deferred job for as long as this process is the one that publishes it.

    It is not when the message was faster: an attempt may have ended by then, and deferred the job.
    """
    waiting = jobs.c.id == job.id, jobs.c.status == JobStatus.DEFERRED
    return *waiting, jobs.c.leased_until == job.leased_until


def _new_job(row: Row[Any], leased_until: float) -> NewJob:
    return NewJob(
        row.id,
        row.task,
        row.queue,
        row.arguments,
        due_at=row.due_at,
        canvas=row.canvas,
        positional=row.positional,
        leased_until=leased_until,
    )


def _failed(failure: Failure) -> dict[str, Any]:
    return {
        "status": JobStatus.FAILED,
        "error_type": failure.type,
        "error_message": failure.message.replace("\0", "\\0"),  # which PostgreSQL does not store
        "error_public": failure.public,
        "traceback": failure.traceback.replace("\0", "\\0"),
        "finished_at": time.time(),
    }


def _error(row: Row[Any]) -> str | None:
    if row.status == JobStatus.ABORTED:
        return "CancelledError"
    if row.error_type is None:
        return None
    return f"{row.error_type}: {row.error_message}".removesuffix(": ")


def _described(row: Row[Any]) -> Mapping[str, Any]:
    status = JobStatus(row.status)
    if status is JobStatus.DEFERRED and row.due_at <= time.time():
        status = JobStatus.QUEUED
    return {
        "job_id": row.id,
        "status": status,
        "result": None if row.result is None else json.loads(row.result),
        "error": _error(row),
        "function": row.task,
        "attempts": row.attempts,
        "enqueued_at": to_datetime(row.enqueued_at),
        "started_at": to_datetime(row.started_at) if row.started_at else None,
        "finished_at": to_datetime(row.finished_at) if row.finished_at else None,
    }


def _dead_job(row: Row[Any]) -> DeadJob:
    return DeadJob(
        **_described(row),
        positional=tuple(json.loads(row.positional)),
        arguments=json.loads(row.arguments),
        traceback=row.traceback or "",
    )


def _share_sqlite(connection: Any, _record: object) -> None:
    """Let processes write to one file: readers never wait, writers take turns."""
    connection.isolation_level = None  # `writing` begins transactions
    connection.execute("PRAGMA busy_timeout = 60000")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
