"""Write files to a folder: all of them, or none."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from taskgen.errors import TaskgenError


class FileTransaction:
    """The files that a `with` block creates in a folder. If the block fails, they are removed.

    The exception gets a note that says what the rollback left.

    Args:
        target: The folder. It is created, with its parents, if it does not exist.
        overwrite: Replace files that exist. Without it, an existing file is an error. So of two
            processes that create the same folder one succeeds: the one whose first file is there
            first.
    """

    def __init__(self, target: Path, *, overwrite: bool) -> None:
        self._target = target
        self._overwrite = overwrite
        self._folders: list[Path] = []
        self._files: list[Path] = []
        self._tracked: list[Path] = []
        self._shared: list[Path] = []
        self._backups: list[tuple[Path, Path]] = []
        self._backup_dir: Path | None = None

    def __enter__(self) -> Self:
        """Begin with no changes."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Keep the changes, or roll them back."""
        if error is None:
            self._remove_backup_dir()
        elif self._folders or self._files or self._tracked or self._backups:
            error.add_note(self._roll_back())

    def check(self, names: Iterable[Path]) -> None:
        """Check that files can be created without leaving the folder.

        Args:
            names: The files, relative to the folder.

        Raises:
            TaskgenError: A file, or a folder on the way to it, is a symbolic link; or a folder
                exists where a file goes, or the reverse.
        """
        for name in names:
            for part in (*reversed(name.parents), name):
                path = self._target / part
                if part.name and path.is_symlink():
                    raise TaskgenError(
                        f"{path} is a symbolic link: writing through it would change files "
                        "elsewhere.",
                        "Remove it, or choose another folder.",
                    )
                if path.exists() and path.is_dir() == (part == name):
                    raise TaskgenError(
                        f"{path} is in the way of the service's {name}.",
                        "Move it, or choose another folder.",
                    )

    def write(self, source: Path, names: Iterable[Path]) -> None:
        """Copy files into the folder.

        Args:
            source: The folder to copy from.
            names: The files, relative to both folders.

        Raises:
            TaskgenError: A file exists and is not to be overwritten.
            OSError: A file could not be written.
        """
        self._make_folder(self._target)
        for name in names:
            self._make_folder((self._target / name).parent)
            self._copy_file(source / name, self._target / name)

    def track(self, *paths: Path) -> None:
        """Include what another program is about to create or to change.

        Args:
            paths: Files and folders. What is in a folder that exists cannot be restored.
        """
        for path in paths:
            if path.is_file():
                self._back_up(path)
            elif path.exists():
                self._shared.append(path)
            else:
                self._tracked.append(path)

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        try:
            folder.mkdir()
        except FileExistsError:
            # Another process was faster. Whether it makes the same service shows at the first file.
            if not folder.is_dir():
                code = errno.ENOTDIR
                raise NotADirectoryError(code, os.strerror(code), str(folder)) from None
        else:
            self._folders.append(folder)

    def _copy_file(self, source: Path, path: Path) -> None:
        if self._overwrite and path.exists():
            self._back_up(path)
            path.unlink()
        try:
            # Always a new file: it follows no link, and its mode comes from the user's umask,
            # whatever the mode of the template's file in site-packages.
            with path.open("xb") as file:
                self._files.append(path)
                file.write(source.read_bytes())
                if source.stat().st_mode & stat.S_IXUSR:
                    mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                    os.fchmod(file.fileno(), mode | (mode & 0o444) >> 2)
        except FileExistsError as error:
            raise TaskgenError(
                f"{path} was created by another program in the meantime.",
                "It was not changed. If that program is another `taskgen new`, let it finish; "
                "else choose another folder.",
            ) from error
        except OSError as error:
            # A failed write does not name its file.
            error.filename = error.filename or str(path)
            raise

    def _back_up(self, path: Path) -> None:
        if self._backup_dir is None:
            self._backup_dir = Path(tempfile.mkdtemp(prefix=".taskgen-", dir=self._target))
        copy = self._backup_dir / str(len(self._backups))
        shutil.copy2(path, copy)
        self._backups.append((path, copy))

    def _roll_back(self) -> str:
        claimed = bool(self._files)
        for path in self._tracked:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
        for path in (*self._files, *self._tracked):
            with suppress(OSError):
                path.unlink()
        restored = self._restore_backups()
        for folder in reversed(self._folders):
            with suppress(OSError):
                folder.rmdir()
        return " ".join([*restored, *self._report(claimed=claimed)])

    def _restore_backups(self) -> list[str]:
        problems: list[str] = []
        for path, copy in self._backups:
            try:
                shutil.move(copy, path)
            except OSError:
                problems.append(f"{path} could not be restored: its contents are in {copy}.")
        if not problems:
            self._remove_backup_dir()
        return problems

    def _report(self, *, claimed: bool) -> list[str]:
        left = {path for path in (*self._files, *self._tracked) if os.path.lexists(path)}
        left -= {path for path, _ in self._backups}
        if claimed and not self._overwrite:
            # Whatever else is in the folder appeared in the meantime: uv may leave a temporary
            # file, and somebody may have put a file there.
            for folder in (self._target, *self._folders):
                if folder.is_dir() and folder.is_relative_to(self._target):
                    left |= set(folder.iterdir()) - set(self._folders)
        report = [f"Left behind: {', '.join(map(str, sorted(left)))}."] if left else []
        report += [f"{path} existed before and may have changed." for path in self._shared]
        return report or ["Nothing was left behind."]

    def _remove_backup_dir(self) -> None:
        if self._backup_dir is not None:
            shutil.rmtree(self._backup_dir, ignore_errors=True)
