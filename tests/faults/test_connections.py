"""Connections that are cut, refused or silent."""

import itertools
import random
import re
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from .harness import (
    PATIENCE,
    Journal,
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


def settled(api: httpx2.Client, journal: Journal) -> Journal:
    """Wait until what was enqueued before has run: jobs run in their order."""
    enqueue(api, "work", {"key": "settled", "seconds": 0.2})
    journal.wait("end", "settled")
    return journal


DIRECTIONS = pytest.mark.parametrize("direction", ["request", "reply"])


@DIRECTIONS
def test_connections_cut_while_enqueueing(skeleton: Path, tmp_path: Path, direction: str) -> None:
    with (
        Server(port=free_port()) as server,
        Proxy(server.port) as proxy,
        Service(skeleton, tmp_path, proxy.url, JOB_LEASE=1) as service,
    ):
        api, journal = service.start_api(), service.journal
        worker = service.start_worker(REDIS_URL=server.connection_url)
        acknowledged = {"0"}
        enqueue(api, "work", {"key": "0", "seconds": 0})
        cut = 0
        # A connection of the pool, or a new one, is cut at each of its packets.
        for packet in range(1, 20):
            proxy.arm(direction, packet)
            for attempt in range(3):
                key = f"{packet}-{attempt}"
                answer = api.post("/faults/work", json=[{"key": key, "seconds": 0}])
                assert answer.status_code in {202, 503}, answer.text
                if answer.status_code == 202:
                    acknowledged.add(key)
            cut += proxy.disarm()
        assert cut >= 3
        lost = acknowledged - {note.key for note in settled(api, journal).notes("end")}
        assert not lost, f"acknowledged, and never run: {lost}"
        # An answer may be lost, but none makes two jobs of one.
        assert all(len(runs) == 1 for runs in journal.runs().values())
        assert worker.poll() is None


@pytest.mark.slow
@DIRECTIONS
def test_connections_cut_while_working(skeleton: Path, tmp_path: Path, direction: str) -> None:
    with (
        Server(port=free_port()) as server,
        Proxy(server.port) as proxy,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=1) as service,
    ):
        api, journal = service.start_api(), service.journal
        worker = service.start_worker(REDIS_URL=proxy.url)
        enqueue(api, "work", {"key": "0", "seconds": 0})
        journal.wait("end", "0")
        dead: list[str] = []
        for packet in range(1, 46):
            number = packet * 100
            proxy.arm(direction, packet)
            [works] = enqueue(api, "work", {"key": f"works-{packet}", "seconds": 0.02})
            dead += enqueue(api, "give_up", {"key": f"fails-{packet}"})
            chain = api.post("/faults", params={"number": number})
            assert chain.status_code == 202, chain.text
            # An idle worker sends little: keep it busy until the packet has come.
            for extra in itertools.count():
                if proxy.cut.is_set():
                    break
                enqueue(api, "work", {"key": f"extra-{packet}-{extra}", "seconds": 0})
                journal.wait("end", f"extra-{packet}-{extra}")
            assert finish(api, works)["status"] == "complete"
            assert finish(api, dead[-1])["status"] == "failed"
            for key in (f"works-{packet}", f"fails-{packet}", *map(str, range(number, number + 3))):
                journal.wait("end", key)
            status = api.get(f"/workflows/{chain.json()}")
            assert status.status_code == 200, status.text
        listed = [each["job_id"] for each in api.get("/dead").json()]
        assert sorted(listed) == sorted(dead), "each that failed is listed once"
        journal.assert_never_twice_at_once()
        assert worker.poll() is None
        assert {note.pid for note in journal.notes()} == {worker.pid}


def assert_one_outage(service: Service, worker: subprocess.Popen[bytes], outages: int = 1) -> None:
    """Check that a worker's log has a line when Redis goes, and one when it is back."""
    log = service.log(worker).read_text()
    assert log.count("Redis is unavailable") == log.count("Redis is back") == outages, log
    assert "Traceback" not in log


def test_connections_cut_in_the_handshake(skeleton: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as server,
        Proxy(server.port) as proxy,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=2) as service,
    ):
        api, journal = service.start_api(), service.journal
        [worker] = service.start_workers(1, REDIS_URL=proxy.url)
        # All connections are cut, and each of the first packets of those that follow.
        for packet in range(1, 16):
            direction = "request" if packet % 2 else "reply"
            proxy.cut_all()
            proxy.arm(direction, packet)
            enqueue(api, "work", {"key": str(packet), "seconds": 0.1})
            until(proxy.cut.is_set, f"{direction} {packet} does not come")
            journal.wait("end", str(packet))
        assert worker.poll() is None
        assert {note.pid for note in journal.notes()} == {worker.pid}
        journal.assert_never_twice_at_once()


