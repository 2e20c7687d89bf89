"""The commands that `jobs.py` sends to a system's client process: one JSON line each, one back.

Every system under test has a client process, in the system's own environment, that uses the
system's public API. Each command opens a client, does its work and closes the client, so that no
connection is left to disturb the next measurement.
"""

import asyncio
import json
import os
import random
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, ClassVar

NAP = 0.05
AT_ONCE = 100
PIPE = "BENCHMARK_PIPE"
GATE = "BENCHMARK_GATE"
COMMAND_TIMEOUT = 3600

_pipe: int | None = None
_gate: asyncio.Task[None] | None = None


def report_start(sent: float) -> None:
    """Report from a task that it has started: its process, and the seconds since it was sent.

    Both processes read the same monotonic clock: they run on the same machine.
    """
    now = time.monotonic()
    global _pipe  # noqa: PLW0603 - opened once per worker process, not once per job
    if _pipe is None:
        _pipe = os.open(os.environ[PIPE], os.O_WRONLY)
    os.write(_pipe, f"{os.getpid()} {now - sent}\n".encode())


async def wait_for_gate() -> None:
    """Wait in a task until the gate is opened: its file is removed."""
    global _gate  # noqa: PLW0603 - one watcher per worker process
    if _gate is None or _gate.done():
        _gate = asyncio.create_task(_watch_gate())
    await asyncio.shield(_gate)


async def _watch_gate() -> None:
    gate = os.environ[GATE]
    while os.path.exists(gate):  # noqa: ASYNC110, ASYNC240, PTH110 - nobody else could tell
        await asyncio.sleep(0.002)


class Client(ABC):
    """A system as an application uses it: what it cannot do raises NotImplementedError.

    Tasks are `noop`, `nap`, which sleeps for 50 ms, `probe`, which calls `report_start`, and
    `hold`, which calls it and then `wait_for_gate`.
    """

    packages: ClassVar[tuple[str, ...]]
    concurrency: ClassVar[int] = 100

    @abstractmethod
    async def open(self) -> None:
        """Prepare to enqueue."""

    @abstractmethod
    async def close(self) -> None:
        """Close all connections."""

    @abstractmethod
    async def enqueue(self, task: str, **arguments: float) -> str:
        """Enqueue a job and return its id."""

    async def enqueue_many(self, task: str, count: int) -> list[str]:
        """Enqueue jobs without arguments in few round trips and return their ids."""
        raise NotImplementedError

    @abstractmethod
    async def status(self, job_id: str) -> object:
        """Return a job's status."""

    async def health(self) -> object:
        """Return the state of the whole queue."""
        raise NotImplementedError


class Session:
    """Carries out commands with a client, on one event loop."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._recent: deque[str] = deque(maxlen=1000)
        self._pipe = os.open(os.environ[PIPE], os.O_RDWR | os.O_NONBLOCK)
        self._reports: asyncio.Queue[tuple[int, float]] = asyncio.Queue()
        self._rest = b""

    async def run(self, command: str, options: dict[str, Any]) -> object:
        """Carry out one command; None stands for what the system does not offer."""
        if command == "versions":
            return {name: version(name) for name in self._client.packages}
        loop = asyncio.get_running_loop()
        self._reports = asyncio.Queue[tuple[int, float]]()
        loop.add_reader(self._pipe, self._read_pipe)
        await self._client.open()
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT):
                answer: object = await getattr(self, command)(**options)
                return answer
        except NotImplementedError:
            return None
        finally:
            loop.remove_reader(self._pipe)
            await self._client.close()

    async def enqueue_one(self, count: int) -> float:
        """Return the jobs per second that are enqueued one after the other."""
        await self._client.enqueue("noop")
        start = time.perf_counter()
        for _ in range(count):
            await self._client.enqueue("noop")
        return count / (time.perf_counter() - start)

    async def enqueue_gather(self, count: int) -> float:
        """Return the jobs per second that are enqueued a hundred at a time."""
        # The first hundred open the connections.
        await self._gather("noop", AT_ONCE)
        start = time.perf_counter()
        await self._gather("noop", count)
        return count / (time.perf_counter() - start)

    async def enqueue_many(self, count: int) -> float:
        """Return the jobs per second that are enqueued in bulk."""
        await self._client.enqueue_many("noop", 1)
        start = time.perf_counter()
        await self._client.enqueue_many("noop", count)
        return count / (time.perf_counter() - start)

    async def fill(self, task: str, count: int) -> int:
        """Enqueue jobs in the fastest way that the system has."""
        left = count
        while left > 0:
            chunk = min(left, 10_000)
            try:
                self._recent.extend(await self._client.enqueue_many(task, chunk))
            except NotImplementedError:
                await self._gather(task, chunk)
            left -= chunk
        return count

    async def hold(self, workers: int) -> int:
        """Keep all slots of so many workers busy until the gate opens; return the jobs it took."""
        slots = self._client.concurrency * workers
        await self._gather("hold", slots, sent=time.monotonic())
        enqueued, started = slots, Counter[int]()
        async with asyncio.timeout(60):
            while len(started) < workers or started.total() < slots:
                try:
                    async with asyncio.timeout(2):
                        process, _ = await self._reports.get()
                        started[process] += 1
                except TimeoutError:
                    # A worker may hold back more jobs than it runs.
                    await self._gather("hold", self._client.concurrency, sent=time.monotonic())
                    enqueued += self._client.concurrency
        return enqueued

    async def latency(self, count: int, per_second: float) -> list[float]:
        """Return the milliseconds from before the enqueueing to the start of jobs.

        The pauses between them are random: no polling interval is met at one phase only.
        """
        pauses = random.Random(1)  # noqa: S311 - the same pauses in each round, not a secret
        async with asyncio.timeout(60 + count / per_second):
            for _ in range(count):
                await asyncio.sleep(pauses.uniform(0, 2 / per_second))
                await self._client.enqueue("probe", sent=time.monotonic())
            return [1000 * (await self._reports.get())[1] for _ in range(count)]

    async def status(self, count: int) -> list[float]:
        """Return the milliseconds that each request for a job's status takes."""
        job_ids = random.Random(1).choices(self._recent, k=count)  # noqa: S311 - as above
        return [await _milliseconds(self._client.status(each)) for each in job_ids]

    async def health(self, count: int) -> list[float]:
        """Return the milliseconds that each request for the queue's health takes."""
        return [await _milliseconds(self._client.health()) for _ in range(count)]

    async def _gather(self, task: str, count: int, **arguments: float) -> None:
        for start in range(0, count, AT_ONCE):
            jobs = range(min(AT_ONCE, count - start))
            calls = [self._client.enqueue(task, **arguments) for _ in jobs]
            self._recent.extend(await asyncio.gather(*calls))

    def _read_pipe(self) -> None:
        *lines, self._rest = (self._rest + os.read(self._pipe, 1 << 16)).split(b"\n")
        for line in lines:
            process, seconds = line.split()
            self._reports.put_nowait((int(process), float(seconds)))


async def _milliseconds(call: Awaitable[object]) -> float:
    start = time.perf_counter()
    await call
    return 1000 * (time.perf_counter() - start)


def serve(
    client: Client, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> None:
    """Answer the commands on standard input until it ends."""
    # What a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        session = Session(client)
        for line in sys.stdin:
            request = json.loads(line)
            answer = runner.run(session.run(request.pop("command"), request))
            print(json.dumps(answer), file=answers, flush=True)
