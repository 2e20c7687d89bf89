"""Every Redis key of the queue. README.md beside this file describes type, content and expiry.

The first five are ARQ's, so that ARQ's own client, status calls and workers understand them.
"""

from arq import constants

from .task import DEFAULT_QUEUE

JOB = "arq:job:"
IN_PROGRESS = "arq:in-progress:"
ATTEMPTS = "arq:retry:"
RESULT = "arq:result:"
ABORTS = "arq:abort"
HEALTH_SUFFIX = ":health-check"

# The scripts spell these names out: a release of ARQ that changes one must fail here first.
assert (  # noqa: S101
    constants.job_key_prefix,
    constants.in_progress_key_prefix,
    constants.retry_key_prefix,
    constants.result_key_prefix,
    constants.abort_jobs_ss,
    constants.health_check_key_suffix,
) == (JOB, IN_PROGRESS, ATTEMPTS, RESULT, ABORTS, HEALTH_SUFFIX)


class Keys:
    """The keys of one service; all but ARQ's begin with its name."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.running = f"{service}:running"
        self.dead = f"{service}:dead"
        self.finished = f"{service}:finished"
        self.figures = f"{service}:figures"
        self.paused = f"{service}:paused"
        self.tasks = f"{service}:tasks"
        self.workers = f"{service}:workers"
        self.cron = f"{service}:cron"
        self.secret = f"{service}:secret"
        self.health = service + HEALTH_SUFFIX

    def queue(self, name: str) -> str:
        """Return the sorted set of a queue."""
        return self.service if name == DEFAULT_QUEUE else f"{self.service}:queue:{name}"

    def dead_job(self, job_id: str) -> str:
        """Return the document of a dead job."""
        return f"{self.service}:dead:{job_id}"

    def minute(self, number: int, status: str) -> str:
        """Return the count of the jobs that finished in a minute, counted since 1970."""
        return f"{self.service}:minute:{number}:{status}"

    def chain(self, chain_id: str) -> str:
        """Return the hash of a chain."""
        return f"{self.service}:chain:{chain_id}"
