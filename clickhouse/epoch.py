"""The epoch: a stretch of writing whose touched slots are marked before their events arrive.

A mark says "the rollups may not know this slot yet". It has to be durable before the first event of its slot, and
it may go only when the rollups were recomputed after the last one: anything else is a count that is wrong for ever.
One mark serves all inserts of an epoch, so steady traffic pays one insert a commit, not three.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Final

from clickhouse.errors import StoreUnavailableError

SLOT_MS: Final = 15 * 60 * 1000
_RANDOM_BITS: Final = 20

# Processes that share a server take over each other's marks by their age alone, so an epoch must not live long: one
# that is taken over while events still arrive under it would leave them unmarked, and so uncounted.
MAX_OPEN_SECONDS: Final = 5.0
INSERT_SECONDS: Final = 20  # an insert without an answer by then has failed, and the server has given it up
REMARK_AFTER_SECONDS: Final = MAX_OPEN_SECONDS + INSERT_SECONDS + 5.0
ORPHAN_AFTER_SECONDS: Final = 2 * REMARK_AFTER_SECONDS

Slot = tuple[str, int]  # tenant_id, start of the 15 minutes in seconds since the epoch


def slot_start(issued_at_ms: int) -> int:
    """Start of the 15-minute slot (UTC), in seconds, of a moment in milliseconds."""
    return issued_at_ms // SLOT_MS * (SLOT_MS // 1000)


def day_start(day: date) -> int:
    """Start of a UTC day, in seconds since the epoch."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def new_epoch_id(now_ms: int, number: int | None = None) -> int:
    """An id that tells when it was made (see `epoch_made_at_ms`); by `number`, or one that no other process makes."""
    return (now_ms << _RANDOM_BITS) | (secrets.randbits(_RANDOM_BITS) if number is None else number)


def epoch_made_at_ms(epoch_id: int) -> int:
    """When the epoch was opened, in milliseconds since the Unix epoch."""
    return epoch_id >> _RANDOM_BITS


@dataclass
class Epoch:
    """Inserts under way and slots marked; guarded by the lock of its `Epochs`."""

    id: int
    opened: float  # monotonic seconds
    marked: set[Slot] = field(default_factory=set)
    landed_rows: int = 0
    in_flight: int = 0
    not_before: float = 0.0  # monotonic seconds; an insert of unknown outcome may land until then


class Epochs:
    """The open epoch of this process, and the sealed ones that wait for their recompute. Thread-safe."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._current: Epoch | None = None
        self._sealed: list[Epoch] = []
        self._ended = False
        self._held = False

    def enter(self, now_ms: int, monotonic: float) -> Epoch:
        """The epoch to write under; `leave` must follow."""
        with self._condition:
            self._condition.wait_for(lambda: not self._held)
            if self._current is not None and monotonic - self._current.opened > MAX_OPEN_SECONDS:
                self.seal()
            if self._current is None:
                self._current = Epoch(new_epoch_id(now_ms), monotonic)
                self._condition.notify_all()
            self._current.in_flight += 1
            return self._current

    def unmarked(self, epoch: Epoch, slots: set[Slot]) -> set[Slot]:
        """Those of `slots` that still need a mark."""
        with self._condition:
            return slots - epoch.marked

    def marks_are_durable(self, epoch: Epoch, slots: set[Slot]) -> None:
        """To be called only after the insert of these marks was answered."""
        with self._condition:
            epoch.marked |= slots

    def leave(self, epoch: Epoch, *, landed_rows: int, not_before: float = 0.0) -> None:
        """Ends one insert; `not_before` delays the recompute of one whose outcome is unknown."""
        with self._condition:
            epoch.in_flight -= 1
            epoch.landed_rows += landed_rows
            epoch.not_before = max(epoch.not_before, not_before)
            self._condition.notify_all()

    def wait_for_work(self, timeout: float | None = None) -> bool:
        """Blocks until an epoch is open or sealed, or `end` was called; says whether there is one."""
        with self._condition:
            self._condition.wait_for(lambda: self._ended or self._has_work(), timeout)
            return self._has_work()

    def _has_work(self) -> bool:
        return self._current is not None or bool(self._sealed)

    def end(self) -> None:
        """From now on nobody waits for work."""
        with self._condition:
            self._ended = True
            self._condition.notify_all()

    def seal(self) -> None:
        """No further insert enters the current epoch."""
        with self._condition:
            if self._current is not None:
                self._sealed.append(self._current)
                self._current = None

    @contextlib.contextmanager
    def held(self, timeout: float) -> Iterator[None]:
        """No insert is under way inside: those that come wait at `enter`.

        Raises StoreUnavailableError when those under way do not end within `timeout` seconds.
        """
        with self._condition:
            self._condition.wait_for(lambda: not self._held)
            self._held = True
        try:
            with self._condition:
                if not self._condition.wait_for(lambda: all(epoch.in_flight == 0 for epoch in self._open()), timeout):
                    raise StoreUnavailableError("an insert does not end")
            yield
        finally:
            with self._condition:
                self._held = False
                self._condition.notify_all()

    def landed(self, monotonic: float) -> list[Epoch]:
        """The sealed epochs all of whose inserts have landed."""
        with self._condition:
            return [epoch for epoch in self._sealed if epoch.in_flight == 0 and epoch.not_before <= monotonic]

    def wait_until_landed(self, timeout: float) -> None:
        """Blocks until no sealed epoch has an insert under way, or for `timeout` seconds."""
        with self._condition:
            self._condition.wait_for(lambda: all(epoch.in_flight == 0 for epoch in self._sealed), timeout)

    def close(self, epoch: Epoch) -> None:
        """Forgets a recomputed epoch."""
        with self._condition:
            self._sealed.remove(epoch)
            self._condition.notify_all()

    def own_ids(self) -> set[int]:
        """Ids of this process's epochs."""
        with self._condition:
            return {epoch.id for epoch in self._open()}

    def dirty_slots(self) -> int:
        """How many slots this process has marked and not yet recomputed."""
        with self._condition:
            return sum(len(epoch.marked) for epoch in self._open())

    def oldest(self) -> float | None:
        """When the oldest epoch that is not recomputed was opened, in monotonic seconds; None if there is none."""
        with self._condition:
            return min((epoch.opened for epoch in self._open()), default=None)

    def _open(self) -> list[Epoch]:
        return [*self._sealed, self._current] if self._current else self._sealed
