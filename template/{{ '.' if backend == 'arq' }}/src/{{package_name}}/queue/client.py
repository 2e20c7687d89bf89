"""The queue as the service uses it: enqueue tasks, look at jobs, abort them."""

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, ParamSpec, Self, TypeVar

from arq import ArqRedis
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from . import tracing
from .connection import Script, connect, passes, translate_redis_errors
from .dead import DeadJobs
from .documents import (
    ABORTED,
    STORED_MS,
    UNKNOWN_TASK,
    ChainLink,
    StoredJob,
    StoredStep,
    job_document,
    job_from_result,
    read_number,
    result_document,
    to_datetime,
)
from .enqueueing import PAUSE, Enqueuer, NewJob
from .errors import IdempotencyConflictError, PayloadTooLargeError, QueueUnavailableError
from .keys import ATTEMPTS, IN_PROGRESS, JOB, RESULT, Keys
from .models import Job, JobStatus, QueueHealth, Receipt, Workflow
from .monitor import Monitor
from .settings import LIFETIME, QueueSettings
from .task import Step, Task

P = ParamSpec("P")
T = TypeVar("T")


class TaskQueue:
    """Enqueues tasks, and reports what has become of them.

    Enqueueing raises `InvalidArgumentError` where an argument does not fit the task, and
    `PayloadTooLargeError`. Every method raises `QueueUnavailableError` when Redis does not answer
    in time.

    Args:
        redis: The client. The queue owns neither it nor its connections.
        settings: The queue's settings.
        timeout: Seconds to wait for Redis; None to wait until it is back where a job is enqueued.
    """

    def __init__(
        self, redis: ArqRedis, settings: QueueSettings, *, timeout: float | None = None
    ) -> None:
        self.redis = redis
        # redis-py does not tell its asynchronous replies from the others.
        self._redis: Any = redis
        self.settings = settings
        self.keys = Keys(settings.queue_name)
        self.dead = DeadJobs(redis, settings, timeout)
        self.monitor = Monitor(redis, settings, self.dead, timeout)
        self._timeout = timeout
        self._enqueuer = Enqueuer(redis, settings)
        self._abort_script = Script(redis, "abort")
        self._key: str | None = None
        self._prefix = ""

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
        `IdempotencyConflictError`. A key whose job failed is free again after `REUSE_FAILED_KEY`
        seconds. Without a key, each call is a job of its own.
        """
        queue = self._copy()
        queue._key = key  # noqa: SLF001 - of this class
        return queue

    async def enqueue(self, task: Task[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        """Run a task as soon as a worker has a free slot."""
        return await self._enqueue(task, args, kwargs)

    async def enqueue_in(
        self, delay: timedelta, task: Task[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Receipt:
        """Run a task after a delay; at once if it is negative."""
        milliseconds = max(0, int(delay.total_seconds() * 1000))
        return await self._enqueue(task, args, kwargs, f"+{milliseconds}")

    async def enqueue_at(
        self, when: datetime, task: Task[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Receipt:
        """Run a task at a time, which needs a timezone; at once if it has passed."""
        if when.tzinfo is None:
            raise TypeError("a naive datetime names no moment: give it a timezone")
        return await self._enqueue(task, args, kwargs, str(int(when.timestamp() * 1000)))

    async def enqueue_many(
        self, task: Task[..., Any], calls: Iterable[Mapping[str, Any]], /
    ) -> list[Receipt]:
        """Run a task once for each set of arguments; a thousand jobs take one round trip.

        All arguments are validated before the first job is enqueued. An idempotency key holds for
        each call by its place in the list.
        """
        encoded = [(self._encode(task, (), call), task.unique_key(**call)) for call in calls]
        with tracing.sending(task.name, task.queue, len(encoded)):
            secret = await self._secret(task)
            jobs = [
                self._new_job(task, *each, secret=secret, index=f":{index}")
                for index, each in enumerate(encoded)
            ]
            replies = await self._enqueuer.enqueue_all(jobs, self._timeout)
        return [_receipt(*each) for each in zip(jobs, replies, strict=True)]

    async def schedule(self, task: Task[..., Any], now: datetime, /) -> None:
        """Enqueue the next run of a periodic task, once however many workers ask for it."""
        if task.cron is None:
            raise TypeError(f"{task.name} has no cron schedule")
        due_ms = int(task.cron.next_after(now).timestamp() * 1000)
        entry = f"{due_ms} {task.cron.fields}"
        async with translate_redis_errors(self._timeout):
            known = await self._redis.hget(self.keys.cron, task.name) or b""
        if known == entry.encode():
            return
        known_ms, _, fields = known.decode("utf-8", "replace").partition(" ")
        if fields != task.cron.fields:
            await self._withdraw(self._cron_id(task, known_ms))
        document = job_document(task.name, b"{}", _now_ms(), task.queue)
        job_id, key = self._cron_id(task, due_ms), self.keys.queue(task.queue)
        await self._put(NewJob(key, job_id, document, str(due_ms)))
        async with translate_redis_errors(self._timeout):
            await self._redis.hset(self.keys.cron, task.name, entry)

    async def _withdraw(self, job_id: str) -> None:
        """Take back a job that does not run yet, without a trace: its id may be used again."""
        async with translate_redis_errors(self._timeout):
            record = await self._read(job_id)
            if record.due_ms is not None and record.token is None:
                async with self._redis.pipeline() as pipe:
                    pipe.zrem(record.queue, job_id)
                    pipe.delete(JOB + job_id)
                    await pipe.execute()

    async def chain(self, *steps: Step[Any, Any]) -> str:
        """Run `a.s(x=1), b.s()` one after the other; each gets the result of the one before.

        Returns:
            The id of the chain.

        Raises:
            ValueError: There is no step.
            TypeError: The queue has an idempotency key.
            InvalidArgumentError: The first step lacks an argument.
        """
        if not steps:
            raise ValueError("a chain needs at least one step")
        if self._key is not None:
            raise TypeError("a chain takes no idempotency key")
        steps[0].task.arguments.decode((), steps[0].arguments)
        chain_id = self._new_id()
        stored = [self._stored_step(step) for step in steps]
        first, *rest = stored
        link = ChainLink(id=chain_id, index=0, steps=rest)
        record = {
            "tasks": to_json([step.task for step in stored]),
            "jobs": to_json([step.job_id for step in stored]),
            "state": "0 queued",
        }

        async def store() -> None:
            async with self.redis.pipeline() as pipe:
                pipe.hset(self.keys.chain(chain_id), mapping=record)
                pipe.pexpire(self.keys.chain(chain_id), STORED_MS)
                await pipe.execute()

        await self._ask(store)
        with tracing.sending(first.task, first.queue):
            arguments, trace = to_json(first.arguments), tracing.current_trace()
            document = job_document(
                first.task, arguments, _now_ms(), first.queue, chain=to_json(link), trace=trace
            )
            await self._put(NewJob(self.keys.queue(first.queue), first.job_id, document))
        return chain_id

    async def workflow(self, workflow_id: str, /) -> Workflow | None:
        """Return the state of a chain, or None if it is unknown or has expired."""
        if not workflow_id.startswith(self._prefix):
            return None
        async with translate_redis_errors(self._timeout):
            record = await self._redis.hgetall(self.keys.chain(workflow_id))
        if not record:
            return None
        tasks, job_ids = from_json(record[b"tasks"]), from_json(record[b"jobs"])
        index, _, status = record[b"state"].decode().partition(" ")
        begun = job_ids[: int(index) + 1]
        jobs = [job for job in [await self.job(each) for each in begun] if job]
        return Workflow(
            workflow_id=workflow_id,
            kind="chain",
            status=JobStatus(status),
            tasks=tasks,
            jobs=jobs,
        )

    async def job(self, job_id: str, /) -> Job | None:
        """Return the state of a job, or None if it is unknown or has expired."""
        if not job_id.startswith(self._prefix):
            return None
        async with translate_redis_errors(self._timeout):
            record = await self._read(job_id)
        if record.result is not None:
            job = job_from_result(job_id, record.result)
            return job.for_owner() if self._prefix else job
        if record.due_ms is None:
            return None
        job = Job(job_id=job_id, status=JobStatus.QUEUED, attempts=record.attempts)
        if record.token is not None:
            job.status = JobStatus.IN_PROGRESS
            job.started_at = _started_at(record.token)
        elif record.due_ms > record.now_ms and not record.lost:
            job.status = JobStatus.DEFERRED
        if record.stored is not None:
            job.function = record.stored.f
            job.enqueued_at = to_datetime(record.stored.et)
        return job

    async def abort(self, job_id: str, /) -> bool:
        """Abort a job, deferred, queued or running; return False if there is no such job to abort.

        A running job is cancelled by its worker within a second. A `def` task cannot be cancelled.
        """
        if not job_id.startswith(self._prefix):
            return False
        async with translate_redis_errors(self._timeout):
            record = await self._read(job_id)
            if record.result is not None or record.due_ms is None:
                return False
            stored = record.stored or StoredJob(f=UNKNOWN_TASK, k={}, et=0)
            document = result_document(
                stored,
                job_id=job_id,
                succeeded=False,
                result=to_json({"type": ABORTED, "message": ""}),
                attempts=record.attempts,
                started_ms=0,
                finished_ms=record.now_ms,
            )
            chain, value = (stored.c.id, f"{stored.c.index} aborted") if stored.c else ("", "")
            state = await self._abort_script(
                self.settings.queue_name,
                record.queue,
                job_id,
                document,
                self.settings.keep_result * 1000,
                chain,
                value,
                stored.f,
                self.settings.max_finished,
            )
        return bool(state != b"gone")

    async def health(self) -> QueueHealth:
        """Return the number of jobs, how long the oldest due one has waited, and living workers."""
        names = dict.fromkeys(["default", *self.settings.queues])
        async with (
            translate_redis_errors(self._timeout),
            self.redis.pipeline(transaction=True) as pipe,
        ):
            pipe.time()
            for name in names:
                pipe.zcard(self.keys.queue(name))
                pipe.zrange(self.keys.queue(name), 0, 0, withscores=True)
            (seconds, micro), *sizes = await pipe.execute()
            await self._enqueuer.check()
        now = seconds + micro / 1e6
        due = [score / 1000 for first in sizes[1::2] for _, score in first]
        oldest = max([0.0, *(now - each for each in due)]) if any(e <= now for e in due) else None
        workers = len(await self.living_workers())
        return QueueHealth(depth=sum(sizes[::2]), oldest_seconds=oldest, workers=workers)

    async def living_workers(self) -> list[str]:
        """Return the workers that have shown a sign of life of late, each as its host and its id."""
        async with translate_redis_errors(self._timeout):
            seconds, microseconds = await self._redis.time()
            oldest = (
                seconds + microseconds / 1e6 - LIFETIME * self.settings.health_interval
            ) * 1000
            names = await self._redis.zrange(self.keys.workers, oldest, "+inf", byscore=True)
        return [name.decode(errors="replace") for name in names]

    def _copy(self) -> Self:
        queue = object.__new__(type(self))
        queue.__dict__.update(self.__dict__)  # at a tenth of what `copy.copy` takes
        return queue

    async def _enqueue(
        self,
        task: Task[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        due: str = "+0",
    ) -> Receipt:
        arguments = self._encode(task, args, kwargs)
        key = task.unique_key(*args, **kwargs)
        with tracing.sending(task.name, task.queue):
            secret = await self._secret(task)
            return await self._put(self._new_job(task, arguments, key, secret=secret, due=due))

    def _encode(
        self, task: Task[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> bytes:
        arguments = task.arguments.encode(args, kwargs)
        self._check_size(task, arguments)
        return arguments

    def _new_job(  # noqa: PLR0913 - the parts of a job
        self,
        task: Task[..., Any],
        arguments: bytes,
        key: str | None,
        *,
        secret: bytes,
        due: str = "+0",
        index: str = "",
    ) -> NewJob:
        job_id, kind = "", ""
        if key is not None:
            job_id, kind = self._job_id(secret, f"unique:{task.name}:{key}"), "unique"
        elif self._key is not None:
            job_id, kind = self._job_id(secret, f"key:{task.name}:{self._key}{index}"), "key"
        trace = tracing.current_trace()
        document = job_document(task.name, arguments, _now_ms(), task.queue, trace=trace)
        queue = self.keys.queue(task.queue)
        return NewJob(queue, job_id or self._new_id(), document, due, kind)

    async def _put(self, job: NewJob) -> Receipt:
        tracing.note_job(job.job_id)
        deadline = asyncio.get_running_loop().time() + self._timeout if self._timeout else 0
        return _receipt(job, await self._enqueuer.put(replace(job, deadline=deadline)))

    def _check_size(self, task: Task[..., Any], arguments: bytes) -> None:
        most = self.settings.max_payload
        if len(arguments) > most:
            raise PayloadTooLargeError(
                f"{task.name}: {len(arguments)} bytes of arguments, {most} allowed"
            )

    def _stored_step(self, step: Step[Any, Any]) -> StoredStep:
        self._check_size(step.task, to_json(step.arguments))
        return StoredStep(
            job_id=self._new_id(),
            task=step.task.name,
            queue=step.task.queue,
            arguments=step.arguments,
            result_argument=step.result_argument,
        )

    def _cron_id(self, task: Task[..., Any], due_ms: int | str) -> str:
        # Two services on one Redis may have tasks of the same name.
        return f"cron:{self.keys.service}:{task.name}:{due_ms}"

    def _new_id(self) -> str:
        return self._prefix + secrets.token_hex(16)

    def _job_id(self, secret: bytes, key: str) -> str:
        """Return an id that is the same for the same key, and cannot be guessed from it."""
        text = f"{self._prefix}{key}"
        return self._prefix + hmac.new(secret, text.encode(), "sha256").hexdigest()[:32]

    async def _secret(self, task: Task[..., Any]) -> bytes:
        """Return what the ids of a task's jobs are made with; nothing where they are random."""
        if not task.unique and self._key is None:
            return b""
        if task.unique and self._key is not None:
            raise TypeError(f"{task.name} is unique by its arguments: it takes no key")
        new = secrets.token_hex()

        async def agree() -> bytes | None:
            known: bytes | None = await self._redis.set(self.keys.secret, new, nx=True, get=True)
            return known

        return await self._ask(agree) or new.encode()

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call Redis on the way to enqueueing; without a timeout, again until it is back."""
        while True:
            try:
                async with translate_redis_errors(self._timeout):
                    return await call()
            except QueueUnavailableError as error:
                if self._timeout or not (error.__cause__ and passes(error.__cause__)):
                    raise
            await asyncio.sleep(PAUSE)

    async def _read(self, job_id: str) -> "_Record":
        async with self.redis.pipeline(transaction=True) as pipe:
            for prefix in (RESULT, JOB, IN_PROGRESS, ATTEMPTS):
                pipe.get(prefix + job_id)
            pipe.hget(self.keys.running, job_id)
            pipe.zscore(self.keys.service, job_id)
            pipe.time()
            values = await pipe.execute(raise_on_error=False)
        *values, now = values
        result, job, token, attempts, holder, score = (
            None if isinstance(each, Exception) else each for each in values
        )
        now_ms = now[0] * 1000 + now[1] // 1000
        lost = (holder or b"").startswith(b"lost:")
        queue, attempts = self.keys.service, read_number(attempts)
        record = _Record(queue, result, token, attempts, score, now_ms, lost)
        with suppress(ValidationError):
            record.stored = StoredJob.model_validate_json(job or b"")
        if score is None and record.stored and record.stored.q:
            record.queue = self.keys.queue(record.stored.q)
            record.due_ms = await self._redis.zscore(record.queue, job_id)
        return record


@dataclass(slots=True)
class _Record:
    """What is stored of a job."""

    queue: str
    result: bytes | None
    token: bytes | None
    attempts: int
    due_ms: float | None
    now_ms: int
    lost: bool
    stored: StoredJob | None = None


@asynccontextmanager
async def open_queue(
    settings: QueueSettings, *, wait_for_redis: bool = False
) -> AsyncGenerator[TaskQueue]:
    """Open the process's one queue, with one connection pool. It connects when it is first used.

    Args:
        settings: The queue's settings.
        wait_for_redis: Wait while Redis is away, as a worker does, instead of raising
            `QueueUnavailableError` after `ENQUEUE_TIMEOUT`, as the API does.
    """
    redis = connect(settings)
    try:
        timeout = None if wait_for_redis else settings.enqueue_timeout
        yield TaskQueue(redis, settings, timeout=timeout)
    finally:
        await redis.aclose(close_connection_pool=True)


def _now_ms() -> int:
    return int(time.time() * 1000)


def _receipt(job: NewJob, stored: bytes | None) -> Receipt:
    """Return what became of a job, given what was stored under its id before."""
    if stored == b"":
        raise QueueUnavailableError("a key of the job or of its queue holds another type")
    if job.kind == "key" and stored and not _have_same_arguments(stored, job.document):
        raise IdempotencyConflictError(job.job_id)
    return Receipt(job.job_id, created=stored is None)


def _have_same_arguments(stored: bytes, document: bytes) -> bool:
    try:
        return bool(from_json(stored)["k"] == from_json(document)["k"])
    except (ValueError, KeyError, TypeError):
        return False


def _started_at(token: bytes) -> datetime | None:
    parts = token.split(b":")
    return to_datetime(read_number(parts[2])) if len(parts) > 2 else None  # noqa: PLR2004 - our form
