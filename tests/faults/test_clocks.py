"""Clocks that are wrong, or jump."""

import signal
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from .harness import (
    PATIENCE,
    SHIFTED_CLOCK,
    Server,
    Service,
    dead,
    enqueue,
    finish,
    free_port,
    job,
    ready,
    until,
)


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_jumps(skeleton: Path, tmp_path: Path, hours: int) -> None:
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(SHIFTED_CLOCK)
    clock = tmp_path / "journal.shift"
    with (
        Server(port=free_port()) as server,
        Service(
            skeleton,
            tmp_path,
            server.connection_url,
            JOB_LEASE=2,
            PYTHONPATH=tmp_path / "clock",
        ) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        worker = service.start_worker()
        enqueue(api, "work", {"key": "first", "seconds": 0}, {"key": "running", "seconds": 4})
        journal.wait("begin", "running")
        journal.wait("end", "first")
        worker.send_signal(signal.SIGSTOP)
        enqueue(api, "work", *[{"key": f"before-{n}", "seconds": 0} for n in range(10)])
        clock.write_text(str(hours * 3600))
        worker.send_signal(signal.SIGCONT)
        [after] = enqueue(api, "work", {"key": "after", "seconds": 0})
        started = service.start_worker()
        assert finish(api, after)["status"] == "complete"
        journal.wait("end", "running")
        if hours < 0:
            # By this clock, those before are due later: they wait for it, and are not lost.
            clock.write_text("0")
        for number in range(10):
            journal.wait("end", f"before-{number}")
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
        assert all(len(runs) == 1 for runs in journal.runs().values())
        assert worker.poll() is started.poll() is None


@pytest.mark.slow
def test_clocks_that_are_an_hour_off(skeleton: Path, tmp_path: Path) -> None:
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(SHIFTED_CLOCK)
    settings = {"JOB_LEASE": 2, "JOB_EXPIRES": 600, "KEEP_RESULT": 600, "QUEUES": '{"default": 3}'}
    with (
        Server(port=free_port()) as server,
        Service(
            skeleton, tmp_path, server.connection_url, PYTHONPATH=tmp_path / "clock", **settings
        ) as service,
    ):
        journal, redis = service.journal, server.client()
        hours = (-3600, 0, 3600)
        apis = [service.start_api(SHIFT=shift) for shift in hours]
        workers = [service.start_workers(1, SHIFT=shift)[0] for shift in hours]
        # Whoever enqueues and whoever works, a job begins when it is due, not before.
        for name, api in zip(hours, apis, strict=True):
            for delay in (0, 1.5):
                key = f"{name}-{delay}"
                start = time.monotonic()
                answer = api.post(
                    "/faults/work", json=[{"key": key, "seconds": 0}], params={"delay": delay}
                )
                assert answer.status_code == 202
                assert start + delay <= journal.wait("begin", key).at < start + delay + 10
        # Jobs begin in the order in which they are due, whoever enqueued them.
        for worker in workers[1:]:
            worker.terminate()
            worker.wait(PATIENCE)
        for number in range(9):
            answer = apis[number % 3].post(
                "/faults/work",
                json=[{"key": f"order-{number}", "seconds": 0}],
                params={"delay": 3 - number * 0.3},
            )
            assert answer.status_code == 202
        journal.wait_for("end", {f"order-{number}" for number in range(9)})
        order = [note.key for note in journal.notes("begin") if note.key.startswith("order")]
        assert order == [f"order-{number}" for number in reversed(range(9))]
        # A lease is kept, and a result is, however the clocks differ.
        service.start_workers(2, SHIFT=-3600)
        job_ids = enqueue(apis[2], "work", *[{"key": f"l-{n}", "seconds": 4} for n in range(5)])
        for job_id in job_ids:
            assert finish(apis[0], job_id)["status"] == "complete"
        assert all(len(runs) == 1 for runs in journal.runs().values())
        assert {api.get(f"/jobs/{job_ids[0]}").status_code for api in apis} == {200}
        assert all(redis.ttl(f"arq:result:{job_id}") > 500 for job_id in job_ids)
        info = [job(api, job_ids[0]) for api in apis]
        started, finished = (
            datetime.fromisoformat(info[0][each]) for each in ("started_at", "finished_at")
        )
        assert timedelta(seconds=3) < finished - started < timedelta(seconds=10)
        assert dead(apis[0]) == {}
        assert all(ready(api).json()["workers"] for api in apis)
