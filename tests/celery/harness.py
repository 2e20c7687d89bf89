"""What the tests of Celery share: a service with tasks that note what they do, at a broker."""

import subprocess
from pathlib import Path

import httpx2
from conftest import run
from faults import harness
from faults.harness import free_port
from pytest_copie.plugin import Copie

from .brokers import Broker

BACK = 15  # seconds in which workers come back by themselves
TASKS = '''
import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

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
async def work(ctx: Context, key: str, seconds: float = 0) -> str:
    note("begin", key)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        note("cancel", key)
        raise
    note("end", key)
    return key


@task
async def hold(ctx: Context, key: str) -> str:
    note("begin", key)
    try:
        while not cured():
            await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        note("cancel", key)
        raise
    note("end", key)
    return key


@task
async def join(ctx: Context, parts: list[str], key: str) -> str:
    note("begin", key)
    note("end", key)
    return "+".join(parts)


@task
async def echo(ctx: Context, value: Any) -> Any:
    return value


@task
async def give_up(ctx: Context, key: str) -> str:
    note("begin", key)
    raise Discard("of no use")


@task(retry=RetryPolicy(max_attempts=2, backoff=0.05))
async def fail(ctx: Context, key: str) -> str:
    note("begin", key)
    if not cured():
        raise RuntimeError("broken")
    return key


@task
async def crash(ctx: Context, key: str) -> None:
    note("begin", key)
    if not cured():
        os.kill(os.getpid(), signal.SIGKILL)
    note("end", key)
'''
NAMES = "crash, echo, fail, give_up, hold, join, work"
LISTED = f"""
from .tested import {NAMES}

TASKS += ({NAMES})
"""
ROUTE = '''
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, HTTPException

from ..tasks import TASKS
from ..tasks.tested import echo, give_up, hold, join, work
from ..queue import Job, Workflow
from .deps import ServiceQueue

router = APIRouter()


@router.get("/faults/jobs/{job_id}")
async def look(job_id: str, queue: ServiceQueue) -> Job:
    """Return a job as the service knows it, whoever made it."""
    job = await queue.job(job_id)
    if job is None:
        raise HTTPException(404, "unknown")
    return job


@router.delete("/faults/jobs/{job_id}")
async def abort(job_id: str, queue: ServiceQueue) -> bool:
    return await queue.abort(job_id)


@router.post("/faults/{name}", status_code=202)
async def enqueue(
    name: str, calls: list[dict[str, Any]], queue: ServiceQueue, delay: float = 0
) -> list[str]:
    """Enqueue a task, once for each set of arguments."""
    [task] = [each for each in TASKS if each.name == name]
    later = timedelta(seconds=delay)
    return [(await queue.enqueue_in(later, task, **arguments)).job_id for arguments in calls]


@router.post("/faults/chords/{body}", status_code=202)
async def chord(
    body: str, keys: list[str], queue: ServiceQueue, held: str = "", failing: str = ""
) -> str:
    """Work at the same time, then join what comes of it."""
    header = [work.s(key=key) for key in keys]
    header += [hold.s(key=held)] * bool(held) + [give_up.s(key=failing)] * bool(failing)
    return await queue.chord(header, join.s(key=body))


@router.post("/faults/chains/{last}", status_code=202)
async def chain(last: str, first: str, queue: ServiceQueue) -> str:
    return await queue.chain(hold.s(key=first), echo.s(), echo.s())


@router.get("/faults/workflows/{workflow_id}")
async def workflow(workflow_id: str, queue: ServiceQueue) -> Workflow | None:
    return await queue.workflow(workflow_id)
'''
INCLUDED = """
from . import tested

router.include_router(tested.router)
"""


def generate(
    copie: Copie, *, broker: str = "redis", examples: bool = False, llm: str = "none"
) -> Path:
    """Generate and install a service with the tasks of this module; `BROKER_URL` decides."""
    result = copie.copy(  # pyright: ignore[reportUnknownMemberType] - it says "dict" of its answers
        extra_answers={
            "project_name": "my-service",
            "backend": "celery",
            "broker": broker,
            "examples": examples,
            "llm": llm,
        }
    )
    assert result.exception is None, result.exception
    assert result.project_dir is not None
    home = result.project_dir
    package = home / "src" / "my_service"
    (package / "tasks" / "tested.py").write_text(TASKS)
    (package / "api" / "tested.py").write_text(ROUTE)
    for name, addition in (("tasks", LISTED), ("api", INCLUDED)):
        with (package / name / "__init__.py").open("a") as file:
            file.write(addition)
    run("uv", "sync", "--quiet", "--compile-bytecode", "--no-dev", cwd=home)
    return home


class Service(harness.Service):
    """A generated service at work, with its records in a SQLite of its own."""

    def __init__(self, home: Path, folder: Path, broker: Broker, **settings: object) -> None:
        limits = {"HEALTH_INTERVAL": 1, "QUEUES": '{"default": 10}', "SQS_WAIT": 0}
        super().__init__(
            home, folder, "redis://unused", BROKER_URL=broker.url, **(limits | settings)
        )

    def wait_for_start(self, worker: subprocess.Popen[bytes]) -> None:
        """Wait until a worker consumes."""
        self.wait_for_log(worker, " ready.")

    def cure(self) -> None:
        """Let tasks end that fail, crash or wait until then."""
        self.journal.path.with_name("journal.cured").touch()


def status(api: httpx2.Client, job_id: str) -> str:
    """Return a job's status."""
    return str(harness.job(api, job_id)["status"])


__all__ = ["BACK", "Service", "free_port", "generate", "status"]
