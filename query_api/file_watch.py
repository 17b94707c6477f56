"""Tells when files were replaced or rewritten, without a thread of its own."""

from __future__ import annotations

from pathlib import Path


class FileWatch:
    """Compares the identity, size and time of files with what they were at the last question."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._seen = self._signatures()

    def changed(self) -> bool:
        """Whether any file differs from the last call; once for each change, whatever the reader makes of it."""
        now = self._signatures()
        changed = now != self._seen
        self._seen = now
        return changed

    def _signatures(self) -> list[tuple[int, int, int] | None]:
        return [_signature(path) for path in self._paths]


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
