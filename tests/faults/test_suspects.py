"""Jobs that kill their worker, and jobs that happened to run beside them."""

import os
import signal
import time
from pathlib import Path

import pytest

from .harness import (
    PATIENCE,
    Server,
    Service,
    dead,
    enqueue,
    finish,
    free_port,
    job,
    supervised,
    until,
)


@pytest.mark.slow
def test_poison_takes_no_innocents_along(skeleton: Path, tmp_path: Path) -> None:
    attempts = 3
    innocents = {f"innocent-{number}" for number in range(30)}
    with (
        Server(port=free_port()) as server,
        Service(
            skeleton, tmp_path, server.connection_url, JOB_LEASE=1, MAX_ATTEMPTS=attempts
        ) as service,
        supervised(service, 2),
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        calls = [{"key": key, "seconds": 0.7} for key in sorted(innocents)]
        job_ids = enqueue(api, "work", *calls[:15])
        [poison] = enqueue(api, "crash", {"key": "poison"})
        job_ids += enqueue(api, "work", *calls[15:])
        journal.wait_for("end", innocents)
        for job_id in job_ids:
            result = finish(api, job_id)
            assert (result["status"], result["attempts"]) == ("complete", 1)
        result = finish(api, poison)
        assert (result["status"], result["attempts"]) == ("failed", attempts)
        assert "worker was lost" in result["error"]
        assert dead(api).keys() == {poison}
        # The first two crashes may be any neighbour's doing, and are forgiven.
        assert len(journal.notes("begin", "poison")) <= attempts + 2
        for key in innocents:
            assert len(journal.notes("begin", key)) <= 3, journal.runs()[key]
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
        assert not redis.hlen("my-service:running")
        # Nothing keeps the workers from what comes later.
        enqueue(api, "work", *[{"key": f"later-{n}", "seconds": 0.1} for n in range(20)])
        journal.wait_for("end", {f"later-{n}" for n in range(20)})


@pytest.mark.slow
def test_several_poisons_at_once(skeleton: Path, tmp_path: Path) -> None:
    innocents = {f"innocent-{number}" for number in range(20)}
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=1, MAX_ATTEMPTS=2) as service,
        supervised(service, 2),
    ):
        api, journal = service.start_api(), service.journal
        poison = enqueue(api, "crash", *[{"key": f"poison-{number}"} for number in range(3)])
        enqueue(api, "work", *[{"key": key, "seconds": 0.2} for key in sorted(innocents)])
        until(lambda: dead(api).keys() == set(poison), f"{dead(api).keys()}", patience=60)
        assert {each["attempts"] for each in dead(api).values()} == {2}
        journal.wait_for("end", innocents)


def test_a_lost_worker_holds_nobody_up(skeleton: Path, tmp_path: Path) -> None:
    lease = 2
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=lease) as service,
    ):
        api, journal = service.start_api(), service.journal
        busy = service.start_workers(2)
        enqueue(api, "work", *[{"key": f"long-{number}", "seconds": 60} for number in range(20)])
        journal.wait("begin", count=20)
        lost = service.start_workers(1)[0]
        for worker in busy:
            os.kill(worker.pid, signal.SIGSTOP)
        keys = {f"lost-{number}" for number in range(30)}
        enqueue(api, "work", *[{"key": key, "seconds": 0.5} for key in sorted(keys)])
        journal.wait_for("begin", keys)
        for worker in busy:
            os.kill(worker.pid, signal.SIGCONT)
        lost.kill()
        # Workers with long jobs are those that are left. They run what is new meanwhile, and within
        # two leases or three what was lost.
        killed = time.monotonic()
        for number in range(20):
            enqueue(api, "work", {"key": f"new-{number}", "seconds": 0})
            journal.wait("end", f"new-{number}")
        journal.wait_for("end", keys)
        assert time.monotonic() - killed < 6 * lease + 4
        assert len(journal.notes("begin", "long-0")) == 1
        assert len(journal.notes()) == 20 + 3 * len(keys) + 2 * 20


def test_jobs_given_back_use_up_no_attempt(skeleton: Path, tmp_path: Path) -> None:
    settings = {"MAX_ATTEMPTS": 2, "SHUTDOWN_GRACE": 0.1, "QUEUES": '{"default": 10}'}
    keys = {f"slow-{number}" for number in range(5)}
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, **settings) as service,
    ):
        api, journal = service.start_api(), service.journal
        job_ids = enqueue(api, "await_cure", *[{"key": key} for key in sorted(keys)])
        for deploy in range(1, 5):
            [worker] = service.start_workers(1)
            journal.wait("begin", count=deploy * len(keys))
            worker.terminate()
            assert worker.wait(PATIENCE) == 0
            assert len(journal.notes("cancel")) == deploy * len(keys)
            states = [job(api, job_id) for job_id in job_ids]
            assert {(each["status"], each["attempts"]) for each in states} == {("queued", 0)}
        service.journal.path.with_suffix(".cured").touch()
        service.start_workers(1)
        for job_id in job_ids:
            result = finish(api, job_id)
            assert (result["status"], result["attempts"]) == ("complete", 1)
        assert dead(api) == {}


def test_a_worker_that_is_killed_alone_with_its_job(skeleton: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=1, MAX_ATTEMPTS=3) as service,
        supervised(service),
    ):
        api, journal = service.start_api(), service.journal
        [poison] = enqueue(api, "crash", {"key": "poison"})
        result = finish(api, poison)
        assert (result["status"], result["attempts"]) == ("failed", 3)
        assert "worker was lost" in result["error"]
        assert len(journal.notes("begin", "poison")) == 3
