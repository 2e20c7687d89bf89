"""The worker: claims jobs, runs an attempt at each, and reports the outcomes."""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from arq import Retry as ArqRetry
from pydantic import ValidationError
from redis.exceptions import RedisError

from .attempt import Attempt, Interruption, Limits, Outcome, failure, left_behind
from .client import TaskQueue
from .connection import Outage, Script, connect
from .documents import STORED_MS, UNKNOWN_TASK, StoredJob, to_datetime
from .errors import InvalidJobError, JobExpiredError, Retry, WorkerLostError
from .leases import SAFETY, Lease, Leases
from .models import JobContext
from .outcomes import Held, Report, Reporter, report_of
from .task import Task
from .threads import DaemonThreads
from .upkeep import Upkeep

logger = logging.getLogger(__name__)
LONGEST_WAIT = 1  # seconds without a wake-up, for jobs that ARQ's own client has enqueued
JUST_ENDED = 10  # milliseconds
GATHER = 0.002  # seconds in which slots become free, before jobs are claimed for them
MOST_BYTES = 4_194_304  # of payloads in one claim
SUSPECTS = 10  # of so many slots, one is for suspects
STUBBORN = 5  # seconds that cancelled jobs get to end


def _unreadable() -> StoredJob:
    return StoredJob(f=UNKNOWN_TASK, k={}, et=0)


@dataclass(slots=True)
class Running:
    """A job that runs here.

    Attributes:
        held: What Redis has of it.
        lease: Its lease, renewed until it is released.
        suspect_until: Until when it counts as a suspect, by the event loop's clock.
    """

    held: Held
    lease: Lease
    suspect_until: float
    stored: StoredJob = field(default_factory=_unreadable)
    attempt: "ArqAttempt | None" = None
    interrupted: Interruption | None = None

    def interrupt(self, cause: Interruption) -> None:
        """Cancel its attempt."""
        self.interrupted = self.interrupted or cause
        if self.attempt is not None:
            self.attempt.interrupt(cause)


