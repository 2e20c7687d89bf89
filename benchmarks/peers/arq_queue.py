"""ARQ, measured: its client, and workers with its defaults and tuned."""

import asyncio
import os
import sys
from typing import Any

import uvloop
from arq import create_pool
from arq.connections import RedisSettings
from arq.constants import default_queue_name, health_check_key_suffix
from arq.jobs import Job
from protocol import NAP, Client, report_start, serve, wait_for_gate

SETTINGS = RedisSettings.from_dsn(os.environ["REDIS_URL"])


async def noop(_ctx: dict[str, Any]) -> None:
    """Do nothing."""


async def nap(_ctx: dict[str, Any]) -> None:
    """Sleep for 50 ms."""
    await asyncio.sleep(NAP)


async def probe(_ctx: dict[str, Any], sent: float) -> None:
    """Report the start."""
    report_start(sent)


async def hold(_ctx: dict[str, Any], sent: float) -> None:
    """Keep a slot busy until the gate opens."""
    report_start(sent)
    await wait_for_gate()


class Defaults:
    """A worker with ARQ's defaults."""

    functions = (noop, nap, probe, hold)
    redis_settings = SETTINGS


class Tuned:
    """A worker that runs as many jobs at a time as the others, and looks for jobs often."""

    functions = (noop, nap, probe, hold)
    redis_settings = SETTINGS
    max_jobs = 100
    poll_delay = 0.01


class Arq(Client):
    """`ArqRedis.enqueue_job` with the defaults of a job."""

    packages = ("arq", "redis", "hiredis")
    concurrency = 10

    async def open(self) -> None:
        """Connect."""
        self._redis = await create_pool(SETTINGS)

    async def close(self) -> None:
        """Disconnect."""
        await self._redis.aclose(close_connection_pool=True)

    async def enqueue(self, task: str, **arguments: float) -> str:
        """Enqueue a job."""
        job = await self._redis.enqueue_job(task, **arguments)
        assert job is not None  # noqa: S101 - its id is random
        return job.job_id

    async def status(self, job_id: str) -> object:
        """Read a job's status."""
        return await Job(job_id, self._redis).status()

    async def health(self) -> object:
        """Read what the worker last said of itself and the queue."""
        return await self._redis.get(default_queue_name + health_check_key_suffix)


class TunedArq(Arq):
    """The client of a tuned worker runs on uvloop, too."""

    packages = (*Arq.packages, "uvloop")
    concurrency = 100


if __name__ == "__main__":
    if sys.argv[1:] == ["tuned"]:
        serve(TunedArq(), uvloop.new_event_loop)
    else:
        serve(Arq())
