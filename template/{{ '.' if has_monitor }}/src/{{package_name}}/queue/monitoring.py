"""What operators see of the queue: an overview, jobs with all that is known of them, figures."""

from dataclasses import dataclass, field
from datetime import datetime

from pydantic import BaseModel

from .models import DeadJob, Job, JobStatus

# Upper bounds of histograms, in seconds; what takes longer counts in the last one, without a bound.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
MINUTES = 60  # that the overview covers


class RunningJob(BaseModel):
    """A job that a worker runs."""

    job_id: str
    function: str | None
    started_at: datetime | None


class WorkerState(BaseModel):
    """A living worker, and what it runs."""

    name: str
    jobs: list[RunningJob]


class QueueState(BaseModel):
    """A queue; `waiting` counts jobs that are queued or deferred, `oldest_seconds` is of a due one."""

    name: str
    waiting: int
    running: int
    oldest_seconds: float | None
    paused: bool


class PeriodicTask(BaseModel):
    """A task with a cron schedule, and its next run."""

    function: str
    schedule: str
    next_run: datetime


class Minute(BaseModel):
    """How many jobs finished in the minute that begins at `start`."""

    start: datetime
    complete: int
    failed: int


class Overview(BaseModel):
    """The state of the queue: final statuses are counted since the counters began."""

    counts: dict[JobStatus, int]
    dead: int
    minutes: list[Minute]  # the last `MINUTES`, the newest last
    queues: list[QueueState]
    workers: list[WorkerState]
    periodic: list[PeriodicTask]
    tasks: list[str]  # those that have finished a job, and those that have one


class ListedJob(Job):
    """A job in a list: without its result, which may be large."""

    due_at: datetime | None = None


class JobDetails(DeadJob):
    """All that is known of a job."""

    queue: str | None = None
    due_at: datetime | None = None
    dead: bool = False  # it can be retried and deleted


@dataclass(slots=True)
class Histogram:
    """Durations: how many were at most as long as each of `BOUNDS` (and longer), not cumulated."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    sum: float = 0  # seconds


@dataclass(slots=True)
class TaskFigures:
    """The figures of a task's finished jobs.

    Attributes:
        finished: How many have ended with each final status.
        duration: How long their last attempts took.
        wait: How long they waited from when they were due until their last attempt began.
    """

    finished: dict[JobStatus, int] = field(default_factory=dict[JobStatus, int])
    duration: Histogram = field(default_factory=Histogram)
    wait: Histogram = field(default_factory=Histogram)
