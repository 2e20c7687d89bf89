"""The queue of this service: define tasks, enqueue them, look at jobs.

README.md in this folder tells how it works.
"""

from .attempt import CurrentJob, current_job
from .client import TaskQueue, open_queue
from .dead import DeadJobs
from .errors import (
    Discard,
    IdempotencyConflictError,
    InvalidArgumentError,
    PayloadTooLargeError,
    QueueError,
    QueueUnavailableError,
    Retry,
)
from .models import DeadJob, Job, JobContext, JobStatus, QueueHealth, Receipt, Workflow
from .retry import RetryPolicy
from .settings import QueueSettings
from .task import Step, Task, task
from .tracing import current_trace_id

__all__ = [
    "CurrentJob",
    "DeadJob",
    "DeadJobs",
    "Discard",
    "IdempotencyConflictError",
    "InvalidArgumentError",
    "Job",
    "JobContext",
    "JobStatus",
    "PayloadTooLargeError",
    "QueueError",
    "QueueHealth",
    "QueueSettings",
    "QueueUnavailableError",
    "Receipt",
    "Retry",
    "RetryPolicy",
    "Step",
    "Task",
    "TaskQueue",
    "Workflow",
    "current_job",
    "current_trace_id",
    "open_queue",
    "task",
]
