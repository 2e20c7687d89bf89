"""Terminal output: progress, the tree of a service, next steps, comparisons, errors."""

import os
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
from taskgen.overview import Entry, summarize
from taskgen.project import Progress, Service

# Narrower than this, a table of three columns cannot be read.
_TABLE_WIDTH = 78

# Of each level of a tree.
_INDENT = 4

_UNLIMITED = 10_000


@contextmanager
def progress() -> Generator[Progress, None, None]:
    """Show the current step: a spinner on a terminal, plain lines elsewhere.

    Yields:
        A function to call with the name of each step. The first call starts the spinner, so that
        it does not run while questions are asked.
    """
    console = _console(stderr=True)
    if not sys.stderr.isatty():
        yield lambda step: console.print(f"{step}...", soft_wrap=True)
        return
    status = console.status("", spinner="dots" if _supports_unicode(console) else "line")

    def show(step: str) -> None:
        status.update(Text(f"{step}..."))
        status.start()

    try:
        yield show
    finally:
        status.stop()


def print_service(service: Service) -> None:
    """Print an overview of a new service, and what to do with it next."""
    console = _console()
    _print_tree(_overview(service, console.width))
    console.print()
    created = f"Created {service.path.name}: {len(service.files)} files"
    console.print(created, style="bold green", soft_wrap=True)
    console.print("Next:")
    for command in next_steps(service):
        console.print(f"  {command}", style="cyan", soft_wrap=True)


def print_files(service: Service) -> None:
    """Print every file that a dry run would have written."""
    console = _console()
    _print_tree(_full_tree(service))
    console.print()
    console.print(f"{len(service.files)} files. Nothing was written: this was a dry run.")


def print_notes(service: Service) -> None:
    """Print what differs from the usual, on standard error."""
    for note in service.notes:
        _print_line(Text(f"Note: {_visible(note)}", style="yellow"))


def next_steps(service: Service) -> list[str]:
    """Return the commands to run next, quoted for a shell."""
    near = _relative(service.path)
    commands = [f"cd {shlex.quote(str(near))}"] if near != Path() else []
    if shutil.which("uv") is None:
        commands.append("pip install uv")
    if not service.synced:
        commands.append("uv sync")
    return [*commands, *(_program(service, name) for name in ("dev", "pytest"))]


def as_json(service: Service, *, dry_run: bool) -> dict[str, Any]:
    """Return what `--json` prints of a service."""
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
        "environment": str(service.environment / ".venv"),
        "notes": service.notes,
        "next_steps": [] if dry_run else next_steps(service),
    }


def print_backends() -> None:
    """Print the comparison of the backends: a table, or a list of each on a narrow terminal."""
    console = _console()
    if console.width < _TABLE_WIDTH:
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
    *names, last = (backend.name for backend in BACKENDS if backend.generated)
    console.print(f"This version of taskgen generates {', '.join(names)} and {last}.")


def print_error(error: TaskgenError) -> None:
    """Print an error and its hint, on standard error."""
    _print_line(Text.assemble(("Error: ", "bold red"), _visible(error.message)))
    _print_line(Text.assemble(("Hint: ", "bold"), _visible(error.hint)))


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # Rich would end the program, without a word about what was done.
        raise  # noqa: PLE0704  (called while the error is handled)


def _console(*, stderr: bool = False, width: int | None = None) -> Console:
    # It prints names and answers: they contain no markup and no emoji codes.
    return _Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def _print_tree(tree: Tree) -> None:
    # Rich would cut off what is wider than the terminal.
    _console(width=_UNLIMITED).print(tree, soft_wrap=True)


def _print_line(text: Text) -> None:
    console = _console(stderr=True)
    # A log or a pipe gets whole lines; a terminal, however narrow, gets whole words.
    console.print(text, soft_wrap=not console.is_terminal)


def _heading(backend: Backend) -> Text:
    generated = f"--backend {backend.key}" if backend.generated else "not generated yet"
    return Text(f"{backend.name}\n({generated})", style="bold cyan")


def _relative(path: Path) -> Path:
    try:
        here = Path.cwd()
    except FileNotFoundError:  # The shell's folder has been removed.
        return path
    return path.relative_to(here) if path.is_relative_to(here) else path


def _program(service: Service, name: str) -> str:
    # `uv run` puts the environment on PATH, whose separator a path cannot contain.
    if os.pathsep not in str(service.environment):
        return f"uv run {name}"
    environment = Path() if service.environment == service.path else service.environment
    return shlex.quote(str(environment / ".venv/bin" / name))


def _full_tree(service: Service) -> Tree:
    branches = {Path(): Tree(Text(f"{service.path.name}/", style="bold"))}
    for file in service.files:
        for folder in reversed(file.parents):
            if folder not in branches:
                branches[folder] = branches[folder.parent].add(Text(f"{folder.name}/", "bold"))
        branches[file.parent].add(Text(file.name))
    return branches[Path()]


def _overview(service: Service, width: int) -> Tree:
    package: str = service.answers["package_name"]
    summary = summarize(service.path.name, service.files, package, width)
    tree = Tree(Text(summary.name, "bold"))
    _add_entries(tree, summary.entries, _description_column(summary.entries))
    return tree


def _add_entries(tree: Tree, entries: Sequence[Entry], column: int) -> None:
    for entry in entries:
        if entry.description:
            label = Text.assemble((entry.name.ljust(column), "bold"), entry.description)
        else:
            label = Text(entry.name, "bold" if entry.entries else "")
        _add_entries(tree.add(label), entry.entries, column - _INDENT)


def _description_column(entries: Sequence[Entry]) -> int:
    widths = [len(entry.name) + 2 for entry in entries if entry.description]
    widths += [_description_column(entry.entries) + _INDENT for entry in entries]
    return max(widths, default=0)


def _supports_unicode(console: Console) -> bool:
    return console.encoding.startswith("utf")


def _visible(text: str) -> str:
    # A value that the user gave may contain what moves the cursor or turns the text around.
    return "".join(
        char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text
    )
