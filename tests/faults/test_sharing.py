"""Workers beside each other: those that are full, those of other services, rate limits."""

import bisect
import functools
import json
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from .harness import Server, Service, dead, enqueue, finish, free_port, stopped, until


def commands(redis: Any) -> int:  # noqa: ANN401 - the client has no types
    """Count the commands that a server has run, those of scripts too."""
    return sum(each["calls"] for each in redis.info("commandstats").values())


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [0, 5], ids=["full", "free-for-another-queue"])
def test_a_worker_beside_full_ones(skeleton: Path, tmp_path: Path, elsewhere: int) -> None:
    queues = json.dumps({"default": 2} | ({"other": elsewhere} if elsewhere else {}))
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, QUEUES=queues) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        full = service.start_workers(5)
        enqueue(api, "work", *[{"key": f"long-{number}", "seconds": 90} for number in range(10)])
        journal.wait("begin", count=10)
        assert {note.pid for note in journal.notes()} == {worker.pid for worker in full}
        [sixth] = service.start_workers(1, QUEUES='{"default": 10}')
        latencies: list[float] = []
        for number in range(15):
            enqueued = time.monotonic()
            enqueue(api, "work", {"key": f"short-{number}", "seconds": 0})
            latencies.append(journal.wait("begin", f"short-{number}").at - enqueued)
        # The worker looks by itself once a second: half of that is no wake-up at all.
        assert statistics.median(latencies) < 0.25, latencies
        enqueue(api, "work", *[{"key": f"many-{number}", "seconds": 0} for number in range(200)])
        journal.wait_for("end", {f"many-{number}" for number in range(200)})
        others = [n for n in journal.notes() if not n.key.startswith("long")]
        assert {note.pid for note in others} == {sixth.pid}
        assert not [note for note in journal.notes("end") if note.key.startswith("long")]
        # What is left is nothing to do; the full ones ask for nothing.
        before, start = commands(redis), time.monotonic()
        time.sleep(3)
        rate = (commands(redis) - before) / (time.monotonic() - start)
        assert rate < 6 * 15, f"{rate} commands a second"


def most_starts(times: list[float], window: float) -> int:
    """Return the largest number of times within any window."""
    return max(
        (bisect.bisect_left(times, start + window) - place for place, start in enumerate(times)),
        default=0,
    )


@pytest.mark.slow
def test_rate_limits_under_load(skeleton: Path, tmp_path: Path) -> None:
    limit = 5  # per second, see the task
    waiting = 1000
    append_only = {"appendonly": "yes", "appendfsync": "always"}
    with (
        Server(port=free_port(), data_dir=tmp_path / "server", config=append_only) as server,
        Service(skeleton, tmp_path, server.connection_url, QUEUES='{"default": 10}') as service,
    ):
        api, journal = service.start_api(), service.journal
        service.start_workers(3)
        enqueue(api, "work", *[{"key": f"busy-{number}", "seconds": 60} for number in range(15)])
        journal.wait("begin", count=15)
        enqueue(api, "limited", *[{"key": f"limited-{number}"} for number in range(waiting)])

        def starts() -> list[float]:
            return [n.at for n in journal.notes("begin") if n.key.startswith("limited")]

        def wait_for_starts(count: int) -> None:
            journal.wait_until(lambda: len(starts()) >= count, f"{len(starts())} starts")

        wait_for_starts(3 * limit)
        # Those that wait take nobody's slot.
        enqueue(api, "work", *[{"key": f"other-{number}", "seconds": 0} for number in range(30)])
        journal.wait_for("end", {f"other-{number}" for number in range(30)})
        assert len(starts()) < waiting / 2
        for _ in range(2):
            server.terminate()
            time.sleep(2)
            server.start()
            wait_for_starts(len(starts()) + 2 * limit)
        with stopped(server.pid):
            time.sleep(3)
        wait_for_starts(len(starts()) + 2 * limit)
        # A worker may be slow to begin what it has claimed: a burst is more than that.
        assert most_starts(starts(), 0.8) <= limit
        assert most_starts(starts(), 2.8) <= 3 * limit


def test_two_services_on_one_database(skeleton: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url) as service,
    ):
        journal, redis = service.journal, server.client()
        names = ("one", "two")
        queues = json.dumps({"default": 5, "periodic": 1})
        apis = {name: service.start_api(QUEUE_NAME=name) for name in names}
        workers = {
            name: service.start_workers(1, QUEUE_NAME=name, QUEUES=queues)[0] for name in names
        }
        pids = {name: worker.pid for name, worker in workers.items()}
        # More than one of the two can run at a time, and the other has nothing to do.
        for name, api in apis.items():
            enqueue(api, "work", *[{"key": f"{name}-{n}", "seconds": 0.1} for n in range(30)])
            journal.wait_for("end", {f"{name}-{n}" for n in range(30)})
            ran = {note.pid for note in journal.notes() if note.key.startswith(f"{name}-")}
            assert ran == {pids[name]}
        # Each has a cron entry of its own, though their tasks have the same names.
        for name in names:
            entry = f"{name}:queue:periodic"
            until(functools.partial(redis.exists, entry), f"{name} has no cron entry")
            [job_id] = redis.zrange(entry, 0, -1)
            redis.zadd(entry, {job_id: redis.time()[0] * 1000})
            assert journal.wait("end", name).pid == pids[name]
        assert [len(journal.notes("begin", name)) for name in names] == [1, 1]
        # The same idempotency key is a job in each.
        call = [{"key": "keyed", "seconds": 0}]
        ids = {
            api.post("/faults/work", json=call, params={"idempotency_key": "k"}).json()[0]
            for api in apis.values()
        }
        assert len(ids) == 2
        journal.wait("end", "keyed", count=2)
        # An abort is for the service that has the job, running or not.
        [running] = enqueue(apis["one"], "work", {"key": "running", "seconds": 60})
        journal.wait("begin", "running")
        workers["one"].send_signal(signal.SIGSTOP)
        [waiting] = enqueue(apis["one"], "work", {"key": "waiting", "seconds": 0})
        for job_id in (running, waiting):
            assert apis["two"].delete(f"/jobs/{job_id}").status_code in {404, 409}
        workers["one"].send_signal(signal.SIGCONT)
        journal.wait("end", "waiting")
        assert apis["one"].delete(f"/jobs/{running}").status_code == 202
        assert journal.wait("cancel", "running").pid == pids["one"]
        assert finish(apis["one"], running)["status"] == "aborted"
        # Dead jobs are listed where they died, and nowhere else.
        [failed] = enqueue(apis["two"], "give_up", {"key": "failed"})
        finish(apis["two"], failed)
        assert dead(apis["two"]).keys() == {failed}
        assert dead(apis["one"]) == {}
        assert apis["one"].post(f"/dead/{failed}/retry").status_code == 404
