"""The segment: a stretch of writing whose touched slots are marked before their events arrive.

A mark says "the rollups may not know this slot yet". It has to be durable before the first event of its slot, and
it may go only when the rollups were recomputed after the last one: anything else is a count that is wrong for ever.
One mark serves all inserts of a segment, so steady traffic pays one insert a commit, not three.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Final

from clickhouse.connection import INSERT_SECONDS, Connection
from clickhouse.errors import StoreUnavailableError

SLOT_MS: Final = 15 * 60 * 1000
_RANDOM_BITS: Final = 20

# Processes that share a server take over each other's marks by their age alone, so a segment must not live long: one
# that is taken over while events still arrive under it would leave them unmarked, and so uncounted.
MAX_OPEN_SECONDS: Final = 5.0
REMARK_AFTER_SECONDS: Final = MAX_OPEN_SECONDS + INSERT_SECONDS + 5.0
ORPHAN_AFTER_SECONDS: Final = 2 * REMARK_AFTER_SECONDS

Slot = tuple[str, int]  # tenant_id, start of the 15 minutes in seconds since the epoch


def slot_start(issued_at_ms: int) -> int:
    """Start of the 15-minute slot (UTC), in seconds, of a moment in milliseconds."""
    return issued_at_ms // SLOT_MS * (SLOT_MS // 1000)


def day_start(day: date) -> int:
    """Start of a UTC day, in seconds since the epoch."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def new_segment_id(now_ms: int, number: int | None = None) -> int:
    """An id that tells when it was made (see `segment_made_at_ms`); by `number`, or one that no other process makes."""
    return (now_ms << _RANDOM_BITS) | (secrets.randbits(_RANDOM_BITS) if number is None else number)


def segment_made_at_ms(segment_id: int) -> int:
    """When the segment was opened, in milliseconds since the Unix epoch."""
    return segment_id >> _RANDOM_BITS


def insert_marks(connection: Connection, segment: int, slots: Collection[Slot]) -> None:
    """Marks `slots` in a segment; returns once that is durable. Raises StoreUnavailableError: some may be marked."""
    tenants, starts = zip(*sorted(slots), strict=True)
    columns = [tenants, starts, [segment] * len(tenants), [1] * len(tenants)]
    connection.insert("marks", ("tenant_id", "slot", "segment", "open"), columns)


@dataclass
class Segment:
    """Inserts under way and slots marked; guarded by the lock of its `Segments`."""

    id: int
    opened: float  # monotonic seconds
    marked: dict[str, set[int]] = field(default_factory=dict)  # tenant_id -> starts of its slots
    landed_rows: int = 0
    in_flight: int = 0
    not_before: float = 0.0  # monotonic seconds; an insert of unknown outcome may land until then

    def slots(self) -> Iterator[Slot]:
        """Every slot marked in it."""
        return ((tenant, start) for tenant, starts in self.marked.items() for start in starts)


class Segments:
    """The open segment of this process, and the sealed ones that wait for their recompute. Thread-safe."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._current: Segment | None = None
        self._sealed: list[Segment] = []
        self._ended = False
        self._held = False
        self._are_all_known = False

    def enter(self, now_ms: int, monotonic: float) -> Segment:
        """The segment to write under; `leave` must follow."""
        with self._condition:
            self._condition.wait_for(lambda: not self._held)
            if self._current is not None and monotonic - self._current.opened > MAX_OPEN_SECONDS:
                self.seal()
            if self._current is None:
                self._current = Segment(new_segment_id(now_ms), monotonic)
                self._condition.notify_all()
            self._current.in_flight += 1
            return self._current

    def unmarked(self, segment: Segment, slots: set[Slot]) -> set[Slot]:
        """Those of `slots` that still need a mark."""
        with self._condition:
            return {(tenant, start) for tenant, start in slots if start not in segment.marked.get(tenant, ())}

    def marks_are_durable(self, segment: Segment, slots: set[Slot]) -> None:
        """To be called only after the insert of these marks was answered."""
        with self._condition:
            for tenant, start in slots:
                segment.marked.setdefault(tenant, set()).add(start)

    def leave(self, segment: Segment, *, landed_rows: int, not_before: float = 0.0) -> None:
        """Ends one insert; `not_before` delays the recompute of one whose outcome is unknown."""
        with self._condition:
            segment.in_flight -= 1
            segment.landed_rows += landed_rows
            segment.not_before = max(segment.not_before, not_before)
            self._condition.notify_all()

    def wait_for_work(self, timeout: float | None = None) -> bool:
        """Blocks until a segment is open or sealed, or `end` was called; says whether there is one."""
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
        """No further insert enters the current segment."""
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
                if not self._condition.wait_for(
                    lambda: all(segment.in_flight == 0 for segment in self._open()), timeout
                ):
                    raise StoreUnavailableError("an insert does not end")
            yield
        finally:
            with self._condition:
                self._held = False
                self._condition.notify_all()

    def landed(self, monotonic: float) -> list[Segment]:
        """The sealed segments all of whose inserts have landed."""
        with self._condition:
            return [segment for segment in self._sealed if segment.in_flight == 0 and segment.not_before <= monotonic]

    def wait_until_landed(self, timeout: float) -> None:
        """Blocks until no sealed segment has an insert under way, or for `timeout` seconds."""
        with self._condition:
            self._condition.wait_for(lambda: all(segment.in_flight == 0 for segment in self._sealed), timeout)

    def close(self, segment: Segment) -> None:
        """Forgets a recomputed segment."""
        with self._condition:
            self._sealed.remove(segment)
            self._condition.notify_all()

    def own_ids(self) -> set[int]:
        """Ids of this process's segments."""
        with self._condition:
            return {segment.id for segment in self._open()}

    def dirty_slots(self) -> int:
        """How many slots this process has marked and not yet recomputed."""
        with self._condition:
            return sum(len(starts) for segment in self._open() for starts in segment.marked.values())

    def all_are_known(self) -> None:
        """From now on no mark is open in the store but those of this process: nobody else writes, all is repaired."""
        self._are_all_known = True

    def dirty(self, tenant: str, since: int, until: int) -> list[int] | None:
        """Starts of a tenant's slots in [since, until) seconds that the rollups may not know; None: ask the store."""
        if not self._are_all_known:
            return None
        with self._condition:
            starts = {start for segment in self._open() for start in segment.marked.get(tenant, ())}
        return sorted(start for start in starts if since <= start < until)

    def oldest(self) -> float | None:
        """When the oldest segment that is not recomputed was opened, in monotonic seconds; None if there is none."""
        with self._condition:
            return min((segment.opened for segment in self._open()), default=None)

    def _open(self) -> list[Segment]:
        return [*self._sealed, self._current] if self._current else self._sealed
