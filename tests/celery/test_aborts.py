"""Jobs that are aborted: deferred, queued while no worker lives, and running."""

from pathlib import Path

import httpx2
from faults.harness import enqueue, until

from .brokers import Broker
from .harness import Service, status

SOON = 5  # seconds


def abort(api: httpx2.Client, job_id: str) -> None:
    """Abort a job, as the service does."""
    assert api.delete(f"/faults/jobs/{job_id}").json() is True


def test_jobs_are_aborted_before_they_run_and_while_they_do(
    home: Path, tmp_path: Path, broker: Broker
) -> None:
    with Service(home, tmp_path, broker) as service:
        api, journal = service.start_api(), service.journal
        calls = [{"key": "queued"}]
        [queued] = enqueue(api, "work", *calls)
        [deferred] = api.post("/faults/work", json=calls, params={"delay": 1}).json()
        for job_id in (queued, deferred):
            abort(api, job_id)
            assert status(api, job_id) == "aborted"
        [long, other] = enqueue(api, "hold", {"key": "long"}, {"key": "other"})
        service.start_workers(2)
        for key in ("long", "other"):
            journal.wait("begin", key)
        abort(api, long)
        cancelled = journal.wait("cancel", "long")
        until(lambda: status(api, long) == "aborted", "it is not aborted", SOON)
        # A client sees only its own jobs, and a job ends once.
        assert api.delete(f"/jobs/{long}").status_code == 404
        assert api.delete(f"/faults/jobs/{long}").json() is False
        service.cure()
        until(lambda: status(api, other) == "complete", "the other one does not end")
        later = [{"key": f"later-{number}"} for number in range(20)]
        enqueue(api, "work", *later)
        journal.wait_for("end", {call["key"] for call in later})
        assert {note.key for note in journal.notes("cancel")} == {"long"}
        assert cancelled.pid
        assert not journal.notes(key="queued")
        assert len(journal.notes("begin", "long")) == 1


def test_a_job_is_aborted_while_its_broker_is_away(
    home: Path, tmp_path: Path, broker: Broker
) -> None:
    with Service(home, tmp_path, broker) as service:
        api, journal = service.start_api(), service.journal
        service.start_workers(1)
        running, queued = enqueue(api, "hold", {"key": "running"}, {"key": "other"})
        journal.wait("begin", count=2)
        broker.kill()
        for job_id in (running, queued):
            abort(api, job_id)
        until(lambda: len(journal.notes("cancel")) == 2, "they are not cancelled", SOON)
        until(lambda: status(api, running) == status(api, queued) == "aborted", "no end", SOON)
        broker.start()
        enqueue(api, "work", {"key": "next"})
        journal.wait("end", "next")
        assert len(journal.notes("begin")) == 3
