"""The suite of a service with Celery, over a RabbitMQ."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, run
from pytest_copie.plugin import Copie

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
PATIENCE = 60


def free_ports(number: int) -> list[int]:
    """Find ports that nobody listens on."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """Run Debian's RabbitMQ as this user, in a folder and on ports of its own."""
    if not SERVER.exists():
        pytest.skip("RabbitMQ is not installed: apt-get install rabbitmq-server")
    folder = tmp_path_factory.mktemp("rabbitmq")
    node, distribution, epmd = free_ports(3)
    (folder / "home").mkdir()
    (folder / "plugins").write_text("[].")
    (folder / "rabbitmq.conf").write_text(f"listeners.tcp.local = 127.0.0.1:{node}\n")
    environment = ENVIRONMENT | {
        "HOME": str(folder / "home"),
        "RABBITMQ_NODENAME": f"test{node}@localhost",
        "RABBITMQ_NODE_PORT": str(node),
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "ERL_EPMD_PORT": str(epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
    with (folder / "output").open("wb") as output:
        server = subprocess.Popen(
            [SERVER], env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_for(node, server)
        yield f"amqp://guest:guest@127.0.0.1:{node}//"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(PATIENCE)
        subprocess.run(["epmd", "-port", str(epmd), "-kill"], check=False, env=environment)


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until a server listens."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert server.poll() is None, "RabbitMQ has ended"
            assert time.monotonic() < deadline, "RabbitMQ does not start"
            time.sleep(0.1)
        else:
            return


@pytest.mark.slow
@pytest.mark.parametrize("examples", [True, False], ids=["examples", "skeleton"])
def test_the_suite_passes_over_rabbitmq(copie: Copie, rabbitmq: str, *, examples: bool) -> None:
    answers = {"project_name": "my-service", "backend": "celery", "broker": "rabbitmq"}
    result = copie.copy(  # pyright: ignore[reportUnknownMemberType] - it says "dict" of its answers
        extra_answers={**answers, "examples": examples}
    )
    assert result.project_dir is not None
    run("uv", "sync", "--quiet", cwd=result.project_dir)
    done = run(
        "uv",
        "run",
        "pytest",
        "-q",
        cwd=result.project_dir,
        env={"BROKER_URL": rabbitmq},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) >= 100
