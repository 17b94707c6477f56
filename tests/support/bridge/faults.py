"""Failures on demand: what a network, a replica or a full disk does to an insert, at the moment a test asks for it."""

from __future__ import annotations

import asyncio
from enum import StrEnum

from tests.support.bridge.errors import TOO_MANY_PARTS, UNKNOWN_STATUS_OF_INSERT, EngineError, refusal
from tests.support.bridge.statement import Statement


class Mode(StrEnum):
    """How an insert fails."""

    BEFORE = "before"  # refused, nothing written
    AFTER = "after"  # written, then answered with an error
    DROP = "drop"  # written, then the connection is cut without an answer: the client library sends it again by itself
    HANG = "hang"  # neither answered nor written until `reset`, which refuses it or lets it land late


class Faults:
    """The next `remaining` inserts (into `table`, when one is named) fail in `mode`."""

    def __init__(self) -> None:
        self._remaining = 0
        self._mode = Mode.BEFORE
        self._table = ""
        self._hanging = 0
        self._landing = 0
        self._land = False
        self._changed = asyncio.Condition()

    async def arm(self, mode: Mode, count: int, table: str) -> None:
        """Replaces what was armed before."""
        async with self._changed:
            self._mode, self._remaining, self._table = mode, count, table

    async def reset(self, *, land: bool) -> None:
        """Disarms; refuses the inserts that hang or, with `land`, returns when they have been carried out."""
        async with self._changed:
            self._land = land
            self._landing = self._hanging if land else 0
            self._remaining = self._hanging = 0
            self._changed.notify_all()
            await self._changed.wait_for(lambda: not self._landing)

    def take(self, statement: Statement) -> Mode | None:
        """The way this statement shall fail; one armed failure is used up by it."""
        names_it = not self._table or statement.table.rpartition(".")[2] == self._table
        if not (self._remaining and statement.is_insert and names_it):
            return None
        self._remaining -= 1
        return self._mode

    async def hang(self) -> bool:
        """Returns after `reset`: whether to carry the insert out, and then to call `landed`."""
        async with self._changed:
            self._hanging += 1
            self._changed.notify_all()
            await self._changed.wait_for(lambda: not self._hanging)
            return self._land

    async def landed(self) -> None:
        """An insert that hung has been carried out."""
        async with self._changed:
            self._landing -= 1
            self._changed.notify_all()

    async def wait_hanging(self, count: int) -> None:
        """Returns as soon as `count` inserts hang."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._hanging >= count)

    @staticmethod
    def refused() -> EngineError:
        """The error of an insert that was not carried out."""
        return refusal(TOO_MANY_PARTS, "Refused by the test: nothing was written.")

    @staticmethod
    def unknown() -> EngineError:
        """The error of an insert that was carried out, which the client cannot know."""
        return refusal(UNKNOWN_STATUS_OF_INSERT, "Refused by the test: the rows may have been written.")
