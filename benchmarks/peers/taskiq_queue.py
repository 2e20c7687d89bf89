"""taskiq over taskiq-redis, measured: its broker with acknowledgements and results, its client."""

import asyncio
import os

import uvloop
from protocol import NAP, Client, report_start, serve, wait_for_gate
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

URL = os.environ["REDIS_URL"]

broker = RedisStreamBroker(URL).with_result_backend(
    RedisAsyncResultBackend(URL, result_ex_time=86_400)
)


@broker.task("noop")
async def noop() -> None:
    """Do nothing."""


@broker.task("nap")
async def nap() -> None:
    """Sleep for 50 ms."""
    await asyncio.sleep(NAP)


@broker.task("probe")
async def probe(sent: float) -> None:
    """Report the start."""
    report_start(sent)


@broker.task("hold")
async def hold(sent: float) -> None:
    """Keep a slot busy until the gate opens."""
    report_start(sent)
    await wait_for_gate()


TASKS = {task.task_name: task for task in (noop, nap, probe, hold)}


class Taskiq(Client):
    """`kiq` with the defaults of a task."""

    packages = ("taskiq", "taskiq-redis", "redis", "hiredis", "uvloop")

    async def open(self) -> None:
        """Declare the consumer group."""
        await broker.startup()

    async def close(self) -> None:
        """Disconnect."""
        await broker.shutdown()

    async def enqueue(self, task: str, **arguments: float) -> str:
        """Enqueue a job."""
        job = await TASKS[task].kiq(**arguments)
        return job.task_id

    async def status(self, job_id: str) -> object:
        """Ask whether there is a result: taskiq stores nothing else about a job."""
        return await broker.result_backend.is_result_ready(job_id)


if __name__ == "__main__":
    serve(Taskiq(), uvloop.new_event_loop)
