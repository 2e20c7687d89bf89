"""Workers that are killed or asked to end, while brokers start again: no job is lost."""

import random
import threading
import time
from pathlib import Path

import pytest
from faults.harness import enqueue, job, until

from .brokers import Broker
from .harness import Service, status

VISIBILITY = 5
CRASHES = {
    "VISIBILITY_TIMEOUT": VISIBILITY,
    "JOB_TIMEOUT": VISIBILITY - 0.5,
    "HEALTH_INTERVAL": 0.3,
    # A job in the hands of every worker that is killed is no job that kills workers.
    "MAX_ATTEMPTS": 20,
}


@pytest.mark.slow
def test_no_job_is_lost_when_workers_and_the_broker_are_killed(
    home: Path, tmp_path: Path, broker: Broker
) -> None:
    number, chance = 500, random.Random(10)  # noqa: S311
    killed: dict[int, float] = {}
    accepted: dict[str, str] = {}
    ended = threading.Event()
    with Service(home, tmp_path, broker, SHUTDOWN_GRACE=1, **CRASHES) as service:
        api, journal = service.start_api(), service.journal

        def request() -> None:
            key = 0
            while key < number and not ended.is_set():
                call = {"key": str(key), "seconds": chance.uniform(0.1, 0.6)}
                answer = api.post("/faults/work", json=[call])
                if answer.status_code == 202:
                    accepted[str(key)] = answer.json()[0]
                    key += 1
                else:
                    assert answer.status_code == 503, answer.text
                    # What was refused never runs: its key may be used again.
                    ended.wait(0.1)
                ended.wait(0.02)

        client = threading.Thread(target=request)
        workers = service.start_workers(3)
        client.start()
        try:
            for step in range(9):
                journal.wait("end", count=len(journal.ended()) + 25)
                victim = workers.pop(chance.randrange(len(workers)))
                match step % 3:
                    case 0:
                        killed[victim.pid] = time.monotonic()
                        victim.kill()
                    case 1:
                        victim.terminate()
                        assert victim.wait(30) == 0
                    case _:
                        workers.append(victim)
                        broker.kill()
                        broker.start()
                        continue
                workers += service.start_workers(1)
            until(lambda: len(accepted) == number, "not all were enqueued", 120)
        finally:
            ended.set()
            client.join()
        journal.wait_for("end", set(accepted))
        for job_id in accepted.values():
            until(lambda: status(api, job_id) == "complete", f"{job_id} is not complete")  # noqa: B023
        assert all(worker.poll() is None for worker in workers)
        journal.assert_never_twice_at_once(killed=killed)
        assert not api.get("/dead").json()
        assert any(len(runs) > 1 for runs in journal.runs().values()), "nobody died in mid-job"


def test_a_job_of_a_worker_that_was_killed_runs_again(
    home: Path, tmp_path: Path, broker: Broker
) -> None:
    with Service(home, tmp_path, broker, **CRASHES) as service:
        api, journal = service.start_api(), service.journal
        first, second = service.start_workers(2)
        [job_id] = enqueue(api, "hold", {"key": "held"})
        pid = journal.wait("begin", "held").pid
        [victim] = [worker for worker in (first, second) if worker.pid == pid]
        death = time.monotonic()
        victim.kill()
        again = journal.wait("begin", "held", count=2)
        assert again.pid != pid
        assert again.at - death < 2 * VISIBILITY
        service.cure()
        until(lambda: status(api, job_id) == "complete", "it does not end")
        assert job(api, job_id)["attempts"] == 2


def test_sigterm_lets_short_jobs_end_and_gives_long_ones_back(
    home: Path, tmp_path: Path, broker: Broker
) -> None:
    with Service(home, tmp_path, broker, SHUTDOWN_GRACE=2) as service:
        api, journal = service.start_api(), service.journal
        [first] = service.start_workers(1)
        [long] = enqueue(api, "hold", {"key": "long"})
        journal.wait("begin", "long")
        [short] = enqueue(api, "work", {"key": "short", "seconds": 1})
        journal.wait("begin", "short")
        first.terminate()
        assert journal.wait("end", "short").pid == first.pid
        assert journal.wait("cancel", "long").pid == first.pid
        assert first.wait(30) == 0
        assert status(api, long) == "queued"
        service.start_workers(1)
        # It waits for no timeout.
        journal.wait("begin", "long", count=2)
        service.cure()
        until(lambda: {status(api, short), status(api, long)} == {"complete"}, "they do not end")
        assert job(api, long)["attempts"] == 1
        assert {key: len(runs) for key, runs in journal.runs().items()} == {"short": 1, "long": 2}


def test_a_job_that_goes_on_while_its_broker_starts_again_survives_its_worker(
    home: Path, tmp_path: Path, broker: Broker
) -> None:
    times = {"VISIBILITY_TIMEOUT": 25, "JOB_TIMEOUT": 24}
    with Service(home, tmp_path, broker, **CRASHES | times) as service:
        api, journal = service.start_api(), service.journal
        [first] = service.start_workers(1)
        [job_id] = enqueue(api, "hold", {"key": "held"})
        journal.wait("begin", "held")
        broker.kill()
        broker.start()
        service.start_workers(1)
        # Both have looked at all that the broker has to deliver.
        enqueue(api, "work", *[{"key": f"other-{number}"} for number in range(20)])
        journal.wait_for("end", {f"other-{number}" for number in range(20)})
        assert len(journal.notes("begin", "held")) == 1
        first.kill()
        journal.wait("begin", "held", count=2)
        service.cure()
        until(lambda: status(api, job_id) == "complete", "it does not end")


def test_a_job_that_kills_its_workers_is_dead_in_the_end(
    home: Path, tmp_path: Path, broker: Broker
) -> None:
    with Service(home, tmp_path, broker, **CRASHES | {"MAX_ATTEMPTS": 2}) as service:
        api, journal = service.start_api(), service.journal
        [job_id] = enqueue(api, "crash", {"key": "poison"})
        for attempt in (1, 2):
            worker = service.start_worker()
            assert journal.wait("begin", "poison", count=attempt).pid == worker.pid
            worker.wait(30)
        service.start_workers(1)
        [harmless] = enqueue(api, "work", {"key": "harmless"})
        until(lambda: status(api, harmless) == "complete", "others do not run")
        until(lambda: status(api, job_id) == "failed", "it is not dead")
        assert job(api, job_id)["error"].startswith("WorkerLostError")
        assert [each["job_id"] for each in api.get("/dead").json()] == [job_id]
        assert len(journal.notes("begin", "poison")) == 2
        service.cure()
        assert api.post(f"/dead/{job_id}/retry").is_success
        until(lambda: status(api, job_id) == "complete", "it is not retried")
