"""The tasks for ARQ's own worker: `arq <package>.worker.WorkerSettings`."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import UTC
from typing import Any

from arq import Retry as ArqRetry
from arq.worker import Function, func
from pydantic_core import from_json

from .attempt import Again, Failure, Interrupted, Limits, Success
from .client import TaskQueue
from .connection import connect
from .documents import JobFailedError, StoredError, deserialize, serialize
from .models import JobContext
from .redis_url import arq_redis_settings
from .settings import QueueSettings
from .task import DEFAULT_QUEUE, Task
from .threads import DaemonThreads
from .worker import ArqAttempt

logger = logging.getLogger(__name__)
MISSING = (
    "leases (the jobs of a killed worker wait for their timeout), fencing, dead jobs, chains, "
    "rate limits, cron, queues other than the default one, pauses, metrics, the sender's trace, "
    "waiting for Redis"
)
CHECK_TIMEOUT = 10  # seconds
OpenResources = Callable[[TaskQueue], AbstractAsyncContextManager[Any]]


def arq_worker_settings(
    tasks: Iterable[Task[..., Any]], settings: QueueSettings, open_resources: OpenResources
) -> type:
    """Return what `arq` reads.

    Args:
        tasks: The tasks.
        settings: The queue's settings.
        open_resources: Opens what tasks get as `ctx.resources`.
    """
    if "--check" in sys.argv:
        signal.alarm(CHECK_TIMEOUT)  # ARQ's check would wait for a hung Redis for ever

    async def on_startup(ctx: dict[str, Any]) -> None:
        logger.warning("ARQ's own worker runs these tasks without: %s", MISSING)
        ctx["stack"] = stack = AsyncExitStack()
        queue = TaskQueue(ctx["redis"], settings)
        ctx["resources"] = await stack.enter_async_context(open_resources(queue))

    async def on_shutdown(ctx: dict[str, Any]) -> None:
        await ctx["stack"].aclose()

    attributes = {
        "functions": [as_arq_function(task, settings) for task in tasks],
        "redis_pool": connect(settings),
        "redis_settings": arq_redis_settings(settings.redis_url.get_secret_value()),
        "queue_name": settings.queue_name,
        "job_serializer": serialize,
        "job_deserializer": deserialize,
        "allow_abort_jobs": True,
        "max_jobs": settings.queues.get(DEFAULT_QUEUE, 1),
        "job_completion_wait": int(settings.shutdown_grace),
        "keep_result": settings.keep_result,
        "health_check_interval": settings.health_interval,
        "log_results": False,
        "on_startup": on_startup,
        "on_shutdown": on_shutdown,
    }
    return type("WorkerSettings", (), attributes)


def as_arq_function(task: Task[..., Any], settings: QueueSettings) -> Function:
    """Wrap a task for ARQ."""
    limits = Limits(settings.job_timeout, settings.max_attempts, settings.max_result)

    async def run(ctx: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        context = JobContext(
            resources=ctx["resources"],
            job_id=ctx["job_id"],
            attempt=ctx["job_try"],
            enqueued_at=ctx["enqueue_time"].astimezone(UTC),
        )
        outcome = await ArqAttempt(task, context, limits, DaemonThreads()).run(args, kwargs)
        match outcome:
            case Success(document):
                return from_json(document)
            case Again(delay):
                raise ArqRetry(defer=delay)
            case Interrupted():  # ARQ aborts the job, or shuts down
                raise asyncio.CancelledError
            case Failure(type_, message, traceback, public):
                raise JobFailedError(
                    StoredError(type=type_, message=message, traceback=traceback, public=public)
                )

    attempts = max(task.retry.max_attempts, limits.max_attempts)
    timeout = (task.timeout or limits.timeout) + 5  # the task's own timeout comes first
    return func(run, name=task.name, max_tries=attempts, timeout=timeout)
