"""The worker's Celery app: the configuration, and the tasks that it runs."""

from collections.abc import Iterable
from typing import Any

from .celery_app import create_celery
from .runner import OpenResources, Runner
from .settings import QueueSettings
from .task import Task


def create_worker_app(
    tasks: Iterable[Task[..., Any]], settings: QueueSettings, open_resources: OpenResources
) -> Any:
    """Return a Celery app that runs tasks.

    Args:
        tasks: The tasks of the service.
        settings: The queue's settings.
        open_resources: Opens what tasks get as `ctx.resources`, once per process.

    Raises:
        ValueError: Two tasks have the same name, a task's queue is not in `QUEUES`, or its timeout
            is too long.
    """
    tasks = list(tasks)
    app = create_celery(settings, tasks)
    app.runner = Runner(app, tasks, settings, open_resources)
    return app
