"""SAQ, measured: its client, and the settings of its worker."""

import asyncio
import os
from typing import Any

import uvloop
from protocol import NAP, Client, report_start, serve, wait_for_gate
from saq import Queue


async def noop(_ctx: dict[str, Any]) -> None:
    """Do nothing."""


async def nap(_ctx: dict[str, Any]) -> None:
    """Sleep for 50 ms."""
    await asyncio.sleep(NAP)


async def probe(_ctx: dict[str, Any], *, sent: float) -> None:
    """Report the start."""
    report_start(sent)


async def hold(_ctx: dict[str, Any], *, sent: float) -> None:
    """Keep a slot busy until the gate opens."""
    report_start(sent)
    await wait_for_gate()


settings = {
    "queue": Queue.from_url(os.environ["REDIS_URL"]),
    "functions": [noop, nap, probe, hold],
    "concurrency": 100,
}


class Saq(Client):
    """`Queue.enqueue` with the defaults of a job."""

    packages = ("saq", "redis", "hiredis", "uvloop")

    async def open(self) -> None:
        """Connect."""
        self._queue = Queue.from_url(os.environ["REDIS_URL"])
        await self._queue.connect()

    async def close(self) -> None:
        """Disconnect."""
        await self._queue.disconnect()

    async def enqueue(self, task: str, **arguments: float) -> str:
        """Enqueue a job."""
        job = await self._queue.enqueue(task, **arguments)
        return job.key

    async def status(self, job_id: str) -> object:
        """Read a job."""
        return await self._queue.job(job_id)

    async def health(self) -> object:
        """Count the jobs and list the workers."""
        return await self._queue.info()


if __name__ == "__main__":
    serve(Saq(), uvloop.new_event_loop)
