"""Files put into a folder, all of them or none."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from taskgen.errors import TaskgenError
from taskgen.interruptions import undisturbed


class Placement:
    """What a `with` block puts into a folder. If the block fails, all of it is taken out again.

    Args:
        target: The folder. It is created, with its parents, where it does not exist.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._created: list[Path] = []
        self._saved: list[tuple[Path, Path]] = []
        self._attic: Path | None = None

    def __enter__(self) -> Self:
        """Begin with nothing put there."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Keep everything, or take it out again.

        Raises:
            TaskgenError: Something could not be taken out.
        """
        with undisturbed():
            left = [] if error is None else self._undo()
            if self._attic is not None:
                shutil.rmtree(self._attic, ignore_errors=True)
        if left:
            raise TaskgenError(
                f"{error} And {left[0]} could not be removed.", "Remove it yourself."
            ) from error

    def check(self, names: Iterable[Path]) -> None:
        """Refuse names that lead out of the folder, or that something else has taken.

        Args:
            names: What is going to be put there, relative to the folder.

        Raises:
            TaskgenError: A name, or a folder on the way to it, is a symbolic link, or there is a
                folder where a file goes, or the reverse.
        """
        for name in names:
            for part in (*reversed(name.parents), name):
                path = self._target / part
                if part.name and path.is_symlink():
                    raise TaskgenError(
                        f"{path} is a symbolic link, through which files elsewhere could change.",
                        "Remove it, or choose another folder.",
                    )
                if path.exists() and path.is_dir() == (part == name):
                    raise TaskgenError(
                        f"{path} is in the way of the service's {name}.",
                        "Move it, or choose another folder.",
                    )

    def add(self, rendered: Path, names: Iterable[Path]) -> None:
        """Put files into the folder.

        Args:
            rendered: The folder that holds them.
            names: Where in that folder they are, and where in the target they go.
        """
        with undisturbed():
            self._make(self._target)
            for name in names:
                self._make((self._target / name).parent)
                self._write(self._target / name, rendered / name)

    def expect(self, *names: str) -> None:
        """Say what other programs are about to put there, so that it can be taken out again.

        Args:
            names: Files or folders, relative to the target.
        """
        for name in names:
            path = self._target / name
            if path.is_file():
                self._save(path)
            elif not path.exists():
                self._created.append(path)

    def _make(self, folder: Path) -> None:
        if not folder.exists():
            self._make(folder.parent)
            folder.mkdir()
            self._created.append(folder)

    def _write(self, path: Path, rendered: Path) -> None:
        if path.exists():
            self._save(path)
            path.unlink()
        # Always a new file: it follows no link, and its mode comes from the user's umask, whatever
        # the template's was in site-packages.
        with path.open("xb") as file:
            self._created.append(path)
            file.write(rendered.read_bytes())
            if rendered.stat().st_mode & stat.S_IXUSR:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                path.chmod(mode | (mode & 0o444) >> 2)

    def _save(self, path: Path) -> None:
        if self._attic is None:
            self._attic = Path(tempfile.mkdtemp(prefix=".taskgen-", dir=self._target))
        copy = self._attic / str(len(self._saved))
        shutil.copy2(path, copy)
        self._saved.append((path, copy))

    def _undo(self) -> list[Path]:
        for path in reversed(self._created):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        left = [path for path in self._created if path.exists()]
        for path, copy in self._saved:
            copy.replace(path)
        return left
