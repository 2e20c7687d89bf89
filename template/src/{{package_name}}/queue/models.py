"""What callers see of the queue: receipts, jobs, dead jobs, workflows, health."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, Field

ResourcesT = TypeVar("ResourcesT")


class JobStatus(StrEnum):
    """The state of a job; the last three are final."""

    DEFERRED = "deferred"
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETE = "complete"
    FAILED = "failed"
    ABORTED = "aborted"


@dataclass(frozen=True)  # with slots, Python 3.11 cannot call JobContext[Resources]
class JobContext(Generic[ResourcesT]):
    """What a task gets as its first argument: the process's resources, and the running attempt.

    Attributes:
        resources: What the worker opened at its start.
        job_id: The job's id.
        attempt: The number of this attempt; the first is 1.
        enqueued_at: When the job was enqueued.
    """

    resources: ResourcesT
    job_id: str
    attempt: int
    enqueued_at: datetime


@dataclass(frozen=True, slots=True)
class Receipt:
    """What enqueueing returns: the job's id, and whether this call created the job."""

    job_id: str
    created: bool = True


PRIVATE_ERROR = "the job failed"


class Job(BaseModel):
    """The state of a job; `attempts` counts those that have begun."""

    job_id: str
    status: JobStatus
    result: Any = None
    error: str | None = None
    function: str | None = None
    attempts: int = 0
    enqueued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error_is_public: bool = Field(default=False, exclude=True)

    def for_owner(self) -> Self:
        """Return it as its owner may see it: errors that were not raised for them may hold secrets."""
        hidden = self.error is not None and not self.error_is_public
        return self.model_copy(update={"error": PRIVATE_ERROR}) if hidden else self


class DeadJob(Job):
    """A job that failed permanently, kept with its arguments and traceback."""

    positional: tuple[Any, ...] = ()
    arguments: dict[str, Any] = Field(default_factory=dict)
    traceback: str = ""


class Workflow(BaseModel):
    """The state of a chain, group or chord: its tasks, and those of its jobs that are enqueued."""

    workflow_id: str
    kind: str
    status: JobStatus
    tasks: list[str]
    jobs: list[Job]


class QueueHealth(BaseModel):
    """The size of the queue, how long its oldest due job has waited, and the living workers."""

    status: str = "ready"
    depth: int
    oldest_seconds: float | None
    workers: int
