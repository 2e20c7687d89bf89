"""The faults that Redis and RabbitMQ are tested with, over SQS: a moto server."""

from collections.abc import Generator
from pathlib import Path

import pytest
from conftest import run
from faults.harness import Proxy, enqueue, until
from pytest_copie.plugin import Copie

from .brokers import Moto
from .harness import Service, generate, status
from .test_aborts import test_jobs_are_aborted_before_they_run_and_while_they_do
from .test_crashes import (
    test_a_job_of_a_worker_that_was_killed_runs_again,
    test_a_job_that_kills_its_workers_is_dead_in_the_end,
    test_sigterm_lets_short_jobs_end_and_gives_long_ones_back,
)
from .test_outages import (
    assert_back,
    assert_unavailable,
    run_one,
    test_jobs_whose_messages_the_broker_has_lost_run_again,
)
from .test_workflows import (
    test_a_failing_member_ends_a_chord_and_is_named,
    test_the_body_of_a_chord_runs_once_after_kill_9_in_its_header,
)

__all__ = [
    "test_a_failing_member_ends_a_chord_and_is_named",
    "test_a_job_of_a_worker_that_was_killed_runs_again",
    "test_a_job_that_kills_its_workers_is_dead_in_the_end",
    "test_jobs_are_aborted_before_they_run_and_while_they_do",
    "test_jobs_whose_messages_the_broker_has_lost_run_again",
    "test_sigterm_lets_short_jobs_end_and_gives_long_ones_back",
    "test_the_body_of_a_chord_runs_once_after_kill_9_in_its_header",
]


@pytest.fixture(scope="session")
def home(copie_session: Copie) -> Path:
    """Generate a service whose environment has what SQS needs, and moto."""
    home = generate(copie_session, broker="sqs")
    run("uv", "sync", "--quiet", cwd=home)
    return home


@pytest.fixture
def broker(home: Path) -> Generator[Moto]:
    """Run a moto server for one test."""
    with Moto(home / ".venv" / "bin" / "python") as moto:
        yield moto


def test_the_service_survives_outages_of_sqs(home: Path, tmp_path: Path, broker: Moto) -> None:
    with Proxy(broker.port) as network:
        broker.url = broker.url.replace(str(broker.port), network.url.rpartition(":")[2])
        with Service(home, tmp_path, broker) as service:
            api, journal = service.start_api(), service.journal
            workers = service.start_workers(2)
            known = run_one(service, api)
            [held] = enqueue(api, "hold", {"key": "held"})
            journal.wait("begin", "held")

            with broker.hang():
                assert_unavailable(api, known)
            assert_back(service, api, "after-hang")

            network.closes_at_once = True
            network.cut_all()
            assert_unavailable(api, known)
            network.closes_at_once = False
            assert_back(service, api, "after-cut")

            service.cure()
            until(lambda: status(api, held) == "complete", "what ran all the time does not end")
            assert len(journal.notes("begin", "held")) == 1
            assert all(worker.poll() is None for worker in workers)
            assert "refused" not in {note.key for note in journal.notes()}
