"""Settings of the queue, each read from the environment variable of its name, or from `.env`."""

from zoneinfo import ZoneInfo

from pydantic import Field, PositiveFloat, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict


class QueueSettings(BaseSettings):
    """Every setting has a default that works on a developer's machine."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore")

    max_payload: PositiveInt = 1_048_576  # bytes of a job's arguments
    max_result: PositiveInt = 1_048_576  # bytes of a job's result

    # Concurrent jobs, for each queue.
    queues: dict[str, PositiveInt] = Field(default_factory=lambda: {"default": 100})
    job_timeout: PositiveFloat = 300  # seconds of an attempt, for tasks that do not say
    job_expires: PositiveFloat = 86_400  # seconds after it is due until a job is not begun
    max_attempts: PositiveInt = 5  # when tasks ask for it; a task may allow more
    shutdown_grace: PositiveFloat = 25  # seconds that due jobs get after SIGTERM
    timezone: ZoneInfo = ZoneInfo("UTC")  # of the tasks' cron schedules

    # Memory: finished jobs leave first; without them, enqueueing is refused.
    keep_result: PositiveInt = 86_400  # seconds that results and idempotency keys are kept
    max_stored_jobs: PositiveInt = 10_000  # jobs that wait, run or have finished
    max_stored_bytes: PositiveInt = 67_108_864  # bytes of their arguments, results, tracebacks
    reuse_failed_key: PositiveFloat = 60  # seconds until the key of a failed job may be used again