class ArqAttempt(Attempt):
    """An attempt whose task may also raise ARQ's own `Retry`."""

    def decide(self, error: BaseException) -> Outcome:
        """Return what becomes of a job whose attempt ended with this exception."""
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
        self._settings = settings = queue.settings
        self._keys = queue.keys
        self._resources = resources
        self._id = uuid4().hex[:16]
        self._limits = Limits(settings.job_timeout, settings.max_attempts, settings.max_result)
        self._free = {self._keys.queue(name): count for name, count in settings.queues.items()}
        self._slots = sum(self._free.values())
        # redis-py does not tell its asynchronous replies from the others.
        self._redis: Any = connect(settings)
        self._claim_script = Script(self._redis, "claim")
        self._outage = Outage()
        self._reporter = Reporter(self._redis, settings, self._outage)
        self._upkeep = Upkeep(self._id, queue, self._redis, self._tasks.values())
        self._threads = DaemonThreads()
        self._running: dict[bytes, Running] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()  # a slot became free, a job became due, or the worker stops
        self._listener: asyncio.Task[None] | None = None
        self._heard: set[str] = set()  # the queues whose wake-ups it waits for
        self._stopping = self._hurried = self._burst = False
        self._suspects_next = False
        self._quiet_until = 0.0  # when suspects are claimed though others still run
        self._claim_uncertain = False
        self._clock_ahead = 0.0  # of the server's clock against the event loop's, in seconds
        self._next_due = 0.0

    def stop(self) -> None:
        """Claim no more jobs, and end when those that run have ended; called again, at once."""
        self._hurried = self._stopping
        self._stopping = True
        self._news.set()

    async def run(self, *, burst: bool = False) -> bool:
        """Work until stopped.

        Args:
            burst: Also end when no job is due.

        Returns:
            Whether all calls have ended; if not, some ignore their cancellation.
        """
        self._burst = burst
        self._leases = Leases(self._settings, self._on_lost)
        self._leases.start()
        upkeep = asyncio.create_task(self._upkeep.run(self._running))
        logger.info("worker %s runs %s", self._id, ", ".join(self._settings.queues))
        try:
            await self._work()
            return await self._drain()
        finally:
            self._leases.stop()
            await _cancel(upkeep)
            await self._upkeep.say_goodbye()
            await self._redis.aclose(close_connection_pool=True)

    async def _work(self) -> None:
        while not self._stopping:
            self._news.clear()
            try:
                seconds = await self._claim_and_start()
            except (RedisError, OSError):
                break  # stopped while Redis was unavailable
            # What has ended since the claim was sent may have made another job due.
            idle = not self._jobs and not self._news.is_set()
            if self._burst and idle and seconds >= LONGEST_WAIT:
                break
            if seconds > 0 and not self._stopping:
                # Twice, so that it is the listener that ends an idle wait.
                await self._wait(min(seconds, 2 * LONGEST_WAIT))
        if self._listener is not None:
            await _cancel(self._listener)

    async def _claim_and_start(self) -> float:
        """Claim what fits; return for how many seconds there is nothing more to claim."""
        now = asyncio.get_running_loop().time()
        quiet_until = max((each.suspect_until for each in self._running.values()), default=0)
        if self._suspects_next:
            quiet_until = max(quiet_until, self._quiet_until)
        if self._running and now < quiet_until:
            # Suspects run apart from others, so that a crash takes nobody along.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(quiet_until):
                    await self._news.wait()
            return 0
        if self._suspects_next:
            self._suspects_next = await self._claim(suspects=True) > 0
            self._quiet_until = now + self._settings.job_lease
            return 0
        free = sum(self._free.values())
        if 0 < free < self._slots / 4 and self._running:
            await asyncio.sleep(GATHER)
        if free == 0:
            await self._news.wait()
            return 0
        await self._claim(suspects=False)
        return 0 if self._suspects_next else self._next_due - asyncio.get_running_loop().time()

    async def _claim(self, *, suspects: bool) -> int:
        loop = asyncio.get_running_loop()
        allowed = max(1, self._slots // SUSPECTS) if suspects else 0
        arguments: list[Any] = [
            self._keys.service,
            self._id,
            int(self._settings.job_lease * 1000),
            MOST_BYTES,
            allowed,
            int(not self._running),
            len(self._free),
        ]
        for key, free in self._free.items():
            arguments += (key, free)
        for task in self._tasks.values():
            if task.rate_limit is not None:
                limit = task.rate_limit
                arguments += (task.name, limit.count, limit.seconds * 1000)

        async def claim() -> Any:
            if self._claim_uncertain:
                await self._release_unknown()
            self._claim_uncertain = True
            sent_at = loop.time()
            reply = await self._claim_script(*arguments)
            if loop.time() - sent_at > SAFETY * self._settings.job_lease:
                raise TimeoutError  # others may hold by now what this has claimed
            self._claim_uncertain = False
            return reply

        reply = await self._outage.persist(claim, give_up=lambda: self._stopping)
        now_ms, next_due_ms, suspects_next, claimed, errors = reply
        loop_now = loop.time()
        self._clock_ahead = now_ms / 1000 - loop_now
        self._next_due = next_due_ms / 1000 - self._clock_ahead if next_due_ms else float("inf")
        if suspects_next and not self._suspects_next:
            self._suspects_next = True
            self._quiet_until = loop_now + self._settings.job_lease
        for error in errors:
            logger.error("a job cannot be claimed: %s", error.decode(errors="replace")[:200])
        for each in claimed:
            self._start(each, now_ms, suspects=suspects)
        return len(claimed)

    async def _release_unknown(self) -> None:
        """Give back the jobs of a claim whose reply was lost."""
        for job_id, token in (await self._redis.hgetall(self._keys.running)).items():
            if token.startswith(self._id.encode() + b":") and job_id not in self._running:
                for queue in self._free:
                    if await self._redis.zscore(queue, job_id) is not None:
                        held = Held(queue, job_id, token, attempt=0, started_ms=0)
                        await self._reporter.send([Report(held, "release")])

    def _start(self, claimed: list[Any], now_ms: int, *, suspects: bool) -> None:
        queue, raw_id, due_ms, attempt, token, payload, problem = claimed
        started_ms = 0 if problem == b"aborted" else now_ms
        late_ms = now_ms - float(due_ms)
        waited_ms = int(late_ms) if 0 < late_ms < STORED_MS else 0  # ARQ's client may set any time
        held = Held(queue.decode(), raw_id, token, attempt, started_ms, waited_ms)
        if (earlier := self._running.get(raw_id)) is not None:
            # Either its attempt has just ended, and the reply to its report is on its way, or it has
            # lost its lease and ignores its cancellation. Two at once are worse than a delay.
            lost = earlier.interrupted is Interruption.LEASE_LOST
            delay = int(self._settings.job_lease * 1000) if lost else JUST_ENDED
            self._keep(self._reporter.put(Report(held, "release", milliseconds=delay)))
            return
        loop_now = asyncio.get_running_loop().time()
        suspect_until = loop_now + self._settings.job_lease if suspects else 0
        running = Running(held, Lease(held.queue, raw_id, token), suspect_until)
        self._running[raw_id] = running
        self._free[held.queue] -= 1
        self._leases.hold(running.lease)
        late = late_ms / 1000 - self._settings.job_expires
        self._keep(self._run_job(running, payload, problem.decode(), late if attempt == 1 else 0))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        job = asyncio.create_task(work)
        self._jobs.add(job)
        job.add_done_callback(self._forget)

    def _forget(self, job: "asyncio.Task[None]") -> None:
        self._jobs.discard(job)
        self._news.set()

    async def _run_job(
        self, running: Running, payload: bytes | None, problem: str, late: float
    ) -> None:
        held = running.held
        if problem == "aborted":
            running.interrupt(Interruption.ABORT)
        try:
            running.stored = _read(payload, problem)
            outcome = await self._attempt(running, late)
        except WorkerLostError as error:
            held = replace(held, attempt=held.attempt - 1, started_ms=0)  # this one does not begin
            outcome = failure(error)
        except (InvalidJobError, JobExpiredError) as error:
            held = replace(held, started_ms=0)
            outcome = failure(error)
        await self._end(running, held, outcome)

    async def _attempt(self, running: Running, late: float) -> Outcome:
        held, stored = running.held, running.stored
        task = self._tasks.get(stored.f)
        if task is None:
            raise InvalidJobError("there is no task of this name")
        most = max(task.retry.max_attempts, self._settings.max_attempts)
        if held.attempt > most:
            raise WorkerLostError(f"its worker was lost at the last of {most} attempts")
        if late > 0 and running.interrupted is None:
            raise JobExpiredError(f"it was due too long ago, by {late:.0f} s")
        enqueued_at = to_datetime(stored.et) or datetime.fromtimestamp(0, UTC)
        context = JobContext(self._resources, held.job_id, held.attempt, enqueued_at)
        attempt = ArqAttempt(task, context, self._limits, self._threads, stored.tc)
        running.attempt = attempt
        if running.interrupted is not None:
            attempt.interrupt(running.interrupted)
        return await attempt.run(stored.a, stored.k)

    async def _end(self, running: Running, held: Held, outcome: Outcome) -> None:
        """Report an outcome, and free the job's slot when Redis knows it."""
        # Names of unknown tasks may be many: the indexes keep none of them.
        task = running.stored.f if running.stored.f in self._tasks else UNKNOWN_TASK
        now_ms = self._now_ms()
        report = report_of(held, running.stored, outcome, self._settings, task=task, now_ms=now_ms)
        try:
            if report is not None:
                await self._reporter.put(report)
        finally:
            self._leases.release(running.lease)
            del self._running[held.raw_id]
            self._free[held.queue] += 1

    def _now_ms(self) -> int:
        return int((asyncio.get_running_loop().time() + self._clock_ahead) * 1000)

    def _on_lost(self, lease: Lease) -> None:
        running = self._running.get(lease.job_id)
        if running is not None and running.lease is lease:
            running.interrupt(Interruption.LEASE_LOST)

    async def _wait(self, seconds: float) -> None:
        """Wait until there may be something to claim."""
        free = {key for key, slots in self._free.items() if slots}
        if self._listener is not None and not free <= self._heard:
            await _cancel(self._listener)  # meanwhile a slot for another queue became free
        if free and (self._listener is None or self._listener.done()):
            self._heard = free
            self._listener = asyncio.create_task(self._listen())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    async def _listen(self) -> None:
        """Take one wake-up."""
        keys = [f"{key}:wake" for key in self._heard]
        try:
            woken = await self._redis.blpop(keys, timeout=LONGEST_WAIT)
            if woken and not self._free[woken[0].decode().removesuffix(":wake")]:
                await self._redis.rpush(woken[0], 1)  # for a worker that has a free slot
        except (RedisError, OSError):
            await asyncio.sleep(0.1)  # claiming will wait for Redis, and log it
        self._news.set()

    async def _drain(self) -> bool:
        """Let running jobs end, give back the rest; return whether all have ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.shutdown_grace):
                while self._jobs and not self._hurried:
                    self._news.clear()
                    await self._news.wait()
        for running in list(self._running.values()):
            running.interrupt(Interruption.SHUTDOWN)
        for seconds in (STUBBORN, 1):
            if self._jobs:
                await asyncio.wait(self._jobs, timeout=seconds)
            self._outage.abandon()  # if Redis is unavailable still, leases will end by themselves
        for running in self._running.values():
            logger.error("job %s ignores its cancellation", running.held.job_id)
        return not self._jobs and not left_behind()


async def _cancel(task: asyncio.Task[Any]) -> None:
    while not task.done():
        # More than once: Python 3.11's wait_for, in redis-py, may swallow a cancellation.
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)


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
