"""Servers that are killed, full, hung or read-only."""

import re
import threading
import time
from pathlib import Path

from .harness import Server, Service, counted, enqueue, finish, free_port, until


def test_a_server_that_is_killed_and_comes_back(skeleton: Path, tmp_path: Path) -> None:
    outages = 2
    answers: list[int] = []
    slowest = 0.0
    stop = threading.Event()
    append_only = {"appendonly": "yes", "appendfsync": "everysec"}
    data = tmp_path / "server"
    with (
        Server(port=free_port(), data_dir=data, config=append_only) as server,
        Service(
            skeleton, tmp_path, server.connection_url, JOB_LEASE=2, ENQUEUE_TIMEOUT=1
        ) as service,
    ):
        api, journal = service.start_api(), service.journal

        def request() -> None:
            nonlocal slowest
            while not stop.is_set():
                start = time.monotonic()
                call = {"key": str(len(answers)), "seconds": 0.2}
                answers.append(api.post("/faults/work", json=[call]).status_code)
                slowest = max(slowest, time.monotonic() - start)
                stop.wait(0.01)

        workers = [service.start_worker() for _ in range(2)]
        # What tasks do with Redis is no reason for a worker to go with it.
        enqueue(api, "use_redis", *[{"key": f"own-{number}"} for number in range(20)])
        client = threading.Thread(target=request)
        client.start()
        try:
            for outage in range(outages):
                seen = len(journal.notes("end"))
                journal.wait("end", count=seen + 50)
                pids = {note.pid for note in journal.notes("begin")}
                assert pids <= {worker.pid for worker in workers}
                before = answers.count(503)
                server.terminate()
                until(counted(answers, 503, before + 3), "no 503")
                time.sleep(2)  # an outage takes its time
                server.start()
                accepted = answers.count(202)
                until(counted(answers, 202, accepted + 20), f"no 202 after outage {outage}")
        finally:
            stop.set()
            client.join()
        assert set(answers) == {202, 503}
        assert slowest < 2
        acknowledged = {str(key) for key, status in enumerate(answers) if status == 202}
        journal.wait_until(
            lambda: acknowledged <= {note.key for note in journal.notes("end")}, "a job was lost"
        )
        redis = server.client()
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
        assert all(worker.poll() is None for worker in workers)
        journal.assert_never_twice_at_once()
        for worker in workers:
            log = service.log(worker).read_text()
            assert len(re.findall(r"Redis is unavailable, retrying", log)) == outages, log
            assert len(re.findall(r"Redis is back", log)) == outages, log
            assert "Traceback" not in log


def test_a_worker_ends_though_redis_is_away(skeleton: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as server,
        Service(
            skeleton, tmp_path, server.connection_url, JOB_LEASE=2, SHUTDOWN_GRACE=1
        ) as service,
    ):
        api, journal = service.start_api(), service.journal
        busy, idle = service.start_worker(), service.start_worker(QUEUE_NAME="another")
        service.wait_for_start(idle)
        enqueue(api, "work", {"key": "long", "seconds": 60})
        assert journal.wait("begin", "long").pid == busy.pid
        server.terminate()
        try:
            for worker in (idle, busy):
                worker.terminate()
            for worker in (idle, busy):
                worker.wait(10)
        finally:
            server.start()
        assert journal.wait("cancel", "long").pid == busy.pid


def test_a_server_that_is_full(skeleton: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port(), config={"maxmemory-policy": "noeviction"}) as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=2) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        worker = service.start_worker()
        # One that runs when the server gets full, and others that wait.
        running = enqueue(api, "work", {"key": "running", "seconds": 1})
        journal.wait("begin", "running")
        calls = [{"key": f"waiting-{number}", "seconds": 0.01} for number in range(300)]
        api.post("/faults/work", json=calls[:100])
        redis.config_set("maxmemory", 1)
        answers = [api.post("/faults/work", json=[call]) for call in calls[100:105]]
        assert {answer.status_code for answer in answers} == {503}
        assert "retry-after" in answers[0].headers
        journal.wait("end", "running")
        time.sleep(2.5)  # longer than a lease
        assert worker.poll() is None
        assert api.get(f"/jobs/{running[0]}").status_code in {200, 503}
        redis.config_set("maxmemory", 0)
        enqueue(api, "work", *calls[105:])
        for call in (*calls[:100], *calls[105:]):
            journal.wait("end", str(call["key"]))
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
        assert finish(api, running[0])["status"] == "complete"
        assert worker.poll() is None
        assert {note.pid for note in journal.notes()} == {worker.pid}
        refused = {str(call["key"]) for call in calls[100:105]}
        assert not refused & set(journal.runs())
        journal.assert_never_twice_at_once()
