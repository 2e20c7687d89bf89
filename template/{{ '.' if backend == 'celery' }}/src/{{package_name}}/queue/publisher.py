"""Publishing: from a few threads with connections of their own, which answer within a second.

Celery publishes synchronously, and would wait for a broker that is away. A channel is not for two
threads.
"""

import json
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, TypeVar

from kombu.connection import Connection
from kombu.exceptions import OperationalError

from .celery_app import publisher_options
from .errors import QueueUnavailableError
from .settings import QueueSettings
from .store import NewJob

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Publisher:
    """Sends the messages of jobs. Every method is to be called in a thread that may wait.

    Args:
        app: The Celery app.
        settings: The queue's settings.
    """

    def __init__(self, app: Any, settings: QueueSettings) -> None:
        self._app = app
        self._settings = settings
        self._own = threading.local()
        self._connections: list[Any] = []

    def publish(self, job: NewJob) -> None:
        """Send a job's message.

        Raises:
            QueueUnavailableError: The broker did not confirm it in time.
        """
        if job.canvas:
            signature = self._app.signature(json.loads(job.canvas))
            self.send(lambda options: signature.apply_async(**options))
            return
        amqp = self._app.amqp
        message = amqp.create_task_message(
            job.id,
            job.task,
            args=json.loads(job.positional),
            kwargs=json.loads(job.arguments),
            origin=self._settings.queue_name,
        )
        queue = amqp.queues[self._settings.celery_queue(job.queue)]
        self.send(
            lambda options: amqp.send_task_message(
                options["producer"], job.task, message, queue=queue, retry=False
            )
        )

    def check(self) -> None:
        """Ask the broker for the default queue, and create it if it is not there.

        Raises:
            QueueUnavailableError: There was no answer in time.
        """
        queue = self._app.amqp.queues[self._settings.celery_queue("default")]
        self.send(lambda options: queue(options["producer"].channel).declare())

    def waiting(self, queue: str) -> int:
        """Return how many messages wait in a queue, which is created if it is not there.

        Raises:
            QueueUnavailableError: There was no answer in time.
        """
        declared = self._app.amqp.queues[self._settings.celery_queue(queue)]
        return self.send(
            lambda options: int(declared(options["producer"].channel).queue_declare().message_count)
        )

    def send(self, call: Callable[[dict[str, Any]], T]) -> T:
        """Call something with Celery's options for publishing on this thread's connection.

        A connection that was lost since its last use is opened again; what is sent twice runs once.

        Raises:
            QueueUnavailableError: The broker did not answer in time.
        """
        used_before = getattr(self._own, "producer", None) is not None
        try:
            producer = self._producer()
            return call({"producer": producer, "retry": False})
        except self._errors() as error:
            self._disconnect()
            name = type(error.__cause__ or error).__name__
            if used_before and not name.endswith("TimeoutError"):  # botocore has its own
                return self.send(call)
            raise QueueUnavailableError(f"the broker is not available: {name}") from error

    def close(self) -> None:
        """Close all connections, whose threads have ended."""
        for connection in self._connections:
            with suppress(Exception):
                connection.release()
        self._connections.clear()

    def _producer(self) -> Any:
        if getattr(self._own, "producer", None) is None:
            connection = Connection(
                self._settings.broker_url.get_secret_value(),
                transport_options=publisher_options(self._settings),
                connect_timeout=1,
            )
            self._own.connection = connection
            self._connections.append(connection)
            connection.ensure_connection(max_retries=1, interval_start=0)
            self._own.producer = self._app.amqp.Producer(connection.channel(), auto_declare=False)
        return self._own.producer

    def _disconnect(self) -> None:
        connection, self._own.producer = self._own.connection, None
        with suppress(ValueError):
            self._connections.remove(connection)
        with suppress(Exception):
            connection.collect(socket_timeout=0.1)

    def _errors(self) -> tuple[type[BaseException], ...]:
        connection = getattr(self._own, "connection", None)
        known = (*connection.connection_errors, *connection.channel_errors) if connection else ()
        if self._settings.broker() == "sqs":
            boto: Any = import_module("botocore.exceptions")  # absent elsewhere
            known = (*known, boto.ClientError)
        return (OperationalError, OSError, *known)
