"""The overview of a service: its folders with what they hold, in at most twenty lines."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

MAX_LINES = 20

# Of the names of a folder's files, at most.
_WIDTH = 72
_NAMES_LINES = 4
# What the tree needs before it, at most.
_INDENT = 12

_DESCRIPTIONS = {
    ".github/workflows": "the checks that GitHub runs",
    "src/{package}/api": "your routes",
    "src/{package}/queue": "the queue: works as it is",
    "src/{package}/tasks": "your tasks",
    "tests": "your tests",
    "tests/queue": "the tests of the queue",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A folder, or the names of the files in one.

    Attributes:
        name: The folder's name, with the names of folders between that hold nothing else. Of
            files, their names, in as many lines as they need.
        description: What the folder holds.
        entries: What is shown below it.
    """

    name: str
    description: str = ""
    entries: tuple["Entry", ...] = ()

    def lines(self) -> int:
        """Count the lines that the entry needs."""
        return self.name.count("\n") + 1 + sum(entry.lines() for entry in self.entries)


def summarize(name: str, files: Sequence[PurePath], package: str, width: int) -> Entry:
    """Summarize the files of a service.

    Args:
        name: The service's folder.
        files: Its files, relative to the folder.
        package: The name of its Python package.
        width: How many columns there are.

    Returns:
        The folder, with the folders in it. Those without a description show their files.
    """
    descriptions = {
        PurePath(folder.format(package=package)): description
        for folder, description in _DESCRIPTIONS.items()
    }
    overview = _Overview(files, descriptions, min(_WIDTH, max(width - _INDENT, 1)))
    for depth in (3, 2, 1):
        summary = Entry(f"{name}/", entries=tuple(overview.entries(PurePath(), depth)))
        if summary.lines() <= MAX_LINES:
            break
    return summary


@dataclass(frozen=True, slots=True)
class _Overview:
    files: Sequence[PurePath]
    descriptions: Mapping[PurePath, str]
    width: int

    def entries(self, folder: PurePath, depth: int) -> Iterator[Entry]:
        for child in self._subfolders(folder) if depth else []:
            inner = self._innermost(child)
            if folder in self.descriptions and inner not in self.descriptions:
                continue
            yield Entry(
                name=f"{inner.relative_to(folder).as_posix()}/",
                description=self.descriptions.get(inner, ""),
                entries=tuple(self.entries(inner, depth - 1)),
            )
        if folder not in self.descriptions and (names := self._notable_files(folder)):
            yield Entry(self._fill(", ".join(names)))

    def _fill(self, text: str) -> str:
        return textwrap.fill(
            text,
            self.width,
            max_lines=_NAMES_LINES,
            placeholder=" ...",
            break_long_words=False,
            break_on_hyphens=False,
        )

    def _subfolders(self, folder: PurePath) -> list[PurePath]:
        parents = {parent for file in self.files for parent in file.parents}
        return sorted(each for each in parents if each.parent == folder and each != folder)

    def _innermost(self, folder: PurePath) -> PurePath:
        subfolders = self._subfolders(folder)
        holds_files = any(file.parent == folder for file in self.files)
        if folder in self.descriptions or holds_files or len(subfolders) != 1:
            return folder
        return self._innermost(subfolders[0])

    def _notable_files(self, folder: PurePath) -> list[str]:
        names = (file.name for file in self.files if file.parent == folder)
        return [
            name
            for name in names
            if name == ".env.example" or not (name.startswith((".", "__")) or name == "py.typed")
        ]
