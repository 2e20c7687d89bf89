"""The queue as the service uses it: enqueue tasks, look at jobs, abort them."""

import asyncio
import copy
import hmac
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from importlib import import_module
from typing import Any, ParamSpec, Self, TypeVar
from uuid import uuid4

from pydantic_core import to_json
from sqlalchemy.exc import SQLAlchemyError

from . import tracing
from .celery_app import create_celery
from .dead import DeadJobs
from .errors import IdempotencyConflictError, PayloadTooLargeError, QueueUnavailableError
from .models import Job, QueueHealth, Receipt, Workflow
from .publisher import Publisher
from .settings import QueueSettings
from .store import UNFINISHED, Known, NewJob, Store
from .task import Step, Task
from .workflows import Kind, Part, Workflows

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
THREADS = 4  # that publish, and as many that read
PAUSE = 1  # seconds between two attempts of a worker to publish


class TaskQueue:
    """Enqueues tasks, and reports what has become of them.

    Enqueueing raises `InvalidArgumentError` where an argument does not fit the task, and
    `PayloadTooLargeError`. Every method raises `QueueUnavailableError` when the broker or the
    database does not answer in time; those that only look at jobs need no broker.

    Args:
        app: The Celery app.
        settings: The queue's settings.
        wait: Enqueue again until the broker is back, as a worker does.
    """

    def __init__(self, app: Any, settings: QueueSettings, *, wait: bool = False) -> None:
        self.celery = app
        self.settings = settings
        self.store = Store(settings)
        self.publisher = Publisher(app, settings)
        self._publishing = ThreadPoolExecutor(THREADS, "publish")
        self._reading = ThreadPoolExecutor(THREADS, "read")
        self.dead = DeadJobs(self)
        self._workflows = Workflows(app, self.publisher, self.store, settings)
        self._wait = wait
        self._known_secret: list[str] = []  # which copies share
        self._key: str | None = None
        self._prefix = ""

    def owned_by(self, owner: str, /) -> Self:
        """Return this queue as one of its users may see it.

        What it enqueues belongs to this owner, whose name the ids begin with; idempotency keys and
        `unique` jobs are the owner's own. It knows the owner's jobs only, and of what they failed
        with only what was raised for the owner, as by `Discard`.
        """
        queue = copy.copy(self)
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
        queue = copy.copy(self)
        queue._key = key  # noqa: SLF001 - of this class
        return queue

    async def enqueue(self, task: Task[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        """Run a task as soon as a worker has a free slot."""
        [receipt] = await self._enqueue(task, [(args, kwargs)])
        return receipt

    async def enqueue_in(
        self, delay: timedelta, task: Task[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Receipt:
        """Run a task after a delay; at once if it is negative."""
        due_at = time.time() + delay.total_seconds()
        [receipt] = await self._enqueue(task, [(args, kwargs)], due_at)
        return receipt

    async def enqueue_at(
        self, when: datetime, task: Task[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Receipt:
        """Run a task at a time, which needs a timezone; at once if it has passed."""
        if when.tzinfo is None:
            raise TypeError("a naive datetime names no moment: give it a timezone")
        [receipt] = await self._enqueue(task, [(args, kwargs)], when.timestamp())
        return receipt

    async def enqueue_many(
        self, task: Task[..., Any], calls: Iterable[Mapping[str, Any]], /
    ) -> list[Receipt]:
        """Run a task once for each set of arguments.

        All arguments are validated before the first job is enqueued. An idempotency key holds for
        each call by its place in the list.
        """
        return await self._enqueue(task, [((), call) for call in calls], numbered=True)

    async def chain(self, *steps: Step[Any, Any]) -> str:
        """Run `a.s(x=1), b.s()` one after the other; each gets the result of the one before.

        Returns:
            The id of the workflow, as below.

        Raises:
            ValueError: There is no step.
            TypeError: The queue has an idempotency key.
            InvalidArgumentError: The first step lacks an argument.
        """
        return await self._start(Workflows.chain, steps)

    async def group(self, *steps: Step[Any, Any]) -> str:
        """Run `a.s(x=1), a.s(x=2)` at the same time."""
        return await self._start(Workflows.group, steps)

    async def chord(self, header: Sequence[Step[Any, R]], body: Step[list[R], Any]) -> str:
        """Run the steps of a header at the same time, then the body with the list of their results.

        A step of the header that fails ends the workflow.
        """
        return await self._start(Workflows.chord, header, body)

    async def workflow(self, workflow_id: str, /) -> Workflow | None:
        """Return the state of a workflow, or None if it is unknown or has expired."""
        if not workflow_id.startswith(self._prefix):
            return None
        workflow = await self.read(lambda: self._workflows.state(workflow_id))
        if workflow and self._prefix:
            workflow.jobs = [job.for_owner() for job in workflow.jobs]
        return workflow

    async def job(self, job_id: str, /) -> Job | None:
        """Return the state of a job, or None if it is unknown or has expired."""
        if not job_id.startswith(self._prefix):
            return None
        job = await self.read(lambda: self.store.job(job_id))
        return job.for_owner() if job and self._prefix else job

    async def abort(self, job_id: str, /) -> bool:
        """Abort a job, deferred, queued or running; return False if there is no such job to abort.

        A running job is cancelled by its worker within a second. A `def` task cannot be cancelled.
        """
        if not job_id.startswith(self._prefix):
            return False
        return await self.read(lambda: self.store.abort(job_id))

    async def health(self) -> QueueHealth:
        """Return the number of jobs, how long the oldest due one has waited, and living workers."""
        await self.publish(self.publisher.check)

        def look() -> tuple[int, float | None]:
            return self.store.count(*UNFINISHED), self.store.oldest_due()

        depth, oldest = await self.read(look)
        return QueueHealth(
            depth=depth,
            oldest_seconds=None if oldest is None else max(0.0, time.time() - oldest),
            workers=len(await self.living_workers()),
        )

    async def living_workers(self) -> list[str]:
        """Return the workers that have shown a sign of life of late, each as its host and its id."""
        return await self.read(self.store.living_workers)

    async def _enqueue(
        self,
        task: Task[..., Any],
        calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]],
        due_at: float = 0,
        *,
        numbered: bool = False,
    ) -> list[Receipt]:
        encoded = [task.arguments.encode(*call) for call in calls]
        for arguments in encoded:
            self.check_size(task, arguments)
        keys = [task.unique_key(*args, **kwargs) for args, kwargs in calls]
        with tracing.sending(task.name, task.queue, len(calls) if numbered else None):
            secret = await self._secret(task)
            new: list[NewJob] = []
            for index, (arguments, key) in enumerate(zip(encoded, keys, strict=True)):
                job_id, kind = self._job_id(task, key, secret, f":{index}" if numbered else "")
                job = NewJob(job_id, task.name, task.queue, arguments.decode(), due_at, kind)
                job.trace = tracing.current_trace()
                new.append(job)
            if not numbered:
                tracing.note_job(new[0].id)
            known = await self.submit(new)
        for job, before in zip(new, known, strict=True):
            if job.kind == "key" and before and before.arguments != job.arguments:
                raise IdempotencyConflictError(job.id)
        return [Receipt(j.id, created=before is None) for j, before in zip(new, known, strict=True)]

    async def submit(self, new: Sequence[NewJob]) -> list[Known | None]:
        """Store jobs, and publish those that are due."""
        known = await self.publish(lambda: self.store.add(new))
        now = time.time()
        to_send = [
            job
            for job, before in zip(new, known, strict=True)
            if (before.again if before else job.due_at <= now)
        ]
        waiting, unsent = iter(to_send), {job.id for job in to_send}

        async def send() -> None:  # one by one: each has its own time
            for job in waiting:
                await self._send(job)
                unsent.discard(job.id)

        results = await asyncio.gather(*(send() for _ in range(THREADS)), return_exceptions=True)
        failed = [each for each in results if isinstance(each, BaseException)]
        if failed:
            # What an earlier call has made may have a message.
            mine = {job.id for job, before in zip(new, known, strict=True) if before is None}
            await self.read(lambda: self.store.withdraw(unsent & mine))
            raise failed[0]
        return known

    async def _send(self, job: NewJob) -> None:
        while True:
            try:
                await self.publish(lambda: self.publisher.publish(job))
            except QueueUnavailableError:
                if not self._wait:
                    raise
            else:
                return
            await asyncio.sleep(PAUSE)

    async def _start(
        self, kind: Kind, steps: Sequence[Step[Any, Any]], *body: Step[Any, Any]
    ) -> str:
        if self._key is not None:
            raise TypeError("a workflow takes no idempotency key")
        for step in (*steps, *body):
            self.check_size(step.task, to_json(step.arguments))
        if not steps:
            raise ValueError("a workflow needs at least one step")
        first = steps[0].task
        count = len(steps) if kind is not Workflows.chain else None
        with tracing.sending(first.name, first.queue, count):
            trace = tracing.current_trace()
            workflow_id = self.new_id()
            parts = [Part(step, self.new_id(), trace) for step in (*steps, *body)]
            draft = kind(self._workflows, parts)
            await self.publish(lambda: self._workflows.start(workflow_id, draft))
        return workflow_id

    def check_size(self, task: Task[..., Any], arguments: bytes) -> None:
        """Raise `PayloadTooLargeError` if the arguments take too many bytes."""
        most = self.settings.max_payload
        if len(arguments) > most:
            raise PayloadTooLargeError(
                f"{task.name}: {len(arguments)} bytes of arguments, {most} allowed"
            )

    def new_id(self) -> str:
        """Return an id of this queue's owner."""
        return self._prefix + uuid4().hex

    def _job_id(
        self, task: Task[..., Any], unique: str | None, secret: str, index: str
    ) -> tuple[str, str]:
        """Return an id and its kind; the same for the same key, it cannot be guessed from it."""
        if unique is not None:
            key, kind = f"unique:{task.name}:{unique}", "unique"
        elif self._key is not None:
            key, kind = f"key:{task.name}:{self._key}{index}", "key"
        else:
            return self.new_id(), ""
        text = f"{self._prefix}{key}"
        digest = hmac.new(secret.encode(), text.encode(), "sha256").hexdigest()[:32]
        return self._prefix + digest, kind

    async def _secret(self, task: Task[..., Any]) -> str:
        """Return what the ids of a task's jobs are made with; nothing where they are random."""
        if not task.unique and self._key is None:
            return ""
        if task.unique and self._key is not None:
            raise TypeError(f"{task.name} is unique by its arguments: it takes no key")
        if not self._known_secret:
            secret = await self.read(self.store.secret)
            self._known_secret.append(secret)
        return self._known_secret[0]

    async def publish(self, call: Callable[[], T]) -> T:
        """Call what may wait for the broker, in one of a few threads."""
        return await self._call(self._publishing, call)

    async def read(self, call: Callable[[], T]) -> T:
        """Call what may wait for the database, in one of a few threads."""
        return await self._call(self._reading, call)

    async def _call(self, threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        """Call in a thread; what has not begun in time is not begun at all."""
        future = threads.submit(call)
        try:
            async with asyncio.timeout(None if self._wait else self.settings.enqueue_timeout):
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            begun = not future.cancel()
            raise QueueUnavailableError("no answer in time", maybe_enqueued=begun) from error
        except SQLAlchemyError as error:
            name = type(error).__name__
            raise QueueUnavailableError(f"the database is not available: {name}") from error

    def close(self) -> None:
        """End the threads and close all connections."""
        for threads in (self._publishing, self._reading):
            threads.shutdown(cancel_futures=True)
        self.publisher.close()
        self.store.close()


@asynccontextmanager
async def open_queue(
    settings: QueueSettings, *, app: Any = None, wait: bool = False
) -> AsyncGenerator[TaskQueue]:
    """Open the process's one queue. It connects when it is first used.

    Args:
        settings: The queue's settings.
        app: The Celery app; of a worker, the one that runs.
        wait: Wait while the broker is away, as a worker does, instead of raising
            `QueueUnavailableError` after `ENQUEUE_TIMEOUT`, as the API does.
    """
    if settings.broker() == "sqs":  # whose libraries take a second to load
        await asyncio.to_thread(import_module, "kombu.transport.SQS")
    queue = TaskQueue(app or create_celery(settings, ()), settings, wait=wait)
    try:
        yield queue
    finally:
        with suppress(RuntimeError):
            await asyncio.to_thread(queue.close)
