"""The worker: claims jobs, runs an attempt at each, and reports outcomes; Redis is asked in batches."""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from arq import Retry as ArqRetry
from pydantic import ValidationError
from redis.exceptions import RedisError

from .attempt import Attempt, Interruption, Limits, Outcome, failure
from .client import TaskQueue
from .connection import Outage, Script, connect
from .documents import StoredJob, to_datetime
from .errors import (
    InvalidJobError,
    JobExpiredError,
    QueueUnavailableError,
    Retry,
    WorkerLostError,
)
from .keys import ABORTS
from .leases import Lease, Leases
from .models import JobContext
from .outcomes import Held, Report, Reporter, report_of
from .task import Task

logger = logging.getLogger(__name__)
LONGEST_WAIT = 1  # seconds without a wake-up, for jobs that ARQ's own client has enqueued
SOCKET_TIMEOUT = 3  # seconds, longer than the longest wait
GATHER = 0.002  # seconds in which slots become free, before jobs are claimed for them
ABORT_INTERVAL = 0.5  # seconds
CRON_INTERVAL = 10  # seconds
MOST_BYTES = 4_194_304  # of payloads in one claim
SUSPECTS = 10  # of so many slots, one is for suspects
STUBBORN = 5  # seconds that cancelled jobs get to end
UNREADABLE = StoredJob(f="?", k={}, et=0)


@dataclass(slots=True)
class _Running:
    held: Held
    lease: Lease
    suspect: bool
    attempt: "_Attempt | None" = None
    interrupted: Interruption | None = None

    def interrupt(self, cause: Interruption) -> None:
        self.interrupted = self.interrupted or cause
        if self.attempt is not None:
            self.attempt.interrupt(cause)


class _Attempt(Attempt):
    """An attempt whose task may also raise ARQ's own `Retry`."""

    def decide(self, error: BaseException) -> Outcome:
        if isinstance(error, ArqRetry):
            error = Retry((error.defer_score or 0) / 1000)
        return super().decide(error)


