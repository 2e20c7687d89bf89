"""A service for the tests of Celery, generated once per process of the tests, and its brokers."""

from collections.abc import Generator
from pathlib import Path

import pytest
from pytest_copie.plugin import Copie

from .brokers import Broker, running
from .harness import generate


@pytest.fixture(scope="session")
def home(copie_session: Copie) -> Path:
    """Generate a service."""
    return generate(copie_session)


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Broker]:
    """Run a broker for one test."""
    kind: str = request.param
    with running(kind, tmp_path / "broker") as broker:
        yield broker
