"""What can be known of a job from outside."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel


class JobStatus(StrEnum):
    """Where a job is on its way; the last three are final."""

    DEFERRED = "deferred"
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETE = "complete"
    FAILED = "failed"
    ABORTED = "aborted"


class JobInfo(BaseModel):
    """A job as it is now. `attempts` counts the tries begun, `finished_at` tells that it ended."""

    job_id: str
    status: JobStatus
    result: Any = None
    error: str | None = None
    function: str | None = None
    attempts: int = 0
    enqueued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True)
class Job:
    """What enqueueing gives: the job, and whether this call made it."""

    job_id: str
    created: bool = True


class QueueUnavailableError(Exception):
    """The queue takes no jobs now; nothing was enqueued."""
