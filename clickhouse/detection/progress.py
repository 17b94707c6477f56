"""How far the detector has come: written down, so that a restart goes on where the last process was."""

from __future__ import annotations

from typing import Final

from clickhouse.connection import Connection

_READ: Final = "SELECT name, reached FROM detection FINAL"


class Progress:
    """Named marks in the store, each a number that only its writer understands. Every method raises StoreError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def read(self) -> dict[str, int]:
        """All marks."""
        return {str(name): int(reached) for name, reached in self._connection.rows(_READ)}

    def write(self, generation: int, **reached: int) -> None:
        """Replaces the marks that are named."""
        rows = [(name, value, generation) for name, value in reached.items()]
        self._connection.insert("detection", ("name", "reached", "generation"), list(zip(*rows, strict=True)))
