"""The brokers of the tests, as servers that can be harmed: Valkey, Debian's RabbitMQ, and moto."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, Self

import pytest
from conftest import ENVIRONMENT
from faults.harness import Server, free_port, stopped, until

RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
PATIENCE = 60


class Broker(Protocol):
    """A server that has begun to run; it keeps its address and its data when it starts again."""

    url: str  # as `BROKER_URL`

    def start(self) -> None:
        """Start it again, and wait until it listens."""

    def shut_down(self) -> None:
        """End it as an operator does; what it has stays on disk."""

    def kill(self) -> None:
        """Kill it with SIGKILL."""

    def erase(self) -> None:
        """Delete its data while it does not run."""

    def hang(self) -> AbstractContextManager[None]:
        """Stop it with SIGSTOP while a block runs."""
        ...


class Valkey(Server):
    """A Valkey that writes each command to its disk before it answers."""

    def __init__(self, folder: Path) -> None:
        config = {"appendonly": "yes", "appendfsync": "always"}
        port = free_port()
        super().__init__(port=port, data_dir=folder, config=config)
        self.url = f"redis://127.0.0.1:{port}/0"

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.terminate()

    def shut_down(self) -> None:
        """End it as an operator does."""
        self.stop()

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.terminate()

    def erase(self) -> None:
        """Delete its data while it does not run."""
        shutil.rmtree(self.data_dir / "appendonlydir")

    @contextmanager
    def hang(self) -> Generator[None]:
        """Stop it with SIGSTOP while a block runs."""
        with stopped(self.pid):
            yield


class RabbitMQ:
    """Debian's RabbitMQ, run by this user in a folder and on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port, distribution, epmd = _free_ports(3)
        self.url = f"amqp://guest:guest@127.0.0.1:{self._port}//"
        (folder / "home").mkdir(parents=True)
        (folder / "plugins").write_text("[].")
        config = f"listeners.tcp.local = 127.0.0.1:{self._port}\n"
        (folder / "rabbitmq.conf").write_text(config)
        self._environment = ENVIRONMENT | {
            "HOME": str(folder / "home"),
            "RABBITMQ_NODENAME": f"test{self._port}@localhost",
            "RABBITMQ_NODE_PORT": str(self._port),
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
            "ERL_EPMD_RELAXED_COMMAND_CHECK": "true",  # it may be ended though it knows a node
        }

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it, and the epmd that it has started."""
        self.kill()
        port = self._environment["ERL_EPMD_PORT"]
        command = ["epmd", "-port", port, "-kill"]
        subprocess.run(command, check=False, env=self._environment, stdout=subprocess.DEVNULL)

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with (self._folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [RABBITMQ],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port)).close()
            except OSError:
                assert self._process.poll() is None, (self._folder / "output").read_text()
                assert time.monotonic() < deadline, "RabbitMQ does not start"
                time.sleep(0.1)
            else:
                return

    def shut_down(self) -> None:
        """End it as an operator does."""
        self._signal(signal.SIGTERM)
        self._process.wait(PATIENCE)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
        self._process.wait(PATIENCE)

    def erase(self) -> None:
        """Delete its data while it does not run."""
        shutil.rmtree(self._folder / "mnesia")

    @contextmanager
    def hang(self) -> Generator[None]:
        """Stop it with SIGSTOP while a block runs."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, signum: signal.Signals) -> None:
        os.killpg(self._process.pid, signum)


class Moto:
    """SQS in the memory of a moto server, which loses all when it ends.

    Args:
        python: The interpreter of an environment that has moto.
    """

    def __init__(self, python: Path) -> None:
        [self.port] = _free_ports(1)
        options = ("-H", "127.0.0.1", "-p", str(self.port))
        self._command = (python, "-m", "moto.server", *options)
        self.url = f"sqs://testing:testing@127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.kill()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._process = subprocess.Popen(
            self._command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(lambda: self._process.poll() is not None or listens(self.port), "moto is not there")
        assert self._process.poll() is None

    def shut_down(self) -> None:
        """End it as an operator does."""
        self._process.terminate()
        self._process.wait(PATIENCE)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._process.kill()
        self._process.wait(PATIENCE)

    def erase(self) -> None:
        """Delete nothing: there is nothing left."""

    @contextmanager
    def hang(self) -> Generator[None]:
        """Stop it with SIGSTOP while a block runs."""
        with stopped(self._process):
            yield


@contextmanager
def running(kind: str, folder: Path) -> Generator[Broker]:
    """Run a broker, "redis" or "rabbitmq", while a block runs.

    Where RabbitMQ is not installed, the test is skipped, or fails if `REQUIRE_RABBITMQ` is set.
    """
    if kind == "redis":
        with Valkey(folder) as valkey:
            yield valkey
        return
    require_rabbitmq()
    with RabbitMQ(folder) as rabbitmq:
        yield rabbitmq


def require_rabbitmq() -> None:
    """Skip the test where RabbitMQ is not installed, or fail if `REQUIRE_RABBITMQ` is set."""
    if RABBITMQ.exists():
        return
    reason = "RabbitMQ is not installed: apt-get install rabbitmq-server"
    if os.environ.get("REQUIRE_RABBITMQ"):
        pytest.fail(reason)
    pytest.skip(reason)


def listens(port: int) -> bool:
    """Tell whether a server listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(number: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports: list[int] = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
