"""The suite of a service with Celery, over a RabbitMQ."""

import re
from pathlib import Path

import pytest
from conftest import run
from pytest_copie.plugin import Copie

from .brokers import running


@pytest.mark.slow
@pytest.mark.parametrize("examples", [True, False], ids=["examples", "skeleton"])
def test_the_suite_passes_over_rabbitmq(copie: Copie, tmp_path: Path, *, examples: bool) -> None:
    answers = {"project_name": "my-service", "backend": "celery", "broker": "rabbitmq"}
    result = copie.copy(  # pyright: ignore[reportUnknownMemberType] - it says "dict" of its answers
        extra_answers={**answers, "examples": examples}
    )
    assert result.project_dir is not None
    with running("rabbitmq", tmp_path / "broker") as rabbitmq:
        run("uv", "sync", "--quiet", cwd=result.project_dir)
        done = run(
            "uv",
            "run",
            "pytest",
            "-q",
            cwd=result.project_dir,
            env={"BROKER_URL": rabbitmq.url},
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) >= 100
