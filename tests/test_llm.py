"""The LLM workflow as an option: refused where it cannot work, absent where nobody asks for it."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import contents, taskgen
from faults.test_database import PostgreSQL
from pytest_copie.plugin import Copie
from test_services import assert_no_name_of_a_dependency_can_be_taken, generate, uv

BACKGROUND = 'it does not go with the backend "background"'
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
    "answers", [{}, {"examples": False}, {"backend": "background"}], ids=["arq", "bare", "bg"]
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


def test_it_adds_files_and_lines_and_changes_none(copie: Copie) -> None:
    without, with_it = (contents(generate(copie, llm=llm)) for llm in ("none", "langgraph"))
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
def test_its_service_passes_its_suite_on_both_databases(copie: Copie) -> None:
    service = generate(copie, llm="langgraph")
    uv(service, "sync", "--quiet")
    for check in ("ruff check", "ruff format --check", "mypy", "pyright"):
        uv(service, "run", *check.split())
    assert_no_name_of_a_dependency_can_be_taken(service)
    with PostgreSQL() as server:
        server.start()
        environment = os.environ | {"TEST_DATABASE_URL": server.url}
        environment.pop("REDIS_URL", None)
        command = ["uv", "run", "pytest", "-q"]
        done = subprocess.run(
            command, cwd=service, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
