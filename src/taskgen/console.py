"""What people see: progress, the tree of what was made, next steps, comparisons, errors."""

import shlex
import shutil
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from taskgen.backends import BACKENDS, Backend
from taskgen.errors import TaskgenError
from taskgen.project import Service, Step

# Below this, a table of three columns is no longer readable.
_WIDE = 78


def _console(*, stderr: bool = False) -> Console:
    # What it prints are names and answers: nothing in them is markup or an emoji code.
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


@contextmanager
def progress() -> Generator[Step, None, None]:
    """Show what happens: a spinner on a terminal, plain lines elsewhere.

    Yields:
        What to call with each next step. The first call starts the spinner, so that it does not
        run while questions are asked.
    """
    console = _console(stderr=True)
    if not sys.stderr.isatty():
        yield lambda step: console.print(f"{step}...", soft_wrap=True)
        return
    status = console.status("", spinner="dots" if _speaks_unicode(console) else "line")

    def show(step: str) -> None:
        status.update(Text(f"{step}..."))
        status.start()

    try:
        yield show
    finally:
        status.stop()


def show_service(service: Service, *, dry_run: bool) -> None:
    """Show the tree of a service, and what to do with it next."""
    console = _console()
    console.print(_tree(service.path.name, service.files), soft_wrap=True)
    console.print()
    if dry_run:
        console.print(f"{len(service.files)} files. Nothing was written: this was a dry run.")
        return
    console.print(f"Made {_nearby(service.path)}", style="bold green", soft_wrap=True)
    console.print("Next:")
    for command in next_steps(service):
        console.print(f"  {command}", style="cyan", soft_wrap=True)


def show_notes(service: Service) -> None:
    """Say what was left out, and why."""
    for note in service.notes:
        _say(Text(f"Note: {note}", style="yellow"))


def next_steps(service: Service) -> list[str]:
    """List the commands that a user runs next, to be typed as they are."""
    near = _nearby(service.path)
    commands = [f"cd {shlex.quote(str(near))}"] if near != Path() else []
    if shutil.which("uv") is None:
        commands.append("pip install uv")
    if not service.synced:
        commands.append("uv sync")
    return [*commands, "uv run dev", "uv run pytest"]


def as_json(service: Service, *, dry_run: bool) -> dict[str, Any]:
    """Put a service into the form that `--json` prints."""
    return {
        "path": str(service.path),
        "project_name": service.answers["project_name"],
        "package_name": service.answers["package_name"],
        "backend": service.answers["backend"],
        "answers": service.answers,
        "files": sorted(file.as_posix() for file in service.files),
        "template": asdict(service.origin),
        "dry_run": dry_run,
        "git": service.git,
        "synced": service.synced,
        "next_steps": [] if dry_run else next_steps(service),
    }


def show_backends() -> None:
    """Show the comparison of the backends: a table, or one list for each where that is narrow."""
    console = _console()
    if console.width < _WIDE:
        for backend in BACKENDS:
            console.print(_heading(backend))
            for aspect, value in backend.aspects():
                console.print(Text.assemble((f"{aspect}: ", "bold"), value))
            console.print()
    else:
        table = Table(show_lines=True)
        table.add_column("", style="bold")
        for backend in BACKENDS:
            table.add_column(_heading(backend), ratio=1)
        for rows in zip(*(backend.aspects() for backend in BACKENDS), strict=True):
            table.add_row(rows[0][0], *(value for _, value in rows))
        console.print(table)
    generated = " and ".join(backend.name for backend in BACKENDS if backend.generated)
    console.print(f"This version of taskgen generates {generated}.")


def show_error(error: TaskgenError) -> None:
    """Say what is wrong and what to do about it, on standard error."""
    _say(Text.assemble(("Error: ", "bold red"), _visible(error.message)))
    _say(Text.assemble(("Hint: ", "bold"), _visible(error.hint)))


def _say(text: Text) -> None:
    console = _console(stderr=True)
    # A log or a pipe gets its lines whole; a terminal, however narrow, gets whole words.
    console.print(text, soft_wrap=not console.is_terminal)


def _heading(backend: Backend) -> Text:
    generated = f"--backend {backend.key}" if backend.generated else "not generated yet"
    return Text(f"{backend.name}\n({generated})", style="bold cyan")


def _nearby(path: Path) -> Path:
    try:
        here = Path.cwd()
    except FileNotFoundError:  # It has been removed under the feet of the shell.
        return path
    return path.relative_to(here) if path.is_relative_to(here) else path


def _tree(name: str, files: Sequence[Path]) -> Tree:
    branches = {Path(): Tree(Text(f"{name}/", style="bold"))}
    for file in files:
        for folder in reversed(file.parents):
            if folder not in branches:
                branches[folder] = branches[folder.parent].add(Text(f"{folder.name}/", "bold"))
        branches[file.parent].add(Text(file.name))
    return branches[Path()]


def _speaks_unicode(console: Console) -> bool:
    return console.encoding.startswith("utf")


def _visible(text: str) -> str:
    # A value that the user gave may hold what moves the cursor or turns the text around.
    return "".join(
        char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text
    )
