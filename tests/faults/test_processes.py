"""Workers that are killed, stopped, asked to end, or kept busy."""

import itertools
import random
import signal
import time
from pathlib import Path

import pytest

from .harness import PATIENCE, Server, Service, enqueue, finish, free_port, until


@pytest.mark.slow
def test_kill_9_of_random_workers(skeleton: Path, tmp_path: Path) -> None:
    chance = random.Random(9)  # noqa: S311
    jobs = 2000
    killed: dict[int, float] = {}
    settings = {"JOB_LEASE": 2, "QUEUES": '{"default": 20}', "MAX_ATTEMPTS": 20}
    with (
        Server(port=free_port()) as server,
        # A job in the hands of every worker that is killed is no job that kills workers.
        Service(skeleton, tmp_path, server.connection_url, **settings) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        enqueue(api, "work", *[{"key": str(number), "seconds": 0.1} for number in range(jobs)])
        workers = [service.start_worker() for _ in range(3)]
        for done in range(100, jobs, 150):
            journal.wait("end", count=done)
            at_work = {note.pid for note in journal.notes("begin")}
            victims = [worker for worker in workers if worker.pid in at_work]
            if not victims:
                continue
            victim = chance.choice(victims)
            workers.remove(victim)
            killed[victim.pid] = time.monotonic()
            victim.kill()
            workers.append(service.start_worker())
        journal.wait_until(
            lambda: len({note.key for note in journal.notes("end")}) == jobs, "a job was lost"
        )
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
        assert all(worker.poll() is None for worker in workers)
        assert len(redis.keys("arq:result:*")) == jobs
        assert len(killed) >= 8
        repeated = 0
        for key, runs in journal.runs().items():
            for one, following in itertools.pairwise(runs):
                repeated += 1
                last, death = one[-1], killed.get(one[0].pid)
                assert death, f"{key} ran again, and its worker was not killed"
                # A job that has done its work is in flight until Redis knows.
                in_flight = last.what == "begin" or last.at > death - 1
                assert in_flight, f"{key} ran again {death - last.at} s after its end"
                assert following[0].at > death, f"{key} ran twice at the same time"
        assert repeated, "no worker was killed in mid-job"


def test_a_job_of_a_killed_worker_runs_again_within_its_lease(
    skeleton: Path, tmp_path: Path
) -> None:
    lease = 2
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=lease) as service,
    ):
        api, journal = service.start_api(), service.journal
        first = service.start_worker()
        [job_id] = enqueue(api, "work", {"key": "long", "seconds": lease + 2})
        assert journal.wait("begin", "long").pid == first.pid
        second = service.start_worker()
        service.wait_for_start(second)
        killed = time.monotonic()
        first.kill()
        again = journal.wait("begin", "long", count=2)
        assert again.pid == second.pid
        assert again.at - killed < lease + 2
        assert finish(api, job_id)["status"] == "complete"
        assert len(journal.notes("begin", "long")) == 2


def test_sigterm_in_mid_job(skeleton: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as server,
        Service(
            skeleton, tmp_path, server.connection_url, JOB_LEASE=30, SHUTDOWN_GRACE=2
        ) as service,
    ):
        api, journal = service.start_api(), service.journal
        first = service.start_worker()
        short, long = enqueue(
            api, "work", {"key": "short", "seconds": 1}, {"key": "long", "seconds": 3}
        )
        assert journal.wait("begin", count=2).pid == first.pid
        first.terminate()
        until(lambda: "SIGTERM" in service.log(first).read_text(), "no signal arrived")
        second = service.start_worker()
        enqueue(api, "work", *[{"key": f"new-{number}", "seconds": 0} for number in range(20)])
        assert journal.wait("end", "short").pid == first.pid
        handed_back = journal.wait("cancel", "long")
        assert handed_back.pid == first.pid
        again = journal.wait("begin", "long", count=2)
        assert again.pid == second.pid
        assert 0 < again.at - handed_back.at < 3, "it waited for its lease"
        assert first.wait(PATIENCE) in {0, -signal.SIGTERM}
        assert {finish(api, each)["status"] for each in (short, long)} == {"complete"}
        for number in range(20):
            assert journal.wait("end", f"new-{number}").pid == second.pid
        counts = {key: len(runs) for key, runs in journal.runs().items()}
        assert counts.pop("long") == 2
        assert set(counts.values()) == {1}


def test_an_event_loop_that_stalls(skeleton: Path, tmp_path: Path) -> None:
    lease = 1
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=lease) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        idle = service.start_worker()
        service.wait_for_start(idle)
        idle.send_signal(signal.SIGSTOP)
        calls = [{"key": str(number), "seconds": 0.8 * lease, "times": 3} for number in range(3)]
        job_ids = enqueue(api, "stall", *calls)
        # This one claims them all at once, and stalls in the first one that begins. The other has
        # all the time in the world to take those whose lease is not renewed.
        busy = service.start_worker()
        journal.wait("begin")
        idle.send_signal(signal.SIGCONT)
        journal.wait("end", count=len(calls))
        assert {finish(api, job_id)["status"] for job_id in job_ids} == {"complete"}
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
        assert busy.poll() is idle.poll() is None
        counts = {key: len(runs) for key, runs in journal.runs().items()}
        assert counts == {str(call["key"]): 1 for call in calls}
