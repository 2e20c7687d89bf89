"""What several test modules use: the command, fake programs, a repository to generate from."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

CHECKOUT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

# A user's machine in a terminal of no special kind, whatever started the tests.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in {"COLUMNS", "FORCE_COLOR", "NO_COLOR", "PYTHONUNBUFFERED", "VIRTUAL_ENV"}
} | {
    "GIT_AUTHOR_EMAIL": "user@example.org",
    "GIT_AUTHOR_NAME": "A user",
    "GIT_COMMITTER_EMAIL": "user@example.org",
    "GIT_COMMITTER_NAME": "A user",
}

API_KEY, ADMIN_TOKEN = "key-of-the-client-of-these-tests-", "token-of-the-operator-of-the-tests"
KEYS = {"API_KEYS": json.dumps({"client": API_KEY}), "ADMIN_TOKEN": ADMIN_TOKEN}


class Authorization(httpx2.Auth):
    """Sends the key that a path of a generated service wants: a client's, or the operator's."""

    def __init__(self, key: str = API_KEY, token: str = ADMIN_TOKEN) -> None:
        self._key, self._token = key, token

    def auth_flow(
        self, request: httpx2.Request
    ) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Add the header."""
        of_client = "/api/v1/" in request.url.path and "/api/v1/dead" not in request.url.path
        request.headers["Authorization"] = f"Bearer {self._key if of_client else self._token}"
        yield request


# What compose.yaml asks for.
COMPOSE_KEYS = {
    "API_KEYS": '{"web": "a-key-of-32-characters-or-more---"}',
    "ADMIN_TOKEN": "a-token-of-32-characters-or-more--",
    "VALKEY_PASSWORD": "a-password",
    "RABBITMQ_PASSWORD": "another-password",
}


def interpolate(compose: Any, variables: Mapping[str, str]) -> Any:  # noqa: ANN401 - YAML's values
    """Put variables into a parsed compose.yaml, as `docker compose` does.

    Raises:
        KeyError: One is missing, or empty, that must not be; with compose's message.
    """

    def replace(found: re.Match[str]) -> str:
        name, operator, text = found["name"], found["operator"], found["text"] or ""
        if not name:
            return "$"
        value = variables.get(name, "")
        if not value and operator == ":?":
            raise KeyError(f"{name}: {text}")
        return json.dumps(value or text)[1:-1]

    pattern = r"\$(?:\$|\{(?P<name>\w+)(?:(?P<operator>:[?-])(?P<text>[^{}]*))?\})"
    return json.loads(re.sub(pattern, replace, json.dumps(compose)))


def run(
    *command: str | Path, cwd: Path, env: Mapping[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command without a terminal, and return its output."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=ENVIRONMENT | dict(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


def taskgen(
    *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `taskgen` as a user does, whether it succeeds or not."""
    return run(BIN / "taskgen", *arguments, cwd=cwd, env=env, check=False)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Read the mode and the bytes of every file, except in `.git` and `.venv`."""
    return {
        str(path.relative_to(folder)): (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and not {".git", ".venv"} & set(path.relative_to(folder).parts)
    }


def fake_program(folder: Path, name: str, script: str) -> dict[str, str]:
    """Put a shell script in front of a program on PATH.

    Returns:
        The environment in which it is found.
    """
    folder.mkdir()
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This project as it stands, in a git repository of its own, with the tag v0.1.0."""
    root = tmp_path_factory.mktemp("repository") / "taskgen"
    root.mkdir()
    for name in (".gitignore", "README.md", "LICENSE", "copier.yml", "pyproject.toml"):
        shutil.copy(CHECKOUT / name, root)
    for name in ("src", "template", "fragments"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / name, root / name, ignore=ignored)
    # The template need not have an executable file; what is made from one is executable too.
    (root / "template/executable.sh").touch(mode=0o755)
    run("git", "init", "--quiet", "--initial-branch", "main", cwd=root)
    run("git", "add", "--all", cwd=root)
    run("git", "commit", "--quiet", "--message", "A release", cwd=root)
    run("git", "tag", "v0.1.0", cwd=root)
    return root
