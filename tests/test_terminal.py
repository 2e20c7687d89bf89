"""`taskgen new` at a terminal: its questions, its spinner, and Ctrl-C."""

import re
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest
import yaml
from conftest import BIN, CHECKOUT, ENVIRONMENT

DOWN, ENTER, CONTROL_C, CLEAR_LINE = "\x1b[B", "\r", "\x03", "\x15"
QUESTIONS: dict[str, dict[str, Any]] = {
    key: details
    for key, details in yaml.safe_load((CHECKOUT / "copier.yml").read_text()).items()
    if not key.startswith("_") and details.get("when") is not False
}


class Terminal:
    """A person's view of `taskgen`, on a pseudo-terminal of 24 lines."""

    def __init__(self, cwd: Path, columns: int, arguments: tuple[str, ...]) -> None:
        environment = ENVIRONMENT | {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process: Any = pexpect.spawn(
            str(BIN / "taskgen"),
            list(arguments),
            cwd=str(cwd),
            env=environment,
            dimensions=(24, columns),
            encoding="utf-8",
            timeout=60,
        )

    def see(self, words: str) -> None:
        """Wait for words, wherever the lines break and whatever their colour is."""
        between = r"(?:\s|\x1b\[[0-9;?]*[A-Za-z])+"
        self.process.expect(between.join(map(re.escape, words.split())))

    def be_asked(self, key: str) -> None:
        """Wait for a question, known by the beginning of its help."""
        self.see(QUESTIONS[key]["help"][:25])

    def type(self, keys: str) -> None:
        """Press keys."""
        self.process.send(keys)

    def end(self) -> int:
        """Wait for the program to end, and return its exit code."""
        self.process.expect(pexpect.EOF)
        self.process.close()
        status: int = self.process.exitstatus
        return status


@contextmanager
def terminal(cwd: Path, *arguments: str, columns: int = 80) -> Generator[Terminal, None, None]:
    opened = Terminal(cwd, columns, arguments)
    try:
        yield opened
    finally:
        opened.process.close(force=True)


def recorded(service: Path) -> dict[str, Any]:
    answers: dict[str, Any] = yaml.safe_load((service / ".copier-answers.yml").read_text())
    return answers


@pytest.mark.parametrize("columns", [80, 40])
def test_asks_the_questions_of_the_template(tmp_path: Path, columns: int) -> None:
    with terminal(tmp_path, "new", "my-service", "--no-sync", columns=columns) as screen:
        screen.be_asked("package_name")
        screen.see("my_service")
        # A keyword is no name: the sentence says so, and the question stays.
        screen.type(CLEAR_LINE + "class" + ENTER)
        screen.see("is a keyword" if columns == 80 else "Validation error")
        screen.type(CLEAR_LINE + "parcels" + ENTER)
        screen.be_asked("description")
        screen.type(CLEAR_LINE + 'Sends {{ 7*7 }} "parcels"' + ENTER)
        screen.be_asked("backend")
        screen.type(DOWN + ENTER)
        screen.be_asked("broker")
        screen.type(DOWN + ENTER)
        screen.be_asked("examples")
        screen.type("n")
        screen.be_asked("python_version")
        screen.type(DOWN + ENTER)
        screen.be_asked("docker")
        screen.type("n")
        screen.be_asked("ci")
        screen.type(ENTER)
        screen.see("Rendering the template")
        screen.see("pyproject.toml")
        screen.see("uv run dev")
        assert screen.end() == 0
    answers = recorded(tmp_path / "my-service")
    assert answers["project_name"] == "my-service"
    assert answers["package_name"] == "parcels"
    assert answers["description"] == 'Sends {{ 7*7 }} "parcels"'
    assert (answers["backend"], answers["broker"]) == ("celery", "rabbitmq")
    assert (answers["examples"], answers["docker"]) == (False, False)
    assert answers["python_version"] == "3.12"
    assert answers["ci"] == "github"
    assert (tmp_path / "my-service/src/parcels/__init__.py").is_file()


def test_does_not_ask_what_was_given(tmp_path: Path) -> None:
    given = [f"--set={key}={QUESTIONS[key]['default']}" for key in QUESTIONS][2:]
    with terminal(tmp_path, "new", "svc", "--no-sync", "--no-git", *given[1:]) as screen:
        screen.be_asked("package_name")
        screen.type(ENTER)
        screen.be_asked("description")
        screen.type(ENTER)
        assert screen.end() == 0
    assert recorded(tmp_path / "svc")["package_name"] == "svc"


@pytest.mark.parametrize("option", ["--yes", "--json"])
def test_asks_nothing_when_told_so(tmp_path: Path, option: str) -> None:
    with terminal(tmp_path, "new", "svc", "--no-sync", option) as screen:
        screen.see("README.md")
        assert screen.end() == 0


def test_refuses_before_the_first_question(tmp_path: Path) -> None:
    with terminal(tmp_path, "new", "-y-") as screen:
        assert screen.end() == 2
    with terminal(tmp_path, "new", "svc", f"--set=description={'x' * 501}") as screen:
        screen.see("500 at most")
        assert screen.end() == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    with terminal(tmp_path, "new", "full") as screen:
        screen.see("not empty")
        assert screen.end() == 1


def test_leaves_nothing_when_ended_at_a_question(tmp_path: Path) -> None:
    with terminal(tmp_path, "new", "svc") as screen:
        screen.be_asked("package_name")
        screen.process.kill(signal.SIGTERM)
        screen.see("Interrupted")
        assert screen.end() == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["package_name", "backend", "docker"])
def test_control_c_at_a_question_leaves_nothing(tmp_path: Path, key: str) -> None:
    with terminal(tmp_path, "new", "svc") as screen:
        for asked in [name for name in QUESTIONS if name != "broker"][1:]:  # which is Celery's
            screen.be_asked(asked)
            if asked == key:
                break
            screen.type(ENTER)
        screen.type(CONTROL_C)
        screen.see("Interrupted")
        assert screen.end() == 130
    assert list(tmp_path.iterdir()) == []


def test_no_color_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colour = re.compile(r"\x1b\[[0-9;]*m")
    for value in ("", "1"):
        monkeypatch.setitem(ENVIRONMENT, "NO_COLOR", value)
        with terminal(tmp_path, "backends") as screen:
            assert screen.end() == 0
            codes = set(colour.findall(screen.process.before))
        # Bold is no colour.
        assert bool(codes - {"\x1b[0m", "\x1b[1m"}) is (value == "")