class Worker:
    """Runs the jobs of the queues in `QUEUES`.

    Args:
        tasks: The tasks that it knows.
        queue: The queue, opened to wait for Redis.
        resources: What tasks get as `ctx.resources`.

    Raises:
        ValueError: Two tasks have the same name.
    """

    def __init__(self, tasks: Iterable[Task[..., Any]], queue: TaskQueue, resources: Any) -> None:
        self._tasks: dict[str, Task[..., Any]] = {}
        for task in tasks:
            if task.name in self._tasks:
                raise ValueError(f"two tasks have the name {task.name}")
            self._tasks[task.name] = task
        self._queue = queue
        self._settings = settings = queue.settings
        self._keys = queue.keys
        self._resources = resources
        self._id = uuid4().hex[:16]
        self._limits = Limits(settings.job_timeout, settings.max_attempts, settings.max_result)
        self._slots = {self._keys.queue(name): count for name, count in settings.queues.items()}
        # Any: redis-py does not tell its asynchronous replies from the others.
        self._redis: Any = connect(settings, socket_timeout=SOCKET_TIMEOUT)
        self._claim_script = Script(self._redis, "claim")
        self._outage = Outage()
        self._reporter = Reporter(self._redis, settings, self._outage)
        self._threads = ThreadPoolExecutor(sum(settings.queues.values()), "task")
        self._running: dict[bytes, _Running] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()  # a slot became free, a job became due, or the worker stops
        self._listener: asyncio.Task[None] | None = None
        self._stopping = False
        self._hurried = False
        self._suspects_next = False
        self._claim_uncertain = False
        self._clock_ahead = 0.0  # of the server's clock against the event loop's, in seconds

    def stop(self) -> None:
        """Claim no more jobs, and end when those that run have ended; called again, at once."""
        if self._stopping:
            self._hurried = True
        self._stopping = True
        self._news.set()

    async def run(self, *, burst: bool = False) -> bool:
        """Work until stopped.

        Args:
            burst: Also end when no job is due.

        Returns:
            Whether all jobs have ended; if not, some ignore their cancellation.
        """
        self._warn_of_unserved_queues()
        self._leases = Leases(self._settings, self._on_lost)
        self._leases.start()
        routines = [
            asyncio.create_task(each)
            for each in (self._report_health(), self._watch_aborts(), self._schedule_cron())
        ]
        logger.info("worker %s runs %s", self._id, ", ".join(self._settings.queues))
        try:
            await self._work(burst=burst)
            return await self._drain()
        finally:
            self._leases.stop()
            for routine in routines:
                routine.cancel()
            await asyncio.gather(*routines, return_exceptions=True)
            await self._say_goodbye()
            self._threads.shutdown(wait=False, cancel_futures=True)
            await self._redis.aclose(close_connection_pool=True)

    async def _work(self, *, burst: bool) -> None:
        while not self._stopping:
            self._news.clear()
            seconds = await self._claim_and_start()
            if burst and not self._running and seconds is not None and seconds >= LONGEST_WAIT:
                return
            if seconds is not None and not self._stopping:
                await self._wait(min(seconds, LONGEST_WAIT))
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)

    async def _claim_and_start(self) -> float | None:
        """Claim what fits; return for how many seconds there is nothing more to claim."""
        if self._suspects_next or any(each.suspect for each in self._running.values()):
            # Suspects run apart from others, so that a crash takes nobody along.
            if self._running:
                await self._news.wait()
                return None
            self._suspects_next = await self._claim(suspects=True) > 0
            return None
        slots = self._free_slots()
        free = sum(slots.values())
        if 0 < free < sum(self._slots.values()) / 4 and self._running:
            await asyncio.sleep(GATHER)
            slots = self._free_slots()
        if not any(slots.values()):
            await self._news.wait()
            return None
        await self._claim(suspects=False, slots=slots)
        if self._suspects_next:
            return None
        return self._next_due - asyncio.get_running_loop().time()

    def _free_slots(self) -> dict[str, int]:
        slots = dict(self._slots)
        for each in self._running.values():
            slots[each.held.queue] -= 1
        return {key: max(0, free) for key, free in slots.items()}

    async def _claim(self, *, suspects: bool, slots: dict[str, int] | None = None) -> int:
        total = sum(self._slots.values())
        arguments: list[Any] = [
            self._keys.service,
            self._id,
            int(self._settings.job_lease * 1000),
            MOST_BYTES,
            max(1, total // SUSPECTS) if suspects else 0,
            int(not self._running),
            len(self._slots),
        ]
        for key, free in (slots or self._slots).items():
            arguments += (key, free)
        for task in self._tasks.values():
            if task.rate_limit is not None:
                limit = task.rate_limit
                arguments += (task.name, limit.count, limit.seconds * 1000)

        async def claim() -> Any:
            if self._claim_uncertain:
                await self._release_unknown()
            self._claim_uncertain = True
            reply = await self._claim_script(*arguments)
            self._claim_uncertain = False
            return reply

        now_ms, next_due_ms, suspects_next, claimed, errors = await self._outage.persist(claim)
        loop_now = asyncio.get_running_loop().time()
        self._clock_ahead = now_ms / 1000 - loop_now
        wait = (next_due_ms - now_ms) / 1000 if next_due_ms else float("inf")
        self._next_due = loop_now + wait
        if not suspects:
            self._suspects_next = bool(suspects_next)
        for error in errors:
            logger.error("a job cannot be claimed: %s", error.decode(errors="replace")[:200])
        for each in claimed:
            self._start(each, now_ms, suspect=suspects)
        return len(claimed)

    async def _release_unknown(self) -> None:
        """Give back the jobs of a claim whose reply was lost."""
        held = await self._redis.hgetall(self._keys.running)
        for job_id, token in held.items():
            if token.startswith(self._id.encode() + b":") and job_id not in self._running:
                for queue in self._slots:
                    held = Held(queue, job_id, token, 0, 0)
                    await self._reporter.send([Report(held, "release")])

    def _start(self, claimed: list[Any], now_ms: int, *, suspect: bool) -> None:
        queue, raw_id, due_ms, attempt, token, payload, problem = claimed
        held = Held(queue.decode(), raw_id, token, attempt, now_ms)
        if raw_id in self._running:
            # An attempt that has lost its lease ignores its cancellation. Two at once are worse
            # than a delay.
            delay = int(self._settings.job_lease * 1000)
            self._keep(self._reporter.put(Report(held, "release", milliseconds=delay)))
            return
        running = _Running(held, Lease(held.queue, raw_id, token), suspect)
        self._running[raw_id] = running
        self._leases.hold(running.lease)
        late = (now_ms - float(due_ms)) / 1000 - self._settings.job_expires
        self._keep(self._run_job(running, payload, problem.decode(), late if attempt == 1 else 0))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        job = asyncio.create_task(work)
        self._jobs.add(job)
        job.add_done_callback(self._forget)

    def _forget(self, job: "asyncio.Task[None]") -> None:
        self._jobs.discard(job)
        self._news.set()

    async def _run_job(
        self, running: _Running, payload: bytes | None, problem: str, late: float
    ) -> None:
        held, stored = running.held, UNREADABLE
        if problem == "aborted":
            running.interrupt(Interruption.ABORT)
        try:
            stored = _read(payload, problem)
            outcome = await self._attempt(running, stored, late)
        except WorkerLostError as error:
            held = replace(held, attempt=held.attempt - 1)  # this one does not begin
            outcome = failure(error)
        except (InvalidJobError, JobExpiredError) as error:
            outcome = failure(error)
        report = report_of(held, stored, outcome, self._settings, self._now_ms())
        try:
            if report is not None:
                await self._reporter.put(report)
        finally:
            self._leases.release(running.lease)
            del self._running[held.raw_id]

    async def _attempt(self, running: _Running, stored: StoredJob, late: float) -> Outcome:
        task = self._tasks.get(stored.f)
        if task is None:
            raise InvalidJobError("there is no task of this name")
        held = running.held
        most = max(task.retry.max_attempts, self._settings.max_attempts)
        if held.attempt > most:
            raise WorkerLostError(f"its worker was lost at the last of {most} attempts")
        if late > 0:
            raise JobExpiredError(f"it was due too long ago, by {late:.0f} s")
        enqueued_at = to_datetime(stored.et) or datetime.fromtimestamp(0, UTC)
        context = JobContext(self._resources, held.job_id, held.attempt, enqueued_at)
        running.attempt = attempt = _Attempt(task, context, self._limits, self._threads)
        if running.interrupted is not None:
            attempt.interrupt(running.interrupted)
        return await attempt.run(stored.a, stored.k)

    def _now_ms(self) -> int:
        return int((asyncio.get_running_loop().time() + self._clock_ahead) * 1000)

    def _on_lost(self, lease: Lease) -> None:
        running = self._running.get(lease.job_id)
        if running is not None and running.lease is lease:
            running.interrupt(Interruption.LEASE_LOST)

    async def _wait(self, seconds: float) -> None:
        """Wait until there may be something to claim."""
        if seconds <= 0:
            return
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    async def _listen(self) -> None:
        """Take one wake-up."""
        keys = [f"{key}:wake" for key in self._slots]
        try:
            woken = await self._redis.blpop(keys, timeout=LONGEST_WAIT)
            if woken and not any(self._free_slots().values()):
                await self._redis.rpush(woken[0], 1)  # for a worker that has a free slot
        except (RedisError, OSError):
            await asyncio.sleep(0.1)  # claiming will wait for Redis, and log it
        self._news.set()

    async def _watch_aborts(self) -> None:
        """Cancel running jobs that are to be aborted."""
        while True:
            await asyncio.sleep(ABORT_INTERVAL)
            if not (held := list(self._running)):
                continue
            with contextlib.suppress(RedisError, OSError):
                scores = await self._redis.zmscore(ABORTS, held)
                for job_id, score in zip(held, scores, strict=True):
                    if score is not None and job_id in self._running:
                        self._running[job_id].interrupt(Interruption.ABORT)

    async def _report_health(self) -> None:
        """Write signs of life: ours for each worker, and ARQ's for all of them."""
        interval = self._settings.health_interval
        while True:
            with contextlib.suppress(RedisError, OSError):
                async with self._redis.pipeline(transaction=False) as pipe:
                    pipe.time()
                    [(seconds, _)] = await pipe.execute()
                async with self._redis.pipeline(transaction=True) as pipe:
                    pipe.zadd(self._keys.workers, {self._id: seconds * 1000})
                    pipe.zremrangebyscore(self._keys.workers, "-inf", (seconds - 3 * interval) * 1000)
                    text = f"{datetime.now(UTC):%b-%d %H:%M:%S} j_ongoing={len(self._running)}"
                    pipe.psetex(self._keys.health, int((interval + 1) * 1000), text)
                    await pipe.execute()
            await asyncio.sleep(interval)

    async def _say_goodbye(self) -> None:
        with contextlib.suppress(RedisError, OSError):
            await self._redis.zrem(self._keys.workers, self._id)
            if not await self._redis.exists(self._keys.workers):
                await self._redis.delete(self._keys.health)

    async def _schedule_cron(self) -> None:
        """Enqueue the next run of each periodic task, under an id that all workers agree on."""
        tasks = [task for task in self._tasks.values() if task.cron]
        while tasks:
            with contextlib.suppress(RedisError, OSError, QueueUnavailableError):
                seconds, _ = await self._redis.time()
                now = datetime.fromtimestamp(seconds, self._settings.timezone)
                for task in tasks:
                    await self._queue.schedule(task, now)
            await asyncio.sleep(min(CRON_INTERVAL, self._settings.health_interval))

    async def _drain(self) -> bool:
        """Let running jobs end, give back the rest; return whether all have ended."""
        if self._jobs:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.shutdown_grace):
                    await self._all_ended_or_hurried()
        for running in list(self._running.values()):
            running.interrupt(Interruption.SHUTDOWN)
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=STUBBORN)
        self._outage.abandon()
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=1)
        for running in self._running.values():
            job_id = running.held.job_id
            logger.error("job %s ignores its cancellation, and is left behind", job_id)
        return not self._running

    async def _all_ended_or_hurried(self) -> None:
        while self._jobs and not self._hurried:
            self._news.clear()
            await self._news.wait()

    def _warn_of_unserved_queues(self) -> None:
        wanted = {task.queue for task in self._tasks.values()}
        for name in sorted(wanted - set(self._settings.queues)):
            logger.warning("this worker does not run queue %s: it is not in QUEUES", name)


def _read(payload: bytes | None, problem: str) -> StoredJob:
    if problem and problem != "aborted":
        raise InvalidJobError(problem)
    if payload is None:
        raise InvalidJobError("nothing is stored of this job")
    try:
        return StoredJob.model_validate_json(payload)
    except ValidationError as error:
        fields = {str(each["loc"][0]) for each in error.errors() if each["loc"]}
        what = f": {', '.join(sorted(fields))}" if fields else ""
        raise InvalidJobError(f"the stored job cannot be read{what}") from None
