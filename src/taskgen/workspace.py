"""uv workspaces: whether a new project becomes a member of one."""

import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any


def find_workspace(project: Path) -> Path | None:
    """Find the workspace that a project in a folder is a member of.

    uv decides it by the nearest `pyproject.toml` above the project.

    Args:
        project: The project's folder.

    Returns:
        The workspace's folder, which holds the lock and the environment of all its members. None
        if the project has its own.
    """
    for folder in project.parents:
        if (folder / "pyproject.toml").is_file():
            member = project.relative_to(folder).as_posix()
            return folder if _includes(folder / "pyproject.toml", member) else None
    return None


def _includes(pyproject: Path, member: str) -> bool:
    try:
        settings: dict[str, Any] = tomllib.loads(pyproject.read_text(encoding="utf-8"))
        workspace = settings["tool"]["uv"]["workspace"]
        return _matches(member, workspace.get("members", [])) and not _matches(
            member, workspace.get("exclude", [])
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # Not a workspace, or not one that uv can read: `uv sync` reports that.
        return False


def _matches(member: str, patterns: list[str]) -> bool:
    # As in uv, a "*" matches a "/" too.
    return any(fnmatchcase(member, pattern) for pattern in patterns)
