"""The writer: events in, durable when it returns. Marks first, then raw; nothing else is owed to an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from clickhouse.connection import Connection
from clickhouse.event import Event
from clickhouse.marks import REMARK_AFTER_SECONDS, Segment, Segments, Slot, insert_marks, slot_start


class Writer:
    """Writes batches of events; any number of threads may call it at once."""

    def __init__(self, connection: Connection, segments: Segments, *, clock: Callable[[], float] = time.time) -> None:
        self._connection = connection
        self._segments = segments
        self._clock = clock

    def write(self, events: Sequence[Event]) -> None:
        """Returns once every event is durable and its slots are marked.

        Raises StoreUnavailableError: none, some or all of the events may be stored. Writing them again is safe
        and the only right thing to do, because an event is counted once however often it is written.
        """
        if not events:
            return
        columns = list(zip(*events, strict=True))
        slots = set(zip(columns[0], map(slot_start, columns[1]), strict=True))
        started = time.monotonic()
        segment = self._segments.enter(int(self._clock() * 1000), started)
        landed_rows, not_before = 0, 0.0
        try:
            self._mark(segment, slots)
            self._connection.insert("events", Event._fields, columns)
            landed_rows = len(events)
        except Exception:
            # It may still land until the server gives up on it; the rollups must not be called clean before.
            not_before = time.monotonic() + self._connection.insert_timeout
            raise
        finally:
            self._segments.leave(segment, landed_rows=landed_rows, not_before=not_before)
        if not self._connection.embedded and time.monotonic() - segment.opened > REMARK_AFTER_SECONDS:
            self.mark(slots)

    def mark(self, slots: set[Slot]) -> None:
        """Marks slots whose events have changed already (late landing, erasure), so that they are recomputed."""
        segment = self._segments.enter(int(self._clock() * 1000), time.monotonic())
        try:
            self._mark(segment, slots)
        finally:
            self._segments.leave(segment, landed_rows=0)

    def _mark(self, segment: Segment, slots: set[Slot]) -> None:
        missing = self._segments.unmarked(segment, slots)
        if missing:
            insert_marks(self._connection, segment.id, missing)
            self._segments.marks_are_durable(segment, missing)
