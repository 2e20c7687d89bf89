"""The queue of this service: define tasks, enqueue them, look at jobs.

README.md in this folder tells how it works.
"""

from .attempt import CurrentJob, current_job
from .client import TaskQueue, open_queue
from .errors import (
    Discard,
    IdempotencyConflictError,
    InvalidArgumentError,
    PayloadTooLargeError,
    QueueError,
    QueueUnavailableError,
    Retry,
)
from .models import Job, JobContext, JobStatus, QueueHealth, Receipt
from .monitor import Monitor
from .monitoring import BOUNDS, JobDetails, Overview, TaskFigures
from .retry import RetryPolicy
from .runner import run_jobs_here
from .settings import QueueSettings
from .task import Step, Task, task
from .tracing import current_trace_id

__all__ = [
    "BOUNDS",
    "CurrentJob",
    "Discard",
    "IdempotencyConflictError",
    "InvalidArgumentError",
    "Job",
    "JobContext",
    "JobDetails",
    "JobStatus",
    "Monitor",
    "Overview",
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
    "TaskFigures",
    "TaskQueue",
    "current_job",
    "current_trace_id",
    "open_queue",
    "run_jobs_here",
    "task",
]
