"""Services for the fault tests, generated once per process of the tests."""

from pathlib import Path

import pytest
from pytest_copie.plugin import Copie

from .harness import generate


@pytest.fixture(scope="session")
def skeleton(copie_session: Copie) -> Path:
    """Generate a service without examples."""
    return generate(copie_session, examples=False)


@pytest.fixture(scope="session")
def example(copie_session: Copie) -> Path:
    """Generate a service with examples."""
    return generate(copie_session, examples=True)
