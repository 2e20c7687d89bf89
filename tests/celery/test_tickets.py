"""Workers of Celery are killed while they run LLM workflows, and start at once."""

import sys
from pathlib import Path
from typing import Any

import pytest
from faults.test_tickets import (
    SLOTS,
    database,
    kill_workers_of_tickets,
    note_answers,
    start_workers_at_once,
)
from pytest_copie.plugin import Copie

from .brokers import running
from .harness import Service, generate

__all__ = ["database"]
KILLS = 5


@pytest.fixture(scope="session")
def support(copie_session: Copie) -> Path:
    """Generate a service with tickets, whose model notes what it does."""
    home = generate(copie_session, examples=True, llm="langgraph")
    note_answers(home, "tested")
    return home


@pytest.mark.slow
def test_tickets_survive_workers_that_are_killed(
    support: Path, tmp_path: Path, database: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = database | {
        "QUEUES": f'{{"default": {SLOTS}}}',
        "HEALTH_INTERVAL": 0.3,
        "MAX_ATTEMPTS": 100,
    }
    # Redis would give the jobs back after the visibility timeout, longer than a ticket's job.
    with (
        running("rabbitmq", tmp_path / "broker") as broker,
        Service(support, tmp_path, broker, **settings) as service,
    ):
        summary = kill_workers_of_tickets(service, KILLS, r"Task send_email\[(\S+)\] succeeded")
    with capsys.disabled():
        sys.stdout.write(summary)


@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_six_workers_start_at_once_on_an_empty_database(
    support: Path, tmp_path: Path, database: dict[str, Any], kind: str
) -> None:
    settings = database | {"QUEUES": '{"default": 1}'}
    with (
        running(kind, tmp_path / "broker") as broker,
        Service(support, tmp_path, broker, **settings) as service,
    ):
        start_workers_at_once(service)
