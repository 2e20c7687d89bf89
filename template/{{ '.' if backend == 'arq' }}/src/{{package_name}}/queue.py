"""The one seam between the service and its queue, which is ARQ over Redis or Valkey.

Routes and tasks enqueue through `TaskQueue` and know nothing of what is behind it; `worker.py`
runs what is enqueued here.
"""

import asyncio
import copy
import hmac
import re
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ParamSpec, Self
from uuid import uuid4

from arq import ArqRedis, constants
from pydantic import TypeAdapter, ValidationError
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from .encoding import ABORTED, STORED_FOR_MS, StoredError, StoredJob, StoredResult, encode
from .job import ChainInfo, Job, JobInfo, JobStatus, QueueHealth, QueueUnavailableError
from .resources import Context
from .settings import Settings
from .task import Step, Task

P = ParamSpec("P")
CHAIN_KEY_PREFIX = "arq:chain:"
RESERVE = Path(__file__).with_name("reserve.lua").read_text()
_steps = TypeAdapter(list[Step])


class TaskQueue:
    """Enqueues tasks, and tells what has become of them.

    To enqueue raises a `TypeError` that names an argument which does not fit the task, and a
    `PayloadTooLargeError`. Every method raises `QueueUnavailableError` when Redis does not answer
    in time.
    """

    def __init__(self, redis: ArqRedis, settings: Settings, *, patient: bool = False) -> None:
        self.redis = redis
        self.settings = settings
        self._timeout = None if patient else settings.enqueue_timeout
        self.key: str | None = None

    def once(self, key: str | None) -> Self:
        """Return a queue that enqueues each task once for this key, while its outcome is kept."""
        queue = copy.copy(self)
        queue.key = key
        return queue

    async def enqueue(self, task: Task[P, Any], *args: P.args, **kwargs: P.kwargs) -> Job:
        """Run a task as soon as a worker is free."""
        return await self._enqueue(task, task.encode(*args, **kwargs))

    async def enqueue_in(
        self, delay: timedelta, task: Task[P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> Job:
        """Run a task after a delay."""
        return await self.enqueue_at(datetime.now(UTC) + delay, task, *args, **kwargs)

    async def enqueue_at(
        self, when: datetime, task: Task[P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> Job:
        """Run a task at a time with a timezone; at once if it has passed."""
        # ARQ would have a job expire before a time that has passed.
        when = max(when, datetime.now(UTC))
        return await self._enqueue(task, task.encode(*args, **kwargs), when)

    async def chain(self, *steps: Step) -> str:
        """Run `a.s(x=1), b.s()` one after the other, with results handed on; return the chain's id."""
        chain_id, document = uuid4().hex, _steps.dump_json(list(steps))
        async with answering(self._timeout):
            lasts = self.redis.expires_extra_ms * (len(steps) + 1)
            await self.redis.set(CHAIN_KEY_PREFIX + chain_id, document, px=lasts)
            await self._send(steps[0].task, f"{chain_id}-0", steps[0].arguments)
        return chain_id

    async def continue_chain(self, job_id: str, result: object) -> None:
        """Enqueue the step after this job, if it is one of a chain; to do it twice does no harm."""
        if match := re.fullmatch(r"([0-9a-f]{32})-(\d+)", job_id):
            steps = await self._chain_steps(match[1])
            number = int(match[2]) + 1
            for step in steps[number : number + 1]:
                given = {step.takes: result} if step.takes else {}
                await self._send(step.task, f"{match[1]}-{number}", step.arguments | given)

    async def chain_info(self, chain_id: str) -> ChainInfo | None:
        """Tell how far a chain has come."""
        async with answering(self._timeout):
            steps = await self._chain_steps(chain_id)
        jobs = [await self.job(f"{chain_id}-{number}") for number in range(len(steps))]
        begun = [job for job in jobs if job is not None]
        if not begun:
            return None
        ended = len(begun) == len(steps) or begun[-1].status is not JobStatus.COMPLETE
        status = begun[-1].status if ended else JobStatus.QUEUED
        tasks = [step.task for step in steps]
        return ChainInfo(chain_id=chain_id, status=status, tasks=tasks, jobs=begun)

    async def job(self, job_id: str) -> JobInfo | None:
        """Tell what is known of a job; None if it never was, or its outcome has expired."""
        async with answering(self._timeout), self.redis.pipeline(transaction=True) as pipe:
            pipe.get(constants.result_key_prefix + job_id)
            pipe.get(constants.job_key_prefix + job_id)
            pipe.get(constants.in_progress_key_prefix + job_id)
            pipe.get(constants.retry_key_prefix + job_id)
            pipe.zscore(self.settings.queue_name, job_id)
            result, job, lease, attempts, score = await pipe.execute()
        if result is not None or score is None:
            return finished(job_id, result) if result is not None else None
        info = JobInfo(job_id=job_id, status=JobStatus.QUEUED, attempts=_number(attempts))
        if lease is not None:
            info.status = JobStatus.IN_PROGRESS
            info.started_at = _time(_number(lease))
        elif score > datetime.now(UTC).timestamp() * 1000:
            info.status = JobStatus.DEFERRED
        with suppress(ValidationError):
            stored = StoredJob.model_validate_json(job or b"")
            info.function = stored.f
            info.enqueued_at = _time(stored.et)
        return info

    async def abort(self, job_id: str) -> None:
        """Have a job ended: before it starts, or by cancelling it where it runs."""
        async with answering(self._timeout), self.redis.pipeline(transaction=True) as pipe:
            pipe.zadd(constants.abort_jobs_ss, {job_id: int(datetime.now(UTC).timestamp() * 1000)})
            # A worker ends it when its turn comes, so a deferred job's turn is now.
            pipe.zadd(self.settings.queue_name, {job_id: 1}, xx=True)
            await pipe.execute()

    async def health(self) -> QueueHealth:
        """Tell how many jobs wait, for how long the first has been due, and if a worker lives."""
        name = self.settings.queue_name
        async with answering(self._timeout), self.redis.pipeline(transaction=True) as pipe:
            pipe.zcard(name)
            pipe.zrange(name, 0, 0, withscores=True)
            pipe.exists(name + constants.health_check_key_suffix)
            depth, first, worker = await pipe.execute()
        due = [datetime.now(UTC).timestamp() - score / 1000 for _, score in first]
        return QueueHealth(depth=depth, oldest_seconds=max(0, *due) if due else None, worker=worker)

    async def reserve(self, task: Task[..., Any], job_id: str) -> float:
        """Keep the next start that a task's rate limit leaves; return the seconds until then."""
        if task.rate_limit is None:
            return 0
        name, retries = self.settings.queue_name, constants.retry_key_prefix + job_id
        keys = [f"{name}:rate:{task.name}", f"{name}:start:{job_id}", retries]
        count, seconds = task.rate_limit
        reserve: Any = self.redis.register_script(RESERVE)
        milliseconds: int = await reserve(keys, [count, seconds * 1000])
        return milliseconds / 1000

    async def _enqueue(
        self, task: Task[..., Any], arguments: dict[str, Any], when: datetime | None = None
    ) -> Job:
        task.check_size(arguments, self.settings.max_payload)
        async with answering(self._timeout):
            job_id = await self._job_id(task.name, task.key(arguments) or self.key)
            return Job(job_id, created=await self._send(task.name, job_id, arguments, when))

    async def _send(
        self, name: str, job_id: str, arguments: dict[str, Any], when: datetime | None = None
    ) -> bool:
        keys = (constants.job_key_prefix + job_id, constants.result_key_prefix + job_id)
        options: Any = {"_job_id": job_id, "_defer_until": when}
        # ARQ returns None for a known job, but also where the connection is lost on the way.
        while not await self.redis.enqueue_job(name, **options, **arguments):
            if await self.redis.exists(*keys):
                return False
        return True

    async def _job_id(self, name: str, key: str | None) -> str:
        """Make an id that cannot be guessed, but is the same for the same key."""
        if key is None:
            return uuid4().hex
        where = f"{self.settings.queue_name}:secret"
        await self.redis.set(where, secrets.token_hex(), nx=True)
        secret: bytes = await self.redis.get(where)
        return hmac.new(secret, f"{name}:{key}".encode(), "sha256").hexdigest()[:32]

    async def _chain_steps(self, chain_id: str) -> list[Step]:
        document = await self.redis.get(CHAIN_KEY_PREFIX + chain_id)
        return _steps.validate_json(document) if document else []


@asynccontextmanager
async def answering(seconds: float | None) -> AsyncGenerator[None]:
    """Have Redis answer in time, or raise `QueueUnavailableError`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except (RedisError, OSError) as error:
        raise QueueUnavailableError(f"Redis is not available: {type(error).__name__}") from error


@asynccontextmanager
async def open_queue(ctx: Context) -> AsyncGenerator[TaskQueue]:
    """Own the process's one connection pool. It connects when it is first used."""
    redis = connect(ctx["settings"])
    try:
        yield TaskQueue(redis, ctx["settings"])
    finally:
        await redis.aclose(close_connection_pool=True)


def connect(settings: Settings) -> ArqRedis:
    """Prepare a client; nothing is sent yet."""
    url = settings.redis_url.get_secret_value()
    pool = ConnectionPool.from_url(url, socket_connect_timeout=1)
    client = ArqRedis(pool, job_serializer=encode, default_queue_name=settings.queue_name)
    client.expires_extra_ms = STORED_FOR_MS
    return client


def finished(job_id: str, data: bytes) -> JobInfo:
    """Read the outcome of a job."""
    info = JobInfo(job_id=job_id, status=JobStatus.FAILED, error="its outcome cannot be read")
    with suppress(ValidationError):
        stored = StoredResult.model_validate_json(data)
        if stored.s:
            info.status, info.result, info.error = JobStatus.COMPLETE, stored.r, None
        else:
            info.error = str(error := StoredError.model_validate(stored.r))
            info.status = JobStatus.ABORTED if error.type == ABORTED else JobStatus.FAILED
        info.function, info.attempts, info.enqueued_at = stored.f, stored.t or 0, _time(stored.et)
        info.started_at, info.finished_at = _time(stored.st), _time(stored.ft)
    return info


def _number(data: bytes | None) -> int:
    return int(data[:15]) if data and data.isdigit() else 0


def _time(milliseconds: int) -> datetime | None:
    with suppress(OverflowError, ValueError):
        return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None
    return None
