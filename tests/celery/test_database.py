"""The records of jobs in PostgreSQL, which workers on several hosts share."""

from collections.abc import Generator
from pathlib import Path

import pytest
from faults.harness import enqueue, job, until
from faults.test_database import PostgreSQL

from .brokers import Broker
from .harness import Service, status
from .test_crashes import CRASHES
from .test_workflows import start, state


@pytest.fixture
def postgresql() -> Generator[PostgreSQL]:
    """Run a PostgreSQL server."""
    with PostgreSQL() as server:
        server.start()
        yield server


def test_records_in_postgresql(
    home: Path, tmp_path: Path, broker: Broker, postgresql: PostgreSQL
) -> None:
    with Service(home, tmp_path, broker, DATABASE_URL=postgresql.url, **CRASHES) as service:
        api, journal = service.start_api(), service.journal
        six = [service.start_worker() for _ in range(6)]  # at once, on an empty database
        for each in six:
            service.wait_for_start(each)
        once = {"Idempotency-Key": "key"}
        accepted = [
            api.post("/pings", json={"message": message}, headers=once)
            for message in ("same", "same", "other")
        ]
        assert [each.status_code for each in accepted] == [202, 202, 422]
        ping = accepted[0].json()["job_id"]
        assert accepted[1].json()["job_id"] == ping
        until(lambda: status(api, ping) == "complete", "it is not run")

        [failing] = enqueue(api, "fail", {"key": "failing"})
        until(lambda: status(api, failing) == "failed", "it is not dead")
        assert job(api, failing)["attempts"] == 2
        later = api.post("/faults/work", json=[{"key": "later"}], params={"delay": 1}).json()[0]
        [held] = enqueue(api, "hold", {"key": "held"})
        pid = journal.wait("begin", "held").pid
        [victim] = [each for each in six if each.pid == pid]
        victim.kill()
        chord = start(api, "chords/body", json=["one", "two"])
        until(lambda: state(api, chord)["status"] == "complete", "the chord does not end")
        until(lambda: status(api, later) == "complete", "what was deferred does not run")
        assert api.delete(f"/faults/jobs/{held}").json()
        until(lambda: status(api, held) == "aborted", "it is not aborted")
        service.cure()
        assert api.post(f"/dead/{failing}/retry").is_success
        until(lambda: status(api, failing) == "complete", "it is not retried")
        assert all(each.poll() is None for each in six if each is not victim)