def test_a_proxy_that_accepts_and_closes(skeleton: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as server,
        Proxy(server.port) as proxy,
        Service(skeleton, tmp_path, proxy.url, JOB_LEASE=2) as service,
    ):
        api, journal = service.start_api(), service.journal
        workers = service.start_workers(2)
        enqueue(api, "work", *[{"key": str(number), "seconds": 0.5} for number in range(300)])
        journal.wait("end", count=50)
        proxy.closes_at_once = True
        proxy.cut_all()
        accepted = proxy.accepted
        until(lambda: proxy.accepted >= accepted + 20, "nobody tries again")
        assert ready(api).status_code == 503
        proxy.closes_at_once = False
        journal.wait_for("end", {str(number) for number in range(300)})
        journal.assert_never_twice_at_once()
        for worker in workers:
            assert worker.poll() is None
            assert_one_outage(service, worker)


@pytest.mark.slow
def test_servers_killed_again_and_again(skeleton: Path, tmp_path: Path) -> None:
    chance = random.Random(28)  # noqa: S311
    kills = 28
    append_only = {"appendonly": "yes", "appendfsync": "always"}
    with (
        Server(port=free_port(), data_dir=tmp_path / "server", config=append_only) as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=5) as service,
    ):
        api, journal = service.start_api(), service.journal
        queues = '{"default": 5, "periodic": 1}'
        workers = service.start_workers(3, QUEUES=queues, HEALTH_INTERVAL=0.05)
        keys: set[str] = set()
        for kill in range(kills):
            calls = [{"key": f"{kill}-{number}", "seconds": 0.05} for number in range(20)]
            keys |= {str(call["key"]) for call in calls}
            enqueue(api, "work", *calls)
            enqueue(api, "enqueue_another", {"key": f"{kill}-more"})
            keys.add(f"{kill}-more-child")
            if kill % 2:
                time.sleep(chance.uniform(0, 0.3))
            else:
                journal.wait_for("end", keys)  # the workers are idle
            server.terminate()
            server.start()
            assert not [worker for worker in workers if worker.poll() is not None]
            until(lambda: ready(api).status_code == 200, "the API does not get ready")
        journal.wait_for("end", keys)
        until(lambda: server.client().zcard("my-service") == 0, "jobs are left in the queue")
        journal.assert_never_twice_at_once()
        assert dead(api) == {}
        for worker in workers:
            assert worker.poll() is None
            assert "Traceback" not in service.log(worker).read_text()


@pytest.mark.parametrize("way", ["refuses", "closes", "swallows"])
def test_a_worker_that_has_waited_since_its_start(skeleton: Path, tmp_path: Path, way: str) -> None:
    port = free_port()
    with (
        Proxy(port) as proxy,
        Service(skeleton, tmp_path, proxy.url, QUEUES='{"default": 5, "periodic": 1}') as service,
        ExitStack() as stack,
    ):
        if way == "refuses":
            service.point_to(f"redis://127.0.0.1:{port}")
        elif way == "closes":
            proxy.closes_at_once = True
        else:
            stack.enter_context(proxy.black_hole())
        patient, ended = service.start_workers(2)
        for worker in (patient, ended):
            service.wait_for_log(worker, "Redis is unavailable")
        ended.terminate()
        assert ended.wait(PATIENCE) == 0
        assert "Traceback" not in service.log(ended).read_text()
        with Server(port=port):
            proxy.closes_at_once = False
            stack.close()
            api, journal = service.start_api(), service.journal
            enqueue(api, "work", {"key": "first", "seconds": 0})
            assert journal.wait("end", "first").pid == patient.pid
            assert_one_outage(service, patient)


def test_one_outage_of_many_kinds(skeleton: Path, tmp_path: Path) -> None:
    private = "Tr0ub4dor"
    with (
        Server(port=free_port(), data_dir=tmp_path / "server") as server,
        Proxy(server.port) as proxy,
        Service(skeleton, tmp_path, proxy.url, JOB_LEASE=1, MAX_ATTEMPTS=9) as service,
    ):
        api, journal = service.start_api(), service.journal
        [worker] = service.start_workers(1)
        enqueue(api, "work", *[{"key": f"{private}-{n}", "seconds": 4} for n in range(3)])
        enqueue(api, "give_up", {"key": f"{private}-fails"})
        enqueue(api, "hang", {"key": f"{private}-hangs"})
        chain = api.post("/faults", params={"number": 271828, "seconds": 0.5})
        assert chain.status_code == 202
        journal.wait("begin", count=6)
        server.client().config_set("min-replicas-to-write", 1)
        time.sleep(1)
        with proxy.black_hole():
            time.sleep(2)
        proxy.closes_at_once = True
        proxy.cut_all()
        time.sleep(1)
        server.client().save()
        server.terminate()
        proxy.closes_at_once = False
        time.sleep(1)
        server.configure(**{"min-replicas-to-write": 1})
        server.start()
        time.sleep(1)
        server.client().config_set("min-replicas-to-write", 0)
        journal.wait_for("end", {f"{private}-{number}" for number in range(3)})
        journal.wait("end", "271830")
        journal.assert_never_twice_at_once()
        until(lambda: server.client().zcard("my-service") == 0, "jobs are left in the queue")
        log = service.log(worker).read_text()
        assert len(re.findall("Redis is unavailable", log)) == 1, log
        assert len(re.findall("Redis is back", log)) == 1, log
        for value in (private, "271828", "271829", "271830"):
            assert value not in service.logs()
