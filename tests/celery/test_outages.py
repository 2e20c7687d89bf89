"""Brokers that are absent, hang, start again, and have lost all that they had."""

import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx2
from faults.harness import enqueue, job, until

from .brokers import Broker
from .harness import BACK, Service, status


def run_one(service: Service, api: httpx2.Client) -> str:
    """Run a job, and return its id when its outcome is stored."""
    [job_id] = enqueue(api, "work", {"key": "known"})
    service.journal.wait("end", "known")
    until(lambda: status(api, job_id) == "complete", "it is not stored")
    return job_id


def assert_unavailable(api: httpx2.Client, known: str) -> None:
    """Check that enqueueing is refused in time, three times running, and the rest goes on."""
    for _ in range(3):
        start = time.monotonic()
        answer = api.post("/faults/work", json=[{"key": "refused"}])
        assert time.monotonic() - start < 2
        assert answer.status_code == 503, answer.text
        assert "retry-after" in answer.headers
        assert job(api, known)["status"] == "complete"
        assert api.get("/jobs/unknown").status_code == 404


def assert_back(service: Service, api: httpx2.Client, name: str) -> None:
    """Check that jobs are enqueued and run again, by workers that were there before."""
    keys = {f"{name}-{number}" for number in range(10)}  # more than there are connections
    for key in sorted(keys):
        enqueue(api, "work", {"key": key})
    until(lambda: keys <= service.journal.ended(), "workers did not come back", BACK)


def test_the_service_survives_outages_of_its_broker(
    home: Path, tmp_path: Path, broker: Broker
) -> None:
    with Service(home, tmp_path, broker) as service:
        api, journal = service.start_api(), service.journal
        workers = service.start_workers(2)
        known = run_one(service, api)
        enqueue(api, "hold", *[{"key": f"held-{number}"} for number in range(6)])
        journal.wait("begin", count=7)

        broker.kill()
        assert_unavailable(api, known)
        broker.start()
        assert_back(service, api, "after-kill")

        with broker.hang():
            assert_unavailable(api, known)
        assert_back(service, api, "after-hang")

        broker.shut_down()
        assert_unavailable(api, known)
        broker.start()
        assert_back(service, api, "after-restart")
        # Who ran a job all the time ends it, and its message ends, too.
        assert len(journal.notes("begin")) == 7 + 30
        service.cure()
        journal.wait("end", count=7 + 30)
        service.start_workers(1)
        journal.assert_never_twice_at_once()

        broker.kill()
        broker.erase()
        broker.start()
        assert_back(service, api, "after-loss")
        assert all(worker.poll() is None for worker in workers)
        assert "refused" not in {note.key for note in journal.notes()}


def test_a_job_whose_message_the_broker_has_lost_is_dead_in_the_end(
    home: Path, tmp_path: Path, broker: Broker
) -> None:
    with Service(home, tmp_path, broker, JOB_EXPIRES=5) as service:
        api = service.start_api()
        [lost] = enqueue(api, "work", {"key": "lost"})
        broker.kill()
        broker.erase()
        broker.start()
        assert status(api, lost) == "queued"
        # A worker looks for such jobs when it starts, and once a minute.
        until(lambda: seconds_since(job(api, lost)["enqueued_at"]) > 5, "time stands still")
        service.start_worker()
        until(lambda: status(api, lost) == "failed", "it is not dead")
        assert "no worker has begun it" in job(api, lost)["error"]
        assert [each["job_id"] for each in api.get("/dead").json()] == [lost]
        # And it can run after all.
        assert api.post(f"/dead/{lost}/retry").is_success
        service.journal.wait("end", "lost")


def test_jobs_whose_messages_the_broker_has_lost_run_again(
    home: Path, tmp_path: Path, broker: Broker
) -> None:
    times = {"VISIBILITY_TIMEOUT": 2, "JOB_TIMEOUT": 1.9, "HEALTH_INTERVAL": 0.3}
    with Service(home, tmp_path, broker, **times) as service:
        api, journal = service.start_api(), service.journal
        victim = service.start_worker()
        [begun] = enqueue(api, "hold", {"key": "begun"})
        journal.wait("begin", "begun")
        victim.kill()
        [waiting] = enqueue(api, "work", {"key": "waiting"})
        assert api.post("/faults/chains/last", params={"first": "chained"}).status_code == 202
        broker.kill()
        broker.erase()
        broker.start()
        service.cure()
        service.start_worker()
        until(lambda: {status(api, each) for each in (begun, waiting)} == {"complete"}, "not run")
        begun_keys = sorted(note.key for note in journal.notes("begin"))
        # A step alone would not lead to the next one.
        assert begun_keys == ["begun", "begun", "waiting"]


def test_workers_wait_for_a_broker_that_is_not_there_yet(
    home: Path, tmp_path: Path, broker: Broker
) -> None:
    broker.kill()
    with Service(home, tmp_path, broker, SHUTDOWN_GRACE=1) as service:
        api = service.start_api()
        worker = service.start_worker()
        service.wait_for_log(worker, "Cannot connect")
        # Deferred jobs need no broker until they are due.
        keys = [f"deferred-{number}" for number in range(5)]
        deferred = [job_id for key in keys for job_id in enqueue_later(api, key, 0.5)]
        service.wait_for_log(worker, "deferred jobs wait")
        broker.start()
        service.wait_for_start(worker)
        ended = service.journal.ended
        until(lambda: ended() == set(keys), "deferred jobs do not run", BACK)
        until(lambda: {status(api, each) for each in deferred} == {"complete"}, "not stored")
        worker.terminate()
        assert ends(worker)


def enqueue_later(api: httpx2.Client, key: str, delay: float) -> list[str]:
    """Enqueue a job for later; it must be accepted."""
    answer = api.post("/faults/work", json=[{"key": key}], params={"delay": delay})
    assert answer.status_code == 202, answer.text
    job_ids: list[str] = answer.json()
    return job_ids


def seconds_since(moment: str) -> float:
    """Return the seconds since a moment that the API has named."""
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()


def ends(worker: subprocess.Popen[bytes]) -> bool:
    """Wait until a worker has ended."""
    return worker.wait(30) == 0
