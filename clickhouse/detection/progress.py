"""How far the detector has come: written down, so that a restart goes on where the last process was."""

from __future__ import annotations

import time
from typing import Final

from clickhouse.connection import Connection

_READ: Final = "SELECT name, reached FROM detection FINAL"
_NEWEST: Final = "SELECT max(generation) FROM detection"
# The clock itself is what is asked for here.
_NOW: Final = "SELECT toUnixTimestamp64Nano(now64(9))"


class Progress:
    """Named marks in the store, each a number that only its writer understands. Every method raises StoreError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._newest: int | None = None

    def generation(self) -> int:
        """A number above all that were written, by the clock that the rollups' generations are of: the store's own.

        A clock that was set back must not make new rows look older than those they replace.
        """
        if self._newest is None:
            self._newest = int(self._connection.rows(_NEWEST)[0][0])
        now = time.time_ns() if self._connection.embedded else int(self._connection.rows(_NOW)[0][0])
        self._newest = max(self._newest + 1, now)
        return self._newest

    def read(self) -> dict[str, int]:
        """All marks."""
        return {str(name): int(reached) for name, reached in self._connection.rows(_READ)}

    def write(self, **reached: int) -> None:
        """Replaces the marks that are named."""
        generation = self.generation()
        rows = [(name, value, generation) for name, value in reached.items()]
        self._connection.insert("detection", ("name", "reached", "generation"), list(zip(*rows, strict=True)))
