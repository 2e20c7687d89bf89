"""A service on disk: asked for, rendered, put in its place, and made ready to run."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from taskgen.answers import parse_answers, read_questions
from taskgen.errors import TaskgenError, UsageError
from taskgen.interruptions import Interrupted, undisturbed
from taskgen.placement import Placement
from taskgen.template import Origin, Template

Step = Callable[[str], None]

_ANSWERS_FILE = Path(".copier-answers.yml")

_MADE_BY_UV = (Path(".venv/pyvenv.cfg"), Path("uv.lock"))

# What an activated environment, `uv run` or a git hook says about the caller's project. It would
# lead git and uv away from the new one.
_ABOUT_THE_CALLER = (
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_WORK_TREE",
    "UV_PROJECT",
    "UV_PROJECT_ENVIRONMENT",
    "UV_WORKING_DIR",
    "UV_WORKING_DIRECTORY",
    "VIRTUAL_ENV",
)


@dataclass(frozen=True, slots=True)
class Request:
    """What to make, and how.

    Attributes:
        path: Where the service goes. Its last part is the service's name.
        assignments: Answers, as `KEY=VALUE`.
        ask: Whether a person answers the questions that are left, at the terminal.
        dry_run: Stop before anything is written to `path`.
        force: Write into a folder that is not empty.
        git: Make it a git repository.
        sync: Create its environment.
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
    """A service that was made, or in a dry run would have been.

    Attributes:
        path: Where it is.
        answers: What it was made from.
        files: The files that come from the template, relative to `path`, sorted.
        origin: Where the template came from.
        git: Whether it was made a git repository.
        synced: Whether its environment was created.
        notes: What was left out, and why.
    """

    path: Path
    answers: dict[str, Any]
    files: list[Path]
    origin: Origin
    git: bool = False
    synced: bool = False
    notes: list[str] = field(default_factory=list[str])


def create(request: Request, template: Template, step: Step) -> Service:
    """Make a service, whole or not at all.

    Args:
        request: What to make.
        template: What to make it from.
        step: Told what happens next, each time that something does.

    Returns:
        The service.

    Raises:
        UsageError: An answer is not valid.
        TaskgenError: The service cannot be made. Nothing of it is left.
        OSError: The file system would not have it. Nothing of it is left.
        Interrupted: The user wants no more of it. Nothing of it is left.
    """
    for name in _ABOUT_THE_CALLER:
        os.environ.pop(name, None)
    target = _resolve(request.path)
    answers = parse_answers(request.assignments, read_questions(template.root / "copier.yml"))
    answers.setdefault("project_name", target.name)
    _refuse_taken(target, force=request.force)
    with tempfile.TemporaryDirectory(prefix="taskgen-", ignore_cleanup_errors=True) as scratch:
        rendered = Path(scratch) / target.name
        _render(template, rendered, answers, step, ask=request.ask)
        files = sorted(
            path.relative_to(rendered) for path in rendered.rglob("*") if not path.is_dir()
        )
        service = Service(target, _read_answers(rendered), files, template.origin)
        placement = Placement(target)
        placement.check([*files, *(_MADE_BY_UV if request.sync else ())])
        if not request.dry_run:
            with placement:
                step(f"Writing {len(files)} files")
                placement.add(rendered, files)
                if request.git:
                    _init_git(service, placement, template, step)
                if request.sync:
                    _sync(service, placement, step)
    return service


def _resolve(path: Path) -> Path:
    try:
        return path.resolve()
    except ValueError as error:
        raise UsageError(f'"{path}" is no path: {error}.', "Choose another name.") from error


def _refuse_taken(target: Path, *, force: bool) -> None:
    if target.exists() and not target.is_dir():
        raise TaskgenError(f"{target} is a file.", "Choose another name.")
    if not force and target.exists() and any(target.iterdir()):
        raise TaskgenError(
            f"{target} exists and is not empty.",
            "Choose another name, or write into it with --force: files of the same names are "
            "overwritten, all others stay.",
        )


def _render(
    template: Template, rendered: Path, answers: Mapping[str, Any], step: Step, *, ask: bool
) -> None:
    if ask:
        # First without asking, so that what was given is refused before the first question.
        _run_copier(template, rendered, answers, exclude=["*"])
        _run_copier(template, rendered, answers, exclude=["*", f"!{_ANSWERS_FILE}"], ask=True)
        answers = _read_answers(rendered)
    step("Rendering the template")
    # pip compiles a wheel's modules where it installs them, the template's too.
    _run_copier(template, rendered, answers, exclude=["__pycache__"])
    _record_origin(rendered / _ANSWERS_FILE, template.origin)


