"""The commands: parse, call, print.

Nothing heavy is imported before it is needed: `--help`, `--version` and shell completion are
there at once.
"""

import io
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from taskgen import __version__
from taskgen.backends import BACKENDS
from taskgen.errors import TaskgenError, UsageError
from taskgen.interruptions import Interrupted, heed_signals

GENERATED = [backend.key for backend in BACKENDS if backend.generated]

app = typer.Typer(
    help="Generate small FastAPI services whose background tasks really run.",
    # Rich would take longer to import than all the rest.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line, and exit with its status."""
    heed_signals()
    # Started with `>&-`, a program has none.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  (open until the end)
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its code instead of an exception.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:
        # Whoever reads has seen enough. Python would complain of it when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = status or 1
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run one command line, and say what went wrong where something did.

    Args:
        arguments: What follows `taskgen`.

    Returns:
        The exit code.
    """
    try:
        return app(arguments, prog_name="taskgen", standalone_mode=False) or 0
    except Interrupted as interruption:
        error = TaskgenError("Interrupted.", "What was half-made has been removed.")
        error.exit_code = interruption.exit_code
    except TaskgenError as failure:
        error = failure
    except typer.TyperException as mistake:
        error = UsageError(
            mistake.format_message(), "Try `taskgen --help` and `taskgen new --help`."
        )
    except OSError as problem:
        error = TaskgenError(
            f"{problem.filename or 'Standard output'}: {problem.strerror or problem}.",
            "Check the path, its permissions, and that the disk has room.",
        )
    # Where nobody can be told, the exit code is all there is.
    with suppress(OSError):
        _show(error, as_json="--json" in arguments)
    return error.exit_code


def _show(error: TaskgenError, *, as_json: bool) -> None:
    from taskgen import console

    if as_json:
        typer.echo(json.dumps({"error": {"message": error.message, "hint": error.hint}}, indent=2))
    else:
        console.show_error(error)


def _show_version(wanted: bool) -> None:  # noqa: FBT001  (Typer's signature of a callback)
    if wanted:
        typer.echo(f"taskgen {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    *,
    # Eager: Typer imports pydantic for the first option that is no plain flag.
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(UsageError.exit_code)


@app.command()
def new(  # noqa: PLR0913  (one for each option)
    path: Annotated[
        str,
        typer.Argument(
            metavar="NAME_OR_PATH", help="The folder to make. Its name is the service's."
        ),
    ],
    *,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Take the defaults, ask nothing.")
    ] = False,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(GENERATED),
            help="What runs the tasks. `taskgen backends` compares them.",
            autocompletion=lambda: GENERATED,
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Answer a question. Repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be made, write nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON. Asks nothing.")
    ] = False,
    no_git: Annotated[bool, typer.Option("--no-git", help="Make no git repository.")] = False,
    no_sync: Annotated[
        bool, typer.Option("--no-sync", help="Do not create the environment.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Write into a folder that is not empty; keep its own files."),
    ] = False,
) -> None:
    """Make a service: its files, its git repository, its environment."""
    from taskgen import console
    from taskgen.project import Request, create
    from taskgen.template import find_template

    if not path:
        raise UsageError("The name is empty.", "Give one, as in taskgen new my-service.")
    request = Request(
        path=Path(path),
        assignments=[f"backend={backend}"] * (backend is not None) + (assignments or []),
        ask=not yes and not as_json and _is_a_person_there(),
        dry_run=dry_run,
        force=force,
        git=not no_git,
        sync=not no_sync,
    )
    with console.progress() as step:
        service = create(request, find_template(), step)
    console.show_notes(service)
    if as_json:
        typer.echo(json.dumps(console.as_json(service, dry_run=dry_run), indent=2))
    else:
        console.show_service(service, dry_run=dry_run)


@app.command()
def backends(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False
) -> None:
    """Compare what can run background tasks: ARQ, Celery and BackgroundTasks."""
    from dataclasses import asdict

    if as_json:
        typer.echo(json.dumps([asdict(backend) for backend in BACKENDS], indent=2))
        return
    from taskgen import console

    console.show_backends()


def _is_a_person_there() -> bool:
    # Started with `<&-`, a program has no standard input.
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
