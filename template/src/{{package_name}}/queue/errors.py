"""Errors of the queue: those that callers get, those that tasks raise, those that jobs fail with."""

from datetime import timedelta


class QueueError(Exception):
    """An error that a call to the queue raises."""


class QueueUnavailableError(QueueError):
    """The queue did not answer in time.

    `maybe_enqueued` is true where the answer was lost on its way back, so that the job may exist
    and run. Enqueue again under the same idempotency key: it will not run twice.
    """

    def __init__(self, message: str, *, maybe_enqueued: bool = False) -> None:
        super().__init__(message)
        self.maybe_enqueued = maybe_enqueued


class InvalidArgumentError(QueueError, TypeError):
    """An argument does not fit its task, or would not survive JSON; nothing was enqueued."""


class PayloadTooLargeError(QueueError, ValueError):
    """The arguments of a job take more bytes than `MAX_PAYLOAD`; nothing was enqueued."""


class IdempotencyConflictError(QueueError):
    """The idempotency key belongs to a job with other arguments; nothing was enqueued."""

    def __init__(self, job_id: str) -> None:
        super().__init__("the idempotency key was used with other arguments")
        self.job_id = job_id


class Retry(Exception):  # noqa: N818 - ARQ's name
    """Raise in a task to run it again after `defer` (seconds or a timedelta), as a new attempt."""

    defer: float = 0  # of a subclass that does not call `__init__`

    def __init__(self, defer: float | timedelta = 0) -> None:
        self.defer = defer.total_seconds() if isinstance(defer, timedelta) else float(defer)
        super().__init__(f"asked for another attempt in {self.defer:g} s")


class Discard(Exception):  # noqa: N818 - Oban's and Sidekiq's name
    """Raise in a task to fail the job without another attempt; its owner may read the message."""


class JobTimeoutError(Exception):
    """The attempt took longer than the task's timeout."""


class JobExpiredError(Exception):
    """The job was due longer than `JOB_EXPIRES` ago and was not begun."""


class WorkerLostError(Exception):
    """The job's worker was lost at every attempt, as by a crash or `kill -9`."""


class InvalidJobError(Exception):
    """The stored job cannot be read, or names a task that does not exist."""


class InvalidResultError(Exception):
    """The task returned something that cannot be stored: not JSON, or larger than `MAX_RESULT`."""


# The errors whose messages the owner of a job may read; any other may hold what is not theirs.
PUBLIC = (Discard, JobTimeoutError, JobExpiredError, WorkerLostError, InvalidResultError)