def _run_copier(
    template: Template,
    destination: Path,
    answers: Mapping[str, Any],
    *,
    exclude: Sequence[str],
    ask: bool = False,
) -> None:
    # Copier takes a second to import, for which a refusal need not wait.
    import copier
    from copier.errors import CopierError, InteractiveSessionError
    from jinja2 import TemplateError
    from plumbum import local

    try:
        # Where Copier finds no git, it takes a checkout as it stands. Else it would clone it, and
        # commit to the clone whatever lies about in it; and it would ask git about each file.
        with local.env(PATH=os.devnull):
            copier.run_copy(
                str(template.root),
                destination,
                dict(answers),
                defaults=not ask,
                exclude=exclude,
                overwrite=True,
                quiet=True,
                # The defaults are the template's, on every machine.
                settings=copier.Settings(),
            )
    except KeyboardInterrupt as error:
        raise Interrupted(signal.SIGINT) from error
    except InteractiveSessionError as error:
        raise TaskgenError(
            "The questions were not all answered.", "Take the defaults for the rest with --yes."
        ) from error
    except (CopierError, TemplateError) as error:
        raise TaskgenError(
            f"The template cannot be rendered: {error}.", "This is a fault of the template."
        ) from error
    except ValueError as error:
        raise _invalid_answer(error) from error


def _invalid_answer(error: ValueError) -> UsageError:
    sentence = " ".join(str(error).split())
    if match := re.match(r"Validation error for question '(\w+)': (.+)", sentence):
        key, sentence = match.groups()
        return UsageError(sentence, f"Give another {key}, as in --set {key}=VALUE.")
    return UsageError(sentence, "Give another answer, as in --set KEY=VALUE.")


def _read_answers(rendered: Path) -> dict[str, Any]:
    text = (rendered / _ANSWERS_FILE).read_text(encoding="utf-8")
    recorded: dict[str, Any] = yaml.safe_load(text)
    return {key: value for key, value in recorded.items() if not key.startswith("_")}


def _record_origin(answers_file: Path, origin: Origin) -> None:
    # Copier, which found no git, recorded a folder alone: maybe one in site-packages.
    lines = {"_commit": origin.version, "_src_path": origin.source}
    known = {key: value for key, value in lines.items() if value is not None}
    # As Copier's `to_nice_yaml` writes them.
    recorded = yaml.dump(known, indent=4, allow_unicode=True, default_flow_style=False)
    text = answers_file.read_text(encoding="utf-8")
    line = re.compile(r"^_src_path:.*\n(?:[ \t].*\n)*", re.MULTILINE)
    answers_file.write_text(line.sub(lambda _: recorded, text, count=1), encoding="utf-8")


def _init_git(service: Service, placement: Placement, template: Template, step: Step) -> None:
    if shutil.which("git") is None:
        service.notes.append("git is not installed: no repository was made.")
        return
    inside = subprocess.run(
        ["git", "-C", str(service.path), "rev-parse", "--show-toplevel"],
        capture_output=True,
        text=True,
        check=False,
    )
    # The README's first command makes a service inside taskgen's own checkout, where it is no
    # part of that repository.
    if inside.returncode == 0 and Path(inside.stdout.rstrip("\n")) != template.root:
        service.notes.append(
            f"{inside.stdout.rstrip()} is a git repository: none was made inside it."
        )
        return
    step("Making it a git repository")
    placement.check([Path(".git/HEAD")])
    placement.expect(".git")
    _run(["git", "init", "--quiet", "--initial-branch", "main"], service.path, "--no-git")
    service.git = True


def _sync(service: Service, placement: Placement, step: Step) -> None:
    if shutil.which("uv") is None:
        service.notes.append("uv is not installed: the environment was not created.")
        return
    step("Creating its environment with uv")
    placement.expect(".venv", "uv.lock")
    _run(["uv", "sync", "--no-progress"], service.path, "--no-sync")
    service.synced = True


def _run(command: Sequence[str], folder: Path, way_out: str) -> None:
    process: subprocess.Popen[str] | None = None
    try:
        with undisturbed():
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        said = process.communicate()[1]
    except BaseException:
        # Its whole session, so that nothing lives on and writes into a folder that is removed.
        if process is not None:
            with process, suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode:
        raise TaskgenError(
            f"`{command[0]} {command[1]}` failed:\n{_last_words(said)}",
            f"Nothing was left behind. Leave this step out with {way_out}.",
        )


def _last_words(said: str) -> str:
    lines = [line.rstrip() for line in said.splitlines() if line.strip()]
    # uv tells first what it does, and then, from such a line on, what went wrong.
    marks = ("error", "\N{MULTIPLICATION SIGN}")
    faults = [n for n, line in enumerate(lines) if line.lstrip().startswith(marks)]
    return "\n".join(lines[faults[0] if faults else -8 :][:20])
