"""Servers that answer and refuse, as in a failover; and networks that swallow what is sent."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import valkey
from valkey.exceptions import BusyLoadingError, ResponseError, ValkeyError
from valkey.exceptions import ConnectionError as ValkeyConnectionError

from .harness import (
    PATIENCE,
    Proxy,
    Server,
    Service,
    dead,
    enqueue,
    finish,
    free_port,
    ready,
    until,
)

LEASE = 2


@contextmanager
def read_only(server: Server) -> Generator[None]:
    """Make the server the replica of one that is gone."""
    redis = server.client()
    redis.replicaof("127.0.0.1", free_port())
    yield
    redis.replicaof("NO", "ONE")


@contextmanager
def without_replicas(server: Server) -> Generator[None]:
    """Ask for a replica that is not there."""
    redis = server.client()
    redis.config_set("min-replicas-to-write", 1)
    yield
    redis.config_set("min-replicas-to-write", 0)


@contextmanager
def busy(server: Server) -> Generator[None]:
    """Keep the server in a script that does not end."""

    def spin() -> None:
        with suppress(ValkeyError):
            redis.eval("while true do end", 0)

    redis, port = server.client(), server.port
    redis.config_set("busy-reply-threshold", 50)
    thread = threading.Thread(target=spin)
    thread.start()
    until(lambda: answer(port) == "BUSY", "the script does not run")
    yield
    valkey.Valkey(port=server.port).script_kill()
    thread.join()


@contextmanager
def loading(server: Server) -> Generator[None]:
    """Start the server again, with much to read first."""
    redis = server.client()
    for start in range(0, 2000, 100):
        redis.mset({f"ballast-{number}": b"x" for number in range(start, start + 100)})
    redis.save()
    port = server.port
    server.terminate()
    server.configure(**{"key-load-delay": 2500, "loading-process-events-interval-bytes": 1024})
    thread = threading.Thread(target=server.start, kwargs={"timeout": PATIENCE})
    thread.start()
    until(lambda: answer(port) == "LOADING", "the server does not load")
    yield
    thread.join()


def answer(port: int) -> str:
    """Return the code with which the server refuses a ping."""
    try:
        client: Any = valkey.Valkey(port=port)
        client.ping()
    except BusyLoadingError:
        return "LOADING"
    except ResponseError as error:
        return str(error).partition(" ")[0]
    except ValkeyConnectionError:
        return "down"
    return ""


WAYS = [read_only, without_replicas, busy, loading]


@pytest.mark.parametrize("way", WAYS, ids=[way.__name__ for way in WAYS])
def test_a_server_that_refuses(skeleton: Path, tmp_path: Path, way: Callable[..., Any]) -> None:
    with (
        Server(port=free_port(), data_dir=tmp_path / "server") as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=LEASE) as service,
    ):
        api, journal = service.start_api(), service.journal
        workers = service.start_workers(2, QUEUES='{"default": 10}')
        job_ids = enqueue(api, "work", *[{"key": f"long-{n}", "seconds": 4} for n in range(4)])
        journal.wait("begin", count=4)
        job_ids += enqueue(api, "enqueue_another", {"key": "parent"})
        journal.wait("end", "parent-child")
        assert ready(api).status_code == 200
        with way(server):
            for _ in range(3):
                assert ready(api).status_code == 503
                refused = api.post("/faults/work", json=[{"key": "refused", "seconds": 0}])
                assert refused.status_code == 503
                assert "retry-after" in refused.headers
                time.sleep(LEASE / 2)
        keys = {str(number) for number in range(40)}
        until(lambda: ready(api).status_code == 200, "it does not get ready")
        job_ids += enqueue(api, "work", *[{"key": key, "seconds": 0.05} for key in sorted(keys)])
        journal.wait_for("end", keys | {f"long-{number}" for number in range(4)})
        for job_id in job_ids:
            assert finish(api, job_id)["status"] == "complete"
        until(lambda: server.client().zcard("my-service") == 0, "jobs are left in the queue")
        assert dead(api) == {}
        assert "refused" not in journal.runs()
        journal.assert_never_twice_at_once()
        for worker in workers:
            assert worker.poll() is None
            log = service.log(worker).read_text()
            assert log.count("Redis is unavailable") == log.count("Redis is back") == 1, log
            assert "Traceback" not in log


def test_a_black_hole(skeleton: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as server,
        Proxy(server.port) as proxy,
        Service(skeleton, tmp_path, proxy.url, JOB_LEASE=LEASE) as service,
    ):
        api, journal = service.start_api(), service.journal
        [swallowed] = service.start_workers(1)
        keys = {f"long-{number}" for number in range(5)}
        job_ids = enqueue(api, "work", *[{"key": key, "seconds": 8} for key in sorted(keys)])
        journal.wait("begin", count=5)
        [other] = service.start_workers(1, REDIS_URL=server.connection_url)
        with proxy.black_hole():
            for _ in range(2):
                start = time.monotonic()
                assert ready(api).status_code == 503
                assert api.post("/faults/work", json=[]).status_code in {202, 503}
                assert time.monotonic() - start < 4
            journal.wait("begin", count=10)
        assert {note.pid for note in journal.notes("begin")[5:]} == {other.pid}
        # The worker that was cut off had cancelled its own before others ran them.
        journal.assert_never_twice_at_once()
        assert {note.pid for note in journal.notes("cancel")} == {swallowed.pid}
        for job_id in job_ids:
            assert finish(api, job_id)["status"] == "complete"
        # It goes on by itself, and so do tasks of it that enqueue.
        other.terminate()
        other.wait(PATIENCE)
        enqueue(api, "enqueue_another", *[{"key": str(number)} for number in range(5)])
        journal.wait_for("end", {f"{number}-child" for number in range(5)})
        log = service.log(swallowed).read_text()
        assert log.count("Redis is unavailable") == log.count("Redis is back") == 1, log


def test_a_task_that_enqueues_into_a_black_hole(skeleton: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as server,
        Proxy(server.port) as proxy,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=20) as service,
    ):
        api, journal = service.start_api(), service.journal
        service.start_workers(1, REDIS_URL=proxy.url)
        enqueue(api, "enqueue_another", {"key": "first"})
        journal.wait("end", "first-child")
        # The job is claimed, and its task enqueues another: nothing of that arrives any more.
        delayed = [{"key": str(number), "seconds": 0.3} for number in range(5)]
        enqueue(api, "enqueue_later", *delayed)
        journal.wait("begin", count=7)
        with proxy.black_hole():
            time.sleep(5)
        journal.wait_for("end", {f"{number}-child" for number in range(5)})
        assert all(len(runs) == 1 for runs in journal.runs().values())


def test_an_old_primary_that_keeps_its_connections(skeleton: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as old,
        Server(port=free_port()) as new,
        Proxy(old.port) as proxy,
        Service(skeleton, tmp_path, proxy.url, JOB_LEASE=LEASE) as service,
    ):
        api, journal = service.start_api(), service.journal
        workers = service.start_workers(2)
        enqueue(api, "work", *[{"key": f"before-{n}", "seconds": 0.1} for n in range(20)])
        journal.wait_for("end", {f"before-{number}" for number in range(20)})
        # The name now stands for the new primary; the old one closes nothing.
        proxy.target = new.port
        old.client().replicaof("127.0.0.1", new.port)
        until(lambda: ready(api).status_code == 200, "the API stays with the old primary")
        enqueue(api, "work", *[{"key": f"after-{n}", "seconds": 0.1} for n in range(20)])
        journal.wait_for("end", {f"after-{number}" for number in range(20)})
        assert all(worker.poll() is None for worker in workers)
