"""Celery's threads pool, whose jobs can be cancelled: `worker_pool` and `Request` of the app."""

from typing import Any

from celery.concurrency.thread import TaskPool
from celery.worker.request import Request

from .attempt import Interruption


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


class JobRequest(Request):  # type: ignore[misc] # as above
    """A message, whose job is cancelled where Celery would kill a process."""

    def __init__(self, message: Any, **options: Any) -> None:
        delivery = message.delivery_info
        if "sqs_message" in delivery:  # which has a count in place of AMQP's mark
            count = delivery["sqs_message"]["Attributes"]["ApproximateReceiveCount"]
            delivery["redelivered"] = int(count) > 1
        super().__init__(message, **options)

    def terminate(self, pool: Any, signal: Any = None) -> None:  # noqa: ARG002 - Celery's
        """Abort the job, as `revoke(terminate=True)` and Flower's button ask."""
        self.task.app.runner.abort(self.id)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:  # noqa: ARG002, FBT001, FBT002 - Celery's
        """Give the job back, as a cold shutdown asks."""
        self.task.app.runner.interrupt(self.id, Interruption.SHUTDOWN)
