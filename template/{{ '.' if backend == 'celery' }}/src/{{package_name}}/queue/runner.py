"""The runner: one event loop in a process, to which Celery's pool threads hand their jobs."""

import asyncio
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import uvloop
from celery import exceptions
from pydantic_core import to_json
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError

from .arguments import check_json
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
    log_failure,
)
from .celery_app import celery_rate
from .client import TaskQueue, open_queue
from .errors import InvalidArgumentError, JobExpiredError, QueueUnavailableError, WorkerLostError
from .models import JobContext, JobStatus
from .settings import QueueSettings
from .store import Begun, Ended, NewJob, Store
from .task import Task
from .threads import DaemonThreads

T = TypeVar("T")
OpenResources = Callable[[TaskQueue], AbstractAsyncContextManager[Any]]
TICK = 0.5  # seconds between two looks for due jobs and for those to be aborted
UPKEEP = 60  # seconds between two looks for what has expired
AT_ONCE = 20  # jobs that one look publishes, since signs of life wait for it
EXPIRED_AT_ONCE = 100
PAUSE = 1  # seconds between two attempts to reach the database
DATABASE_ERRORS = (InterfaceError, InternalError, OperationalError)
logger = logging.getLogger(__name__)


class JobFailedError(Exception):
    """A job failed; the record has its traceback."""


