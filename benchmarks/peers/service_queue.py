"""A generated service, measured: the client of its queue. Runs in the service's environment."""

from contextlib import AsyncExitStack

import uvloop
from bench.queue import open_queue
from bench.settings import Settings
from bench.tasks.benchmark import hold, nap, noop, probe
from protocol import Client, serve

TASKS = {"noop": noop, "nap": nap, "probe": probe, "hold": hold}


class Service(Client):
    """`TaskQueue.enqueue` and `TaskQueue.enqueue_many` as routes use them."""

    packages = ("arq", "redis", "hiredis", "uvloop")

    async def open(self) -> None:
        """Connect."""
        self._stack = AsyncExitStack()
        self._queue = await self._stack.enter_async_context(open_queue(Settings().queue))

    async def close(self) -> None:
        """Disconnect."""
        await self._stack.aclose()

    async def enqueue(self, task: str, **arguments: float) -> str:
        """Enqueue a job."""
        receipt = await self._queue.enqueue(TASKS[task], **arguments)
        return receipt.job_id

    async def enqueue_many(self, task: str, count: int) -> list[str]:
        """Enqueue jobs, a thousand per round trip."""
        receipts = await self._queue.enqueue_many(TASKS[task], [{} for _ in range(count)])
        return [receipt.job_id for receipt in receipts]

    async def status(self, job_id: str) -> object:
        """Read a job."""
        return await self._queue.job(job_id)

    async def health(self) -> object:
        """Count the jobs, and ask whether a worker lives."""
        return await self._queue.health()


if __name__ == "__main__":
    serve(Service(), uvloop.new_event_loop)
