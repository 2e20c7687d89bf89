"""Celery's pool, consumer and messages: jobs can be cancelled, and outlast a connection."""

import logging
import threading
from functools import partial
from typing import Any

from celery.concurrency.thread import TaskPool
from celery.worker.consumer import Consumer
from celery.worker.request import Request

from .attempt import Interruption

LONGEST_PAUSE = 5  # seconds
logger = logging.getLogger(__name__)


class JobPool(TaskPool):  # type: ignore[misc] # Celery has no types
    """Threads that wait for jobs of one event loop, which starts and ends with them."""

    app: Any

    def on_start(self) -> None:
        """Start the event loop, and open the resources."""
        self.app.set_default()  # for the threads
        self.app.runner.start()

    def on_close(self) -> None:
        """Begin the grace of the jobs that run."""
        self.app.runner.end()

    def on_stop(self) -> None:
        """Wait for running jobs."""
        self.app.runner.end()
        super().on_stop()
        self.app.runner.stop()

    def on_terminate(self) -> None:
        """As above: a cold shutdown has given the jobs back."""
        self.on_stop()


class JobConsumer(Consumer):  # type: ignore[misc] # as above
    """Celery's consumer, whose jobs go on while the broker is away."""

    task_consumer: Any
    connection_errors: Any
    channel_errors: Any

    def create_task_handler(self, *args: Any, **options: Any) -> Any:
        """Return what takes a message; one that Celery cannot read would end the worker."""
        base: Any = super()
        handle = base.create_task_handler(*args, **options)

        def handle_safely(message: Any) -> None:
            try:
                handle(message)
            except (*self.connection_errors, *self.channel_errors):
                raise
            except Exception:
                logger.exception("a message is refused")
                message.ack()

        return handle_safely

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002 - Celery's
        """Refuse a message as Celery does, and log none of its arguments."""
        super().on_unknown_task("hidden", message, exc)

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, with a few seconds between attempts, however many there were."""
        conn.ensure_connection = partial(conn.ensure_connection, interval_max=LONGEST_PAUSE)
        return super().ensure_connected(conn)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Keep the messages of jobs that go on; kombu gives back those of Redis, or fails in it."""
        if self.task_consumer is not None:
            self.task_consumer.channel.do_restore = False
        super().on_connection_error_after_connected(exc)


class JobRequest(Request):  # type: ignore[misc] # as above
    """A message, whose job is cancelled where Celery would kill a process."""

    def __init__(self, message: Any, *, connection_errors: Any = (), **options: Any) -> None:
        delivery = message.delivery_info
        if "sqs_message" in delivery:  # which has a count in place of AMQP's mark
            count = delivery["sqs_message"]["Attributes"]["ApproximateReceiveCount"]
            delivery["redelivered"] = int(count) > 1
        # As kombu says that Redis has closed the connection: it must not end the worker.
        errors = (*connection_errors, AttributeError)
        super().__init__(message, connection_errors=errors, **options)

    def terminate(self, pool: Any, signal: Any = None) -> None:  # noqa: ARG002 - Celery's
        """Abort the job, as `revoke(terminate=True)` and Flower's button ask."""
        self._abort()

    def _announce_revoked(self, reason: Any, terminated: Any, signum: Any, expired: Any) -> None:
        """Abort a job that was revoked while its message waited; the database may take a while."""
        super()._announce_revoked(reason, terminated, signum, expired)
        threading.Thread(target=self._abort, name="abort", daemon=True).start()

    def _abort(self) -> None:
        self.task.app.runner.abort(self.id)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:  # noqa: ARG002, FBT001, FBT002 - Celery's
        """Give the job back, as a cold shutdown asks."""
        self.task.app.runner.interrupt(self.id, Interruption.SHUTDOWN)
