"""The programs that finish a service: `git init` and `uv sync`.

They run in an environment without the variables that describe the caller's project: those that an
activated virtual environment, `uv run` or a git hook sets would lead them away from the new one.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from taskgen.errors import TaskgenError
from taskgen.signals import interruptible

_CALLERS_VARIABLES = frozenset(
    {
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_COMMON_DIR",
        "GIT_DIR",
        "GIT_INDEX_FILE",
        "GIT_NAMESPACE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_PREFIX",
        "GIT_WORK_TREE",
        # A new project has no lock to keep to.
        "UV_FROZEN",
        "UV_LOCKED",
        "UV_PROJECT",
        "UV_PROJECT_ENVIRONMENT",
        "UV_WORKING_DIR",
        "UV_WORKING_DIRECTORY",
        "VIRTUAL_ENV",
    }
)


def find_repository_obstacle(folder: Path, *, template_root: Path) -> str | None:
    """Find out why no git repository can be created in a folder.

    Args:
        folder: The folder of the service.
        template_root: The template's folder. If it is a checkout of taskgen, services may be
            created inside it as repositories of their own: they are no part of it.

    Returns:
        The reason, or None if there is none.
    """
    if shutil.which("git") is None:
        return "git is not installed: no repository was created."
    work_tree = _query("git", "-C", str(folder), "rev-parse", "--show-toplevel")
    if work_tree.returncode == 0:
        root = Path(work_tree.stdout.rstrip("\n"))
        if root == template_root:
            return None
        return f"{root} is a git repository: none was created inside it."
    git_dir = _query("git", "-C", str(folder), "rev-parse", "--absolute-git-dir")
    if git_dir.returncode == 0:
        bare = git_dir.stdout.rstrip("\n")
        return f"{bare} is a git repository without a work tree: none was created inside it."
    if "not a git repository (or any" in work_tree.stderr:
        return None
    # One that belongs to another user, or is broken.
    reason = work_tree.stderr.strip().partition("\n")[0].removeprefix("fatal: ")
    return f"git cannot use the repository that {folder} is in ({reason}): none was created."


def init_repository(folder: Path) -> None:
    """Create a git repository.

    Args:
        folder: Its work tree.

    Raises:
        TaskgenError: git failed.
        Interrupted: A signal arrived.
    """
    _run(["git", "init", "--quiet", "--initial-branch", "main"], folder, skip_option="--no-git")


def sync_environment(project: Path, *, shared: bool) -> None:
    """Create or update a project's lock and environment.

    Args:
        project: The project's folder.
        shared: Keep what else is installed in the environment.

    Raises:
        TaskgenError: uv failed.
        Interrupted: A signal arrived.
    """
    command = ["uv", "sync", "--no-progress", *(["--inexact"] if shared else [])]
    _run(command, project, skip_option="--no-sync")


def describe_commit(checkout: Path) -> str | None:
    """Describe the commit that is checked out.

    Args:
        checkout: The root of a work tree.

    Returns:
        A tag, a tag and the commits since, or a commit; None if git cannot tell.
    """
    if shutil.which("git") is None:
        return None
    described = _query("git", "-C", str(checkout), "describe", "--tags", "--always")
    return described.stdout.strip() if described.returncode == 0 else None


def _query(*command: str) -> subprocess.CompletedProcess[str]:
    return _execute(command, folder=Path("/"), LC_ALL="C")


def _run(command: Sequence[str], folder: Path, *, skip_option: str) -> None:
    done = _execute(command, folder=folder)
    if done.returncode != 0:
        raise TaskgenError(
            f"`{command[0]} {command[1]}` failed:\n{_error_excerpt(done.stderr)}",
            f"Leave this step out with {skip_option}.",
        )


def _execute(
    command: Sequence[str], *, folder: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key not in _CALLERS_VARIABLES}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=kept | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="surrogateescape",
        # A session of its own, so that what it starts can be ended with it.
        start_new_session=True,
    )
    with process:
        try:
            with interruptible():
                stdout, stderr = _communicate(process)
        finally:
            if process.returncode != 0:
                # Nothing may go on writing into a folder that is about to be removed.
                _kill_session(process)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _communicate(process: subprocess.Popen[str]) -> tuple[str, str]:
    while True:
        try:
            return process.communicate(timeout=1)
        except subprocess.TimeoutExpired:
            # A program that it left behind may hold its output open for ever.
            if process.poll() is not None:
                _kill_session(process)


def _kill_session(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _error_excerpt(stderr: str) -> str:
    lines = [line.rstrip() for line in stderr.splitlines() if line.strip()]
    # uv reports its progress first. The error begins with one of these.
    marks = ("error", "\N{MULTIPLICATION SIGN}")
    errors = [n for n, line in enumerate(lines) if line.lstrip().startswith(marks)]
    return "\n".join(lines[errors[0] if errors else -8 :][:20])
