"""Docket, measured: its tasks and its client."""

import asyncio
import os
from contextlib import AsyncExitStack

import uvloop
from docket import Docket
from protocol import NAP, Client, report_start, serve, wait_for_gate


async def noop() -> None:
    """Do nothing."""


async def nap() -> None:
    """Sleep for 50 ms."""
    await asyncio.sleep(NAP)


async def probe(sent: float) -> None:
    """Report the start."""
    report_start(sent)


async def hold(sent: float) -> None:
    """Keep a slot busy until the gate opens."""
    report_start(sent)
    await wait_for_gate()


TASKS = (noop, nap, probe, hold)
BY_NAME = {task.__name__: task for task in TASKS}


class DocketClient(Client):
    """`Docket.add` and `Docket.add_many`."""

    packages = ("pydocket", "redis", "hiredis", "uvloop")

    async def open(self) -> None:
        """Connect."""
        self._stack = AsyncExitStack()
        self._docket = await self._stack.enter_async_context(Docket(url=os.environ["REDIS_URL"]))
        for task in TASKS:
            self._docket.register(task)

    async def close(self) -> None:
        """Disconnect."""
        await self._stack.aclose()

    async def enqueue(self, task: str, **arguments: float) -> str:
        """Enqueue a job."""
        execution = await self._docket.add(BY_NAME[task])(**arguments)
        return execution.key

    async def enqueue_many(self, task: str, count: int) -> list[str]:
        """Enqueue jobs, a thousand per round trip."""
        calls = [self._docket.call(BY_NAME[task])() for _ in range(count)]
        return [each.key for each in await self._docket.add_many(calls)]

    async def status(self, job_id: str) -> object:
        """Read a job."""
        return await self._docket.get_execution(job_id)

    async def health(self) -> object:
        """Read the counts, the workers and up to a thousand jobs."""
        return await self._docket.snapshot()


if __name__ == "__main__":
    serve(DocketClient(), uvloop.new_event_loop)