class Runner:
    """Runs the jobs of a Celery worker's process.

    Args:
        app: The Celery app.
        tasks: The tasks of the service.
        settings: The queue's settings.
        open_resources: Opens what tasks get as `ctx.resources`, once per process.
    """

    def __init__(
        self,
        app: Any,
        tasks: Iterable[Task[..., Any]],
        settings: QueueSettings,
        open_resources: OpenResources,
    ) -> None:
        self._app = app
        self._settings = settings
        self._open_resources = open_resources
        self._starting = threading.Lock()
        self._process: int | None = None
        self._attempts: dict[str, Attempt] = {}
        self._threads = DaemonThreads()
        self._ending = False
        for task in tasks:
            self._register(task)

    def _register(self, task: Task[..., Any]) -> None:
        def run(celery_task: Any, *args: Any, **kwargs: Any) -> Any:
            return self.run(task, celery_task, args, kwargs)

        run.__doc__ = task.__doc__
        run.__module__ = task.function.__module__
        self._app.task(
            run,
            name=task.name,
            bind=True,
            shared=False,
            typing=False,
            rate_limit=celery_rate(task.rate_limit),
            max_retries=None,
            resultrepr_maxsize=0,
            throws=(JobFailedError,),
            Request=f"{__package__}.pool:JobRequest",
        )

    def start(self) -> None:
        """Start the event loop, and open the resources, once in each process."""
        with self._starting:
            if self._process == os.getpid():
                return
            self._process = os.getpid()
            self._attempts, self._ending = {}, False
            name = f"{socket.gethostname()}:{os.getpid()}:{id(self)}"
            self._store = Store(self._settings, name)
            self._loop = uvloop.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="jobs", daemon=True)
            self._thread.start()
            self._call(self._open())

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _open(self) -> None:
        self._stack = stack = AsyncExitStack()
        self._queue = await stack.enter_async_context(
            open_queue(self._settings, app=self._app, wait=True)
        )
        self._resources = await stack.enter_async_context(self._open_resources(self._queue))
        self._wake = asyncio.Event()
        self._ticking = asyncio.create_task(self._tick())

    def end(self) -> None:
        """Let running jobs end; those that have not after `SHUTDOWN_GRACE` are given back."""
        if self._process is None or self._ending:
            return
        self._ending = True
        grace = self._settings.shutdown_grace
        self._loop.call_soon_threadsafe(
            self._loop.call_later, grace, self._interrupt_all, Interruption.SHUTDOWN
        )

    def stop(self) -> None:
        """Close the resources, and end the event loop."""
        with self._starting:
            if self._process != os.getpid():
                return
            self._process = None
            self._call(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._store.close()

    async def _close(self) -> None:
        self._ticking.cancel()
        await asyncio.wait([self._ticking])
        with suppress(QueueUnavailableError):
            await self._queue.read(self._store.sign_off)
        await self._stack.aclose()

    def interrupt(self, job_id: str, cause: Interruption) -> None:
        """Cancel a job that runs here, from any thread."""

        def interrupt() -> None:
            if attempt := self._attempts.get(job_id):
                attempt.interrupt(cause)

        if self._process is not None:
            self._loop.call_soon_threadsafe(interrupt)

    def abort(self, job_id: str) -> None:
        """Abort a job that Celery was told to terminate."""
        self._persist(lambda: self._store.abort(job_id))

    def _interrupt_all(self, cause: Interruption) -> None:
        for attempt in list(self._attempts.values()):
            attempt.interrupt(cause)

    def run(
        self, task: Task[..., Any], celery_task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run one attempt at a job in a thread of the pool; return or raise what Celery shall do."""
        self.start()
        request = celery_task.request
        if (name := request.get("result_argument")) and args:
            args, kwargs = args[1:], {**kwargs, name: args[0]}
        try:
            positional, arguments = _document(args), _document(kwargs)
        except ValueError:
            positional = arguments = ""
        most = self._settings.max_payload
        refused = not arguments or (name is None and max(len(positional), len(arguments)) > most)
        job = NewJob(
            request.id,
            task.name,
            task.queue,
            "{}" if refused else arguments,
            canvas=_canvas(celery_task, args, kwargs),
            positional="[]" if refused else positional,
            trace=str(request.get("trace") or ""),
        )
        delivery: Any = request.delivery_info or {}
        redelivered = bool(delivery.get("redelivered"))
        is_known = request.origin == self._settings.queue_name
        begun = self._persist(
            lambda: self._store.begin(job, redelivered=redelivered, is_known=is_known)
        )
        if begun is None:
            raise exceptions.Ignore
        if isinstance(begun, Ended):
            return self._repeat(celery_task, begun)
        if refused:
            problem = f"{task.name}: the arguments are no JSON, or have more than {most} bytes"
            failed = failure(InvalidArgumentError(problem))
            log_failure(job.id, job.task, begun.attempt, failed)
            outcome: Outcome = failed
        else:
            outcome = self._attempt(task, job, begun, args, kwargs)
        return self._settle(celery_task, job, outcome)

    def _attempt(
        self,
        task: Task[..., Any],
        job: NewJob,
        begun: Begun,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Outcome:
        settings = self._settings
        if begun.arguments is not None:
            args, kwargs = tuple(begun.arguments[0]), begun.arguments[1]
        if error := self._refusal(task, begun):
            refused = failure(error)
            log_failure(job.id, job.task, begun.attempt, refused)
            return refused
        limits = Limits(settings.job_timeout, settings.max_attempts, settings.max_result)
        context = JobContext(self._resources, job.id, begun.attempt, begun.enqueued_at)
        attempt = Attempt(task, context, limits, self._threads, begun.trace)
        attempt.set_current()  # in this thread, for what Celery logs of it
        outcome: Outcome = self._call(self._run(attempt, job, begun.attempt, args, kwargs))
        return outcome

    def _refusal(self, task: Task[..., Any], begun: Begun) -> Exception | None:
        """Return why an attempt may not begin."""
        if begun.late > self._settings.job_expires:
            return JobExpiredError(f"it was due too long ago, by {begun.late:.0f} s")
        most = max(task.retry.max_attempts, self._settings.max_attempts)
        if begun.attempt > most:
            return WorkerLostError(f"its worker was lost at {most} attempts")
        return None

    async def _run(
        self,
        attempt: Attempt,
        job: NewJob,
        number: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Outcome:
        self._attempts[job.id] = attempt
        try:
            outcome = await attempt.run(args, kwargs)
            _log(job, number, outcome)
            return outcome
        finally:
            if self._attempts.get(job.id) is attempt:
                del self._attempts[job.id]

    def _settle(self, celery_task: Any, job: NewJob, outcome: Outcome) -> Any:
        """Store what becomes of a job, and let Celery know in its own way."""
        match outcome:
            case Success(document):
                text = document.decode()
                self._persist(lambda: self._store.complete(job.id, text))
                return json.loads(text)
            case Failure():
                self._persist(lambda: self._store.fail(job.id, outcome))
                raise JobFailedError(_error(outcome))
            case Again(delay, reason):
                due_at = time.time() + delay
                self._persist(lambda: self._store.defer(job.id, due_at, job.canvas))
                self._loop.call_soon_threadsafe(self._wake.set)
                raise exceptions.Retry(reason, JobFailedError(reason), delay)
            case Interrupted(Interruption.ABORT):
                self._persist(lambda: self._store.end_aborted(job.id))
                return _revoke(celery_task)
            case Interrupted(cause):
                self._persist(lambda: self._store.give_back(job.id))
                raise exceptions.Reject(cause.value, requeue=True)

    def _repeat(self, celery_task: Any, ended: Ended) -> Any:
        """Let Celery know again how a job ended whose worker was lost before it could."""
        if ended.status is JobStatus.COMPLETE:
            return json.loads(ended.result or "null")
        if ended.status is JobStatus.FAILED:
            raise JobFailedError(ended.error)
        return _revoke(celery_task)

    def _persist(self, call: Callable[[], T]) -> T:
        """Call the database until it answers: Celery must not acknowledge what is not stored."""
        while True:
            try:
                return call()
            except DATABASE_ERRORS as error:
                logger.warning("the database is unavailable, retrying: %s", error.orig)
                if self._ending:
                    raise exceptions.Reject("the database", requeue=True) from error
                time.sleep(PAUSE)

    async def _tick(self) -> None:
        upkeep_at = sign_at = 0.0
        while True:
            now = time.monotonic()
            try:
                if now >= sign_at:
                    await self._queue.read(self._store.sign)
                    await self._queue.read(self._store.recover)
                    await self._publish_lost()
                    sign_at = now + self._settings.health_interval
                await self._abort_marked()
                await self._publish_due()
                if now >= upkeep_at:
                    await self._queue.read(self._remove_expired)
                    upkeep_at = now + UPKEEP
                seconds = await self._seconds_to_next()
            except QueueUnavailableError as error:
                logger.warning("deferred jobs wait: %s", error)
                seconds = TICK
            except Exception:  # whatever it is, the signs of life go on
                logger.exception("upkeep failed")
                seconds = TICK
            self._wake.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _publish_due(self) -> None:
        due = await self._queue.read(lambda: self._store.due(AT_ONCE))
        for number, job in enumerate(due):
            try:
                await self._queue.publish(partial(self._queue.publisher.publish, job))
            except QueueUnavailableError:
                await self._queue.read(partial(self._store.release, due[number:]))
                raise
            await self._queue.read(partial(self._store.published, job))

    async def _publish_lost(self) -> None:
        """Publish jobs again whose messages are gone: a broker erased, or a worker killed too early.

        With Redis, kombu takes a message before it notes that it has it. A message that comes after
        all does nothing.
        """
        for queue in await self._queue.read(self._store.queues_to_check):
            if not await self._queue.publish(partial(self._queue.publisher.waiting, queue)):
                await self._queue.read(partial(self._store.defer_overdue, queue))

    async def _abort_marked(self) -> None:
        if running := list(self._attempts):
            for job_id in await self._queue.read(lambda: self._store.to_be_aborted(running)):
                if attempt := self._attempts.get(job_id):
                    attempt.interrupt(Interruption.ABORT)

    def _remove_expired(self) -> None:
        error = JobExpiredError(f"no worker has begun it by {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
        for job_id in self._store.expired(EXPIRED_AT_ONCE):
            self._store.expire(job_id, failure(error))
        self._store.purge()

    async def _seconds_to_next(self) -> float:
        due_at = await self._queue.read(self._store.next_due)
        return TICK if due_at is None else min(TICK, max(0.0, due_at - time.time()))


def _document(values: Any) -> str:
    """Serialize arguments for the record.

    Raises:
        ValueError: They come from a message of a stranger, and are not JSON as others can read it.
    """
    document = to_json(values)
    check_json(document)
    return document.decode()


def _canvas(celery_task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Return a workflow's job as Celery sends it again; None if the job is in none."""
    request = celery_task.request
    if not (request.chain or request.chord or request.group or request.callbacks):
        return None
    signature = celery_task.signature_from_request(request, args, kwargs)
    return json.dumps(signature)


def _log(job: NewJob, number: int, outcome: Outcome) -> None:
    match outcome:
        case Failure():
            log_failure(job.id, job.task, number, outcome)
        case Again(delay, reason):
            logger.warning("job %s (%s) runs again in %.1f s: %s", job.id, job.task, delay, reason)
        case Interrupted(cause):
            logger.warning("job %s (%s) is cut short: %s", job.id, job.task, cause.value)
        case _:  # Celery itself logs that it succeeded
            pass


def _error(failure: Failure) -> str:
    return f"{failure.type}: {failure.message}".removesuffix(": ")


def _revoke(celery_task: Any) -> Any:
    request = celery_task.request
    celery_task.backend.mark_as_revoked(request.id, "aborted", request=request)
    raise exceptions.Ignore
