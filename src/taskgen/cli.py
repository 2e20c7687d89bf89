"""The command line: parse options, call, print.

Nothing heavy is imported at the top, so that `--help`, `--version` and shell completion are fast.
"""

import io
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskgen import __version__
from taskgen.backends import BACKENDS
from taskgen.errors import OutputError, TaskgenError, UsageError
from taskgen.signals import Interrupted, check_signals, defer_signals

if TYPE_CHECKING:
    from taskgen.project import Service

GENERATED = [backend.key for backend in BACKENDS if backend.generated]

# The paragraphs after "\b" keep their lines.
_EXAMPLE = """\b
Example:
  taskgen new my-service && cd my-service && uv run dev
"""
_EXAMPLES_OF_NEW = """\b
Examples:
  taskgen new my-service
  taskgen new services/mailer --yes --backend background --set docker=false
  taskgen new my-service --dry-run
"""
_EXAMPLES_OF_BACKENDS = """\b
Examples:
  taskgen backends
  taskgen backends --json
"""

app = typer.Typer(
    help="Generate small FastAPI services whose background tasks really run.",
    epilog=_EXAMPLE,
    # Importing Rich takes longer than all the rest.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line of this process, and exit."""
    # A program that is started with `>&-` has no standard output.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  (open until the end)
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot show becomes an escape, not an exception.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:
        # `run` has reported it. Python would report it again on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run a command, and print its error if it fails.

    Args:
        arguments: The command line without the name of the program.

    Returns:
        The exit code.
    """
    try:
        status = app(arguments, prog_name="taskgen", standalone_mode=False) or 0
        sys.stdout.flush()
    except Interrupted as interruption:
        error = TaskgenError("Interrupted.", _notes(interruption) or "Nothing was written.")
        error.exit_code = interruption.exit_code
    except TaskgenError as failure:
        error = failure
        error.hint = f"{_notes(failure)} {failure.hint}".lstrip()
    except typer.TyperException as mistake:
        error = UsageError(
            mistake.format_message(), "See `taskgen --help` and `taskgen new --help`."
        )
    except OSError as problem:
        if problem.filename is None:
            error = OutputError(problem, "Check that its reader is there, and the disk's space.")
        else:
            hint = "Check the path, its permissions, and the disk's space."
            error = TaskgenError(
                f"{problem.filename}: {problem.strerror}.", f"{_notes(problem)} {hint}".lstrip()
            )
    else:
        return status
    # If standard error cannot be written either, the exit code is all there is.
    with suppress(OSError):
        _print_error(error, as_json="--json" in arguments and not isinstance(error, OutputError))
    return error.exit_code


def _notes(error: BaseException) -> str:
    return " ".join(getattr(error, "__notes__", []))


def _print_error(error: TaskgenError, *, as_json: bool) -> None:
    from taskgen import console

    if as_json:
        typer.echo(json.dumps({"error": {"message": error.message, "hint": error.hint}}, indent=2))
    else:
        console.print_error(error)


def _print_version(wanted: bool) -> None:  # noqa: FBT001  (Typer's signature of a callback)
    if wanted:
        typer.echo(f"taskgen {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    *,
    # Eager: Typer imports pydantic for the first option that is not a plain flag.
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(UsageError.exit_code)


@app.command(epilog=_EXAMPLES_OF_NEW)
def new(  # noqa: PLR0913  (one for each option)
    path: Annotated[
        str,
        typer.Argument(
            metavar="NAME_OR_PATH", help="The folder to create. Its name is the service's."
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
        bool, typer.Option("--dry-run", help="Show every file, write nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON. Asks nothing.")
    ] = False,
    no_git: Annotated[bool, typer.Option("--no-git", help="Create no git repository.")] = False,
    no_sync: Annotated[
        bool, typer.Option("--no-sync", help="Do not create the environment.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Write into a folder that is not empty; keep its own files."),
    ] = False,
) -> None:
    """Create a service: files, repository, environment."""
    from taskgen import console
    from taskgen.project import Request, create
    from taskgen.template import find_template

    if not path:
        raise UsageError("The name is empty.", "Give one: taskgen new my-service.")
    request = Request(
        path=Path(path),
        assignments=[f"backend={backend}"] * (backend is not None) + (assignments or []),
        ask=not yes and not as_json and _is_interactive(),
        dry_run=dry_run,
        force=force,
        git=not no_git,
        sync=not no_sync,
    )
    with defer_signals():
        try:
            with console.progress() as progress:
                service = create(request, find_template(), progress)
        except OSError as problem:
            problem.filename = problem.filename or path
            raise
        console.print_notes(service)
        _report(service, dry_run=dry_run, as_json=as_json)


@app.command(epilog=_EXAMPLES_OF_BACKENDS)
def backends(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False
) -> None:
    """Compare ARQ, Celery and BackgroundTasks."""
    from dataclasses import asdict

    if as_json:
        typer.echo(json.dumps([asdict(backend) for backend in BACKENDS], indent=2))
        return
    from taskgen import console

    console.print_backends()


def _report(service: "Service", *, dry_run: bool, as_json: bool) -> None:
    from taskgen import console

    done = "Nothing was written." if dry_run else f"The service in {service.path} is complete."
    try:
        if as_json:
            typer.echo(json.dumps(console.as_json(service, dry_run=dry_run), indent=2))
        elif dry_run:
            console.print_files(service)
        else:
            console.print_service(service)
        sys.stdout.flush()
        check_signals()
    except OSError as problem:
        raise OutputError(problem, done) from problem
    except Interrupted as interruption:
        interruption.add_note(done)
        raise


def _is_interactive() -> bool:
    # A program that is started with `<&-` has no standard input.
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
