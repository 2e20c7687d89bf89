"""Celery's configuration: what acknowledges late, waits shortly, and travels as plain JSON."""

import json
from collections.abc import Iterable
from typing import Any

from celery import Celery
from celery.schedules import crontab
from kombu import serialization
from kombu.entity import Queue

from .settings import QueueSettings
from .task import RateLimit, Task

# kombu's own "json" turns {"__type__": ..., "__value__": ...} into objects, or fails.
SERIALIZER = "plain-json"
CONTENT_TYPE = "application/x-plain-json"
CONSUMERS = 10  # connections of a worker's process, and of Flower's
LONG = 30  # seconds
OUTAGE = 120  # seconds that a worker waits for the broker with the next job of a workflow
QUEUE_ARGUMENTS = {
    "amqp": {
        "x-queue-type": "quorum",  # which survives a node
        "x-consumer-timeout": 2_592_000_000,  # milliseconds of a job, instead of 30 minutes
    }
}

serialization.register(SERIALIZER, json.dumps, json.loads, CONTENT_TYPE, "utf-8")


def create_celery(settings: QueueSettings, tasks: Iterable[Task[..., Any]]) -> Any:
    """Return a Celery app, to which `worker.py` adds what runs the tasks.

    Raises:
        ValueError: A task's queue is not in `QUEUES`, or its timeout is too long.
    """
    tasks = list(tasks)
    _validate(tasks, settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)  # of beat's schedule, and of SQLite
    broker = settings.broker()
    app: Any = Celery(settings.queue_name, set_as_current=False)
    default = settings.celery_queue("default")
    app.conf.update(
        broker_url=settings.broker_url.get_secret_value(),
        broker_transport=f"{__package__}.sqs:Transport" if broker == "sqs" else None,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=4,
        broker_pool_limit=CONSUMERS,
        broker_transport_options=consumer_options(settings),
        worker_pool=f"{__package__}.pool:JobPool",
        worker_consumer=f"{__package__}.pool:JobConsumer",
        worker_concurrency=sum(settings.queues.values()),
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_enable_remote_control=broker != "sqs",  # which would be queues of its own
        worker_proc_alive_timeout=LONG,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_default_queue=default,
        task_create_missing_queues=False,
        task_routes={task.name: {"queue": settings.celery_queue(task.queue)} for task in tasks},
        task_queues=[
            Queue(settings.celery_queue(name), queue_arguments=QUEUE_ARGUMENTS.get(broker))
            for name in dict.fromkeys(["default", *settings.queues])
        ],
        task_serializer=SERIALIZER,
        result_serializer=SERIALIZER,
        accept_content=[SERIALIZER, "json"],
        result_accept_content=[SERIALIZER, "json"],
        task_track_started=False,
        result_backend=result_backend(settings),
        result_expires=settings.keep_result,
        result_backend_always_retry=True,
        result_backend_max_sleep_between_retries_ms=1000,
        task_publish_retry_policy={"max_retries": OUTAGE, "interval_max": 1},
        database_engine_options=_engine_options(settings),
        timezone=settings.timezone.key,
        enable_utc=True,
        beat_schedule_filename=str(settings.data_dir / "celerybeat-schedule"),
        beat_schedule={
            task.name: {
                "task": task.name,
                "schedule": crontab.from_string(task.cron.fields),
            }
            for task in tasks
            if task.cron
        },
    )
    # Arguments and results are nobody's business: neither the log nor Flower shows them.
    app.amqp.argsrepr_maxsize = app.amqp.kwargsrepr_maxsize = 0
    return app


def consumer_options(settings: QueueSettings) -> dict[str, Any]:
    """Return what a worker's connections need, by the broker's kind."""
    match settings.broker():
        case "redis":
            return {
                "visibility_timeout": settings.visibility_timeout,
                "unacked_restore_throttle": 1,
                "socket_connect_timeout": 4,
                "socket_keepalive": True,
                "health_check_interval": 10,
            }
        case "sqs":
            return {
                "visibility_timeout": settings.visibility_timeout,
                "is_secure": False,  # of a URL with a host, such as moto's; AWS has TLS
                "wait_time_seconds": settings.sqs_wait,
                "polling_interval": 0.1,  # between two requests that found nothing
            }
        case _:
            return {"confirm_publish": True}


def publisher_options(settings: QueueSettings) -> dict[str, Any]:
    """Return what connections need that must answer within a second."""
    seconds: dict[str, dict[str, Any]] = {
        "redis": {"socket_timeout": 1, "socket_connect_timeout": 1},
        "amqp": {"read_timeout": 1, "write_timeout": 1, "confirm_timeout": 1},
        "sqs": {
            "client-config": {
                "connect_timeout": 1,
                "read_timeout": 1,
                "retries": {"total_max_attempts": 1},
            }
        },
    }
    return consumer_options(settings) | seconds[settings.broker()]


def result_backend(settings: QueueSettings) -> str:
    """Return where Celery stores results, for `AsyncResult` and the counting of chords."""
    if settings.result_backend:
        return settings.result_backend.get_secret_value()
    if settings.broker() == "redis":
        url = settings.broker_url.get_secret_value()
        return f"{__package__}.redis_results:QuietRedisBackend+{url}"
    return f"db+{settings.sqlalchemy_url()}"


def _engine_options(settings: QueueSettings) -> dict[str, Any]:
    if settings.sqlalchemy_url().startswith("sqlite"):
        return {"connect_args": {"timeout": LONG}}  # until another process has written
    return {"pool_pre_ping": True}


def celery_rate(limit: RateLimit | None) -> str | None:
    """Return a rate limit as Celery writes it; it counts for each worker by itself."""
    if limit is None:
        return None
    return f"{limit.count * 3600 / limit.seconds}/h"


def _validate(tasks: list[Task[..., Any]], settings: QueueSettings) -> None:
    names = [task.name for task in tasks]
    comes_again = settings.broker() != "amqp"
    for task in tasks:
        if names.count(task.name) > 1:
            raise ValueError(f"two tasks have the name {task.name}")
        if task.queue not in settings.queues:
            raise ValueError(f"QUEUES must name {task.queue!r}, the queue of task {task.name}")
        if task.cron:
            _validate_cron(task.name, task.cron.fields)
        timeout = task.timeout or settings.job_timeout
        if comes_again and timeout >= settings.visibility_timeout:
            raise ValueError(f"VISIBILITY_TIMEOUT must be longer than the timeout of {task.name}")


def _validate_cron(name: str, fields: str) -> None:
    """Refuse what Celery's beat reads in another way than cron, or not at all."""
    _, _, day, _, weekday = fields.split()
    if "*" not in {day, weekday}:
        raise ValueError(f"{name}: Celery wants day and weekday to match, cron one of them")
    try:
        crontab.from_string(fields)
    except ValueError as error:
        raise ValueError(f"{name}: Celery does not know the schedule {fields!r}") from error
