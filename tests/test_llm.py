"""The LLM workflow as an option: refused where it cannot work, absent where nobody asks for it."""

import os
import subprocess
from pathlib import Path

import pytest
from celery.brokers import require_rabbitmq
from conftest import contents, taskgen
from faults.test_database import PostgreSQL
from pytest_copie.plugin import Copie
from test_services import assert_no_name_of_a_dependency_can_be_taken, generate, uv

BACKGROUND = 'it does not go with the backend "background"'
BACKENDS = ("arq", "celery")
TRACES = (b"langgraph", b"langchain", b"llm_", b"ticket", b"psycopg-pool")


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        (["--backend", "background", "--set", "llm=langgraph"], BACKGROUND),
        (["--set", "llm=langgraph", "--backend", "background"], BACKGROUND),
        (["--set", "llm=langgraph", "--set", "examples=no"], "it needs examples=true"),
    ],
)
def test_it_is_refused_where_it_cannot_work(
    tmp_path: Path, answers: list[str], problem: str
) -> None:
    done = taskgen("new", "svc", "--yes", *answers, cwd=tmp_path)
    assert done.returncode == 2
    assert problem in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "svc").exists()


@pytest.mark.parametrize(
    "answers",
    [{}, {"examples": False}, {"backend": "celery"}, {"backend": "background"}],
    ids=["arq", "bare", "celery", "bg"],
)
def test_nothing_of_it_is_in_other_services(copie: Copie, answers: dict[str, object]) -> None:
    service = contents(generate(copie, **answers))
    del service[".copier-answers.yml"]
    assert not [path for path in service if "/flows/" in path or "ticket" in path]
    for path, (_, content) in service.items():
        assert not [trace for trace in TRACES if trace in content.lower()], path
    same = contents(generate(copie, **answers, llm="none"))
    del same[".copier-answers.yml"]
    assert same == service


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_adds_files_and_lines_and_changes_none(copie: Copie, backend: str) -> None:
    without, with_it = (
        contents(generate(copie, backend=backend, llm=llm)) for llm in ("none", "langgraph")
    )
    assert set(without) <= set(with_it)
    removed = {
        path
        for path, (_, content) in without.items()
        for line in content.splitlines()
        if line not in with_it[path][1].splitlines()
    }
    # One line each: a call with one argument more, the list of routers, and the answer.
    assert removed == {
        ".copier-answers.yml",
        "src/my_service/api/__init__.py",
        "src/my_service/resources.py",
    }


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_its_service_passes_its_suite_on_both_databases(copie: Copie, backend: str) -> None:
    service = generate(copie, backend=backend, llm="langgraph")
    uv(service, "sync", "--quiet")
    for check in ("ruff check", "ruff format --check", "mypy", "pyright"):
        uv(service, "run", *check.split())
    assert_no_name_of_a_dependency_can_be_taken(service)
    assert_suite_passes_on_both_databases(service)


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["rabbitmq", "sqs"])
def test_tickets_are_answered_over_other_brokers(copie: Copie, broker: str) -> None:
    service = generate(copie, backend="celery", broker=broker, llm="langgraph")
    if broker == "rabbitmq":
        require_rabbitmq()
    uv(service, "sync", "--quiet")
    assert_suite_passes_on_both_databases(service, "tests/test_tickets.py")


def assert_suite_passes_on_both_databases(service: Path, *tests: str) -> None:
    """Run a service's tests, with a PostgreSQL of their own beside SQLite."""
    with PostgreSQL() as server:
        server.start()
        environment = os.environ | {"TEST_DATABASE_URL": server.url}
        for name in ("REDIS_URL", "BROKER_URL"):
            environment.pop(name, None)
        command = ["uv", "run", "pytest", "-q", *tests]
        done = subprocess.run(
            command, cwd=service, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
