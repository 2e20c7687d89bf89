"""Create a service: render it, put its files in place, and make it ready to run."""

import os
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskgen import commands
from taskgen.errors import TaskgenError, UsageError
from taskgen.questions import parse_answers, read_questions
from taskgen.render import ANSWERS_FILE, ask_questions, read_answers, render
from taskgen.signals import check_signals
from taskgen.template import Origin, Template
from taskgen.transaction import FileTransaction
from taskgen.workspace import find_workspace

Progress = Callable[[str], None]

# Part of every service, and so the first file: whoever creates it owns the folder.
_CLAIM = ANSWERS_FILE

_CREATED_BY_UV = (Path(".venv/pyvenv.cfg"), Path("uv.lock"))

# Python finds an installed project through a file that has one path on each line.
_LINE_BREAKING = frozenset({"Cc", "Zl", "Zp"})


@dataclass(frozen=True, slots=True)
class Request:
    """What to create, and how.

    Attributes:
        path: The folder of the service. Its last part is the default name of the service.
        assignments: Answers, as `KEY=VALUE`.
        ask: Ask the questions that are left, at the terminal.
        dry_run: Stop before anything is written to `path`.
        force: Write into a folder that is not empty.
        git: Create a git repository.
        sync: Create the environment.
    """

    path: Path
    assignments: Sequence[str] = ()
    ask: bool = False
    dry_run: bool = False
    force: bool = False
    git: bool = True
    sync: bool = True


@dataclass(slots=True)
class Service:
    """A service that was created, or in a dry run would have been.

    Attributes:
        path: The folder.
        answers: The answers that it was rendered from.
        files: The files that come from the template, relative to `path`, sorted.
        origin: Where the template came from.
        environment: The folder that holds its `.venv` and its `uv.lock`.
        git: Whether a git repository was created.
        synced: Whether its environment was created.
        notes: What differs from the usual, and why.
    """

    path: Path
    answers: dict[str, Any]
    files: list[Path]
    origin: Origin
    environment: Path
    git: bool = False
    synced: bool = False
    notes: list[str] = field(default_factory=list[str])


def create(request: Request, template: Template, progress: Progress) -> Service:
    """Create a service, complete or not at all.

    Args:
        request: What to create.
        template: What to create it from.
        progress: Called with the name of each step before it begins.

    Returns:
        The service.

    Raises:
        UsageError: An answer is not valid.
        TaskgenError: The service cannot be created.
        OSError: A file cannot be read or written.
        Interrupted: A signal arrived.
    """
    target = _resolve(request.path)
    answers: dict[str, Any] = dict(
        parse_answers(request.assignments, read_questions(template.root / "copier.yml"))
    )
    answers.setdefault("project_name", _name(request.path, target))
    _refuse_existing(target, force=request.force)

    with tempfile.TemporaryDirectory(prefix="taskgen-", ignore_cleanup_errors=True) as scratch:
        rendered = Path(scratch, "service")
        if request.ask:
            answers = ask_questions(template, rendered, answers)
        _begin("Rendering the template", progress)
        render(template, rendered, answers)
        service = Service(
            path=target,
            answers=read_answers(rendered),
            files=_list_files(rendered),
            origin=template.origin,
            environment=target,
            notes=_list_limits(target, template.origin),
        )
        with FileTransaction(target, overwrite=request.force) as files:
            files.check([*service.files, *(_CREATED_BY_UV if request.sync else ())])
            if request.dry_run:
                return service
            _begin(f"Writing {len(service.files)} files", progress)
            files.write(rendered, sorted(service.files, key=lambda file: file != _CLAIM))
            if request.git:
                _create_repository(service, files, template, progress)
            _create_environment(service, files, progress, sync=request.sync)
            check_signals()
    return service


def _resolve(path: Path) -> Path:
    try:
        target = path.resolve()
        text = os.fsencode(target).decode()
    except UnicodeDecodeError as error:
        raise UsageError(f'The path "{path}" is not valid UTF-8.', "Choose another one.") from error
    except ValueError as error:
        raise UsageError(f'Invalid path "{path}": {error}.', "Choose another one.") from error
    except RuntimeError as error:
        raise _symlink_loop(path) from error
    if target.is_symlink():
        raise _symlink_loop(path)
    if any(unicodedata.category(char) in _LINE_BREAKING for char in text):
        raise UsageError(
            "The path contains a control character: no Python environment works there.",
            "Choose another one.",
        )
    return target


def _symlink_loop(path: Path) -> TaskgenError:
    return TaskgenError(
        f"{path} is a loop of symbolic links.", "Remove it, or choose another name."
    )


def _name(path: Path, target: Path) -> str:
    # As it was typed: it may be a link to a folder of another name.
    return target.name if path.name in {"", ".."} else path.name


def _refuse_existing(target: Path, *, force: bool) -> None:
    if target.exists() and not target.is_dir():
        raise TaskgenError(f"{target} is a file.", "Choose another name.")
    if not force and target.exists() and any(target.iterdir()):
        raise TaskgenError(
            f"{target} exists and is not empty.",
            "Choose another name, or write into it with --force: files of the same names are "
            "overwritten, all others stay.",
        )


def _begin(step: str, progress: Progress) -> None:
    check_signals()
    progress(step)


def _list_files(rendered: Path) -> list[Path]:
    return sorted(path.relative_to(rendered) for path in rendered.rglob("*") if not path.is_dir())


def _list_limits(target: Path, origin: Origin) -> list[str]:
    limits: list[str] = []
    if origin.source is None:
        limits.append(
            "This installation does not know where it came from. Before you run `copier update` "
            f"in the service, set _src_path in its {ANSWERS_FILE} to the path or the address of a "
            "git repository of taskgen."
        )
    if os.pathsep in str(target):
        limits.append(
            f'The path contains "{os.pathsep}", so `uv run` does not work in it: start the '
            "programs in .venv/bin, or move the service."
        )
    return limits


def _create_repository(
    service: Service, files: FileTransaction, template: Template, progress: Progress
) -> None:
    obstacle = commands.find_repository_obstacle(service.path, template_root=template.root)
    if obstacle is not None:
        service.notes.append(obstacle)
        return
    _begin("Creating the git repository", progress)
    files.check([Path(".git/HEAD")])
    files.track(service.path / ".git")
    commands.init_repository(service.path)
    service.git = True


def _create_environment(
    service: Service, files: FileTransaction, progress: Progress, *, sync: bool
) -> None:
    workspace = find_workspace(service.path)
    if workspace is not None:
        service.environment = workspace
        member = service.path.relative_to(workspace).as_posix()
        service.notes.append(
            f"The service is a member of the uv workspace {workspace}: it shares the .venv and the "
            "uv.lock there, and `uv run dev` starts the member that was synced last."
            + " Its Dockerfile needs a uv.lock of its own."
            * service.answers["docker"]
            + f' For a project of its own, add "{member}" to `exclude` in [tool.uv.workspace] of '
            f"{workspace / 'pyproject.toml'}, and run `uv sync` in the service."
        )
    if not sync:
        return
    if shutil.which("uv") is None:
        service.notes.append("uv is not installed: the environment was not created.")
        return
    _begin("Creating the environment with uv", progress)
    files.track(service.environment / ".venv", service.environment / "uv.lock")
    commands.sync_environment(service.path, shared=workspace is not None)
    service.synced = True
