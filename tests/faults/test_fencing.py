"""Workers that are paused past their leases, and come back: they touch nothing of others."""

import itertools
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from .harness import Proxy, Server, Service, enqueue, finish, free_port, stopped, until

LEASE = 1


def leases(server: Server, job_ids: list[str]) -> dict[str, bytes]:
    """Return what is stored as the leases of jobs."""
    return {each: server.client().get(f"arq:in-progress:{each}") for each in job_ids}


def test_a_worker_that_was_paused(skeleton: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=LEASE) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        [paused] = service.start_workers(1)
        # When the worker comes back, the short ones have ended, and the long ones go on.
        short = {f"short-{number}" for number in range(5)}
        long = {f"long-{number}" for number in range(5)}
        job_ids = enqueue(api, "work", *[{"key": key, "seconds": 2} for key in sorted(short)])
        job_ids += enqueue(api, "work", *[{"key": key, "seconds": 6} for key in sorted(long)])
        journal.wait_for("begin", short | long)
        with stopped(paused):
            [other] = service.start_workers(1)
            journal.wait("begin", count=20)
            marks = leases(server, job_ids)
            assert all(marks.values())
        journal.wait_until(
            lambda: len({n.key for n in journal.notes() if n.what != "begin"}) == 10, "they go on"
        )
        ended = [note for note in journal.notes("end") if note.pid == paused.pid]
        log = service.log(paused)
        until(lambda: log.read_text().count("outcome is dropped") == len(job_ids), "some are kept")
        assert {note.key for note in ended} <= short
        assert leases(server, job_ids) == marks, "a lease of another worker was touched"
        for job_id in job_ids:
            result = finish(api, job_id)
            assert (result["status"], result["attempts"]) == ("complete", 1)
        for key, runs in journal.runs().items():
            assert len(runs) == 2, (key, runs)
        last = {key: journal.notes("end", key)[-1] for key in short | long}
        assert {note.pid for note in last.values()} == {other.pid}
        assert {note.pid for note in journal.notes("cancel")} == {paused.pid}
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
        assert not redis.hlen("my-service:running")
        assert paused.poll() is other.poll() is None


def test_a_loop_that_is_blocked_for_longer_than_a_lease(skeleton: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=LEASE) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        [blocked] = service.start_workers(1)
        beside = {f"beside-{number}" for number in range(3)}
        job_ids = enqueue(api, "work", *[{"key": key, "seconds": 8} for key in sorted(beside)])
        journal.wait_for("begin", beside)
        job_ids += enqueue(api, "stall_once", {"key": "stall", "seconds": 5})
        journal.wait("begin", "stall")
        [other] = service.start_workers(1)
        journal.wait("begin", count=8)
        marks = leases(server, job_ids)
        assert journal.wait("end", "stall").pid == blocked.pid
        journal.wait("cancel", count=3)
        log = service.log(blocked)
        until(lambda: "outcome is dropped" in log.read_text(), "the result is kept")
        assert leases(server, job_ids) == marks, "a lease of another worker was touched"
        for job_id in job_ids:
            assert finish(api, job_id)["status"] == "complete"
        assert {note.pid for note in journal.notes("cancel")} == {blocked.pid}
        assert {len(runs) for runs in journal.runs().values()} == {2}
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
        assert blocked.poll() is other.poll() is None


def test_a_claim_whose_reply_comes_after_the_lease(skeleton: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as server,
        Proxy(server.port) as proxy,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=LEASE) as service,
    ):
        api, journal = service.start_api(), service.journal
        [late] = service.start_workers(1, REDIS_URL=proxy.url)
        enqueue(api, "work", {"key": "first", "seconds": 0})
        journal.wait("end", "first")
        [other] = service.start_workers(1)
        with stopped(other), proxy.silent("reply"):
            [job_id] = enqueue(api, "work", {"key": "claimed", "seconds": 3})
            held = f"arq:in-progress:{job_id}"
            until(lambda: server.client().exists(held) == 1, "the first worker claims nothing")
            os.kill(other.pid, signal.SIGCONT)
            assert journal.wait("begin", "claimed").pid == other.pid
        journal.wait("end", "claimed")
        assert finish(api, job_id)["status"] == "complete"
        assert [note.pid for note in journal.notes("begin", "claimed")] == [other.pid]
        enqueue(api, "work", *[{"key": str(number), "seconds": 0.2} for number in range(150)])
        journal.wait_for("end", {str(number) for number in range(150)})
        assert late.poll() is other.poll() is None


@pytest.mark.slow
def test_pauses_at_random(skeleton: Path, tmp_path: Path) -> None:
    chance = random.Random(4)  # noqa: S311
    jobs = 1500
    pauses: list[tuple[int, float, float]] = []
    settings = {"JOB_LEASE": LEASE, "QUEUES": '{"default": 20}', "MAX_ATTEMPTS": 50}
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, **settings) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        workers = service.start_workers(3)
        calls = [{"key": str(number), "seconds": 0.3} for number in range(jobs)]
        job_ids = enqueue(api, "work", *calls)
        for _ in range(8):
            victim = chance.choice(workers)
            seen = len(journal.ended())
            start = time.monotonic()
            with stopped(victim):
                time.sleep(chance.uniform(0.5, 2.5) * LEASE)
            pauses.append((victim.pid, start, time.monotonic()))
            journal.wait("end", count=min(seen + 1, jobs))
        journal.wait_for("end", {str(number) for number in range(jobs)})
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
        results = redis.mget([f"arq:result:{job_id}" for job_id in job_ids])
        assert all(json.loads(result)["s"] for result in results)
        assert not redis.hlen("my-service:running")
        for key, runs in journal.runs_by_process().items():
            for one, following in itertools.combinations(runs, 2):
                if one[-1].what != "begin" and one[-1].at <= following[0].at:
                    continue
                # A worker that claims a job, and is paused before it begins, begins it when it
                # comes back; it learns in a moment that it must not.
                first, second = one[0], following[0]
                assert any(
                    (pid == first.pid and start < second.at and first.at < end)
                    or (pid == second.pid and second.at - 0.5 < end < second.at)
                    for pid, start, end in pauses
                ), f"{key} runs twice, and no worker was paused: {one}, {following}"
