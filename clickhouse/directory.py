"""The directory of an embedded store: whether it is one, whether it is free, and whether it is still there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from clickhouse.errors import StoreInUseError, StoreSetupError, StoreUnavailableError

# What may lie in the directory of a store to be: a file system's own, and what a start that was killed left behind.
_NOTHING: Final = frozenset({"lost+found", "status", "tmp"})


def prepare(path: Path, *, create: bool) -> None:
    """Makes the directory of a new store if `create`; the engine would fill whatever directory it is given.

    Raises StoreSetupError, or StoreInUseError if another process has the store open.
    """
    dsn = f"--dsn chdb://{path}"
    if not create and not path.is_dir():
        raise StoreSetupError(f"{dsn} does not exist; name the directory that serve or ingest writes to")
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise StoreSetupError(f"{dsn}: the directory cannot be made or read: {error.strerror}") from error
    tables = path / "metadata" / "default"
    if tables.is_dir() and not tables.is_symlink():
        raise StoreSetupError(
            f"{dsn} is a copy of a store whose symbolic links were followed; copy again with cp -a, tar or rsync -a"
        )
    if not tables.is_dir() and (not create or names - _NOTHING):
        raise StoreSetupError(
            f"{dsn} is no store; name the directory that serve or ingest writes to, or an empty one for a new store"
        )
    if _is_locked(path / "status"):
        raise StoreInUseError(
            f"{dsn}: another process has this embedded store open; stop that process, or share the store "
            "through a ClickHouse server"
        )


def _is_locked(status: Path) -> bool:
    """Whether the engine of another process holds its lock; the engine's own error for this is a riddle."""
    try:
        with status.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class Foothold:
    """Files that were there when the store was opened. Thread-safe.

    When its directory is removed or replaced the engine goes on: it makes directories anew where it needs them, and
    what it syncs there is no store that could be opened again.
    """

    def __init__(self, path: Path, files: Iterable[Path]) -> None:
        """Of the store at `path`. Raises OSError if one of `files` is not there."""
        self._path = path
        self._is_lost = False
        self._descriptors: list[int] = []
        self._found: dict[Path, tuple[int, int]] = {}
        for file in files:
            # Held open: else the number of a removed file could become that of its replacement.
            descriptor = os.open(file, os.O_PATH | os.O_CLOEXEC)
            self._descriptors.append(descriptor)
            self._found[file] = _identity(os.fstat(descriptor))

    def check(self) -> None:
        """Raises StoreUnavailableError, from then on for ever, unless every file is still the one it was; 2 us each."""
        if not self._is_lost:
            try:
                self._is_lost = any(_identity(file.stat()) != found for file, found in self._found.items())
            except OSError:
                self._is_lost = True
        if self._is_lost:
            raise StoreUnavailableError(
                f"the store in {self._path} was removed or replaced while it was open; put it back and start again", 60
            )

    def close(self) -> None:
        """Lets go of the files; `check` must not be called any more."""
        while self._descriptors:
            os.close(self._descriptors.pop())


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
