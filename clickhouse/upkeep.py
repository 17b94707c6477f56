"""The upkeep: one thread that seals segments, recomputes their slots and repairs what a crash left behind."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from clickhouse.connection import Connection
from clickhouse.errors import StoreError, StoreUnavailableError
from clickhouse.marks import ORPHAN_AFTER_SECONDS, Segments, segment_made_at_ms
from clickhouse.metrics import StoreMetrics
from clickhouse.rollups import Recompute, Rollups

logger = logging.getLogger(__name__)

# From a segment's first event to its recount, just before a writer would end the segment itself. A recount costs the
# same for one event as for a thousand, so this decides what a few events a second cost. Answers do not wait for it.
PAUSE_SECONDS: Final = 4.5
# Recomputing may take this share of the time at most: under load segments grow longer instead of work more frequent.
_DUTY: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 10.0  # the exporter shows what is rolled up, so a pause is how far it lags
_RETRY_SECONDS: Final = 2.0
_ADOPT_EVERY_SECONDS: Final = 10.0
# Of waiting without any recount getting on. Answers stay exact, but counters stand still and questions get slow.
_STUCK_SECONDS: Final = 600.0


class Upkeep:
    """Keeps the rollups up with the events. Answers never wait for it: a slot it has not reached is read raw."""

    def __init__(
        self,
        connection: Connection,
        segments: Segments,
        rollups: Rollups,
        metrics: StoreMetrics,
        *,
        pause_seconds: float = PAUSE_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._connection = connection
        self._segments = segments
        self._rollups = rollups
        self._metrics = metrics
        self._pause_seconds = pause_seconds
        self._clock = clock
        self._last_seconds = 0.0
        self._adopted_at = float("-inf")
        self._working = threading.Lock()
        self._is_paused = False
        self._moved_at = time.monotonic()  # when a recount last got on
        self._trouble = ""  # the error that the thread has met and told
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread; the first thing it does is to repair what an earlier process left."""
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the work at hand. Open segments keep their marks: the next start takes them up."""
        self._stopping.set()
        self._segments.end()
        if self._thread is not None:
            self._thread.join()

    def settle(self) -> None:
        """Blocks until every event written before the call is in the rollups. Raises StoreError."""
        self._segments.seal()
        self._segments.wait_until_landed(self._connection.insert_timeout)
        with self._working:
            self._recount_landed()

    def settle_if_behind(self, max_slots: int = 200_000) -> None:
        """Settles when more than `max_slots` slots are dirty, which bounds the memory that marks take."""
        if self._segments.dirty_slots() > max_slots:
            self.settle()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No recompute of this process runs inside; it would bring back rollups of events being removed."""
        with self._working:
            self._is_paused = True
            try:
                yield
            finally:
                self._is_paused = False
                self._moved_at = time.monotonic()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Inside, nobody in this process writes or recounts: to be left soon, senders wait.

        All that was written before is in the rollups. Raises StoreUnavailableError while an insert whose outcome
        is unknown may still land.
        """
        self.repair()
        self.settle()  # most of the work, while others go on writing
        with self.paused(), self._segments.held(self._connection.insert_timeout):
            self._segments.seal()
            self._recount_landed()
            if self._segments.own_ids():
                raise StoreUnavailableError("an insert whose outcome is unknown may still land", retry_after=30)
            yield

    def check(self) -> None:
        """Raises StoreUnavailableError when the thread has ended, or events wait too long for their recount."""
        if self._thread is not None and not self._thread.is_alive() and not self._stopping.is_set():
            raise StoreUnavailableError("the upkeep thread has ended: no event is rolled up until a new start")
        oldest = self._segments.oldest()
        if oldest is None or self._is_paused:
            return
        waiting = time.monotonic() - max(oldest, self._moved_at)
        if waiting > _STUCK_SECONDS:
            raise StoreUnavailableError(f"events have waited {waiting:.0f} s for their recount: {self._trouble}")

    def repair(self, progress: Callable[[int], None] = lambda slots: None) -> Recompute | None:
        """Recomputes segments whose process is gone: all foreign ones of an embedded store, old ones of a server.

        Raises StoreError.
        """
        with self._working:
            orphans = [segment for segment in self._rollups.marked_segments() if self._is_orphan(segment)]
            if not orphans:
                self._all_is_repaired()
                return None
            logger.info("repairing: %d segments of an earlier process were not rolled up", len(orphans))
            done = self._rollups.recompute(orphans, self._moving(progress))
            logger.info("repaired: %d slots recounted in %.1f s", done.slots, done.seconds)
            self._all_is_repaired()
            return done

    def _all_is_repaired(self) -> None:
        if self._connection.embedded:
            self._segments.all_are_known()

    def own_segments(self) -> set[int]:
        """Segments of this process that are not recounted yet."""
        return self._segments.own_ids()

    def _is_orphan(self, segment: int) -> bool:
        if segment in self._segments.own_ids():
            return False
        # An embedded store has one process, so whatever is not ours is dead. A server's may just be slow.
        age_seconds = self._clock() - segment_made_at_ms(segment) / 1000
        return self._connection.embedded or age_seconds > ORPHAN_AFTER_SECONDS

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._adopt()
                if self._segments.wait_for_work(_ADOPT_EVERY_SECONDS) and not self._stopping.is_set():
                    self._stopping.wait(
                        min(max(self._pause_seconds, self._last_seconds / _DUTY), _LONGEST_PAUSE_SECONDS)
                    )
                    self.settle()
                self._tell(None)
            except Exception as error:  # whatever it was: a thread that ends here leaves every counter frozen
                self._metrics.recompute_failures.inc()
                self._tell(error)
                self._stopping.wait(_RETRY_SECONDS)

    def _tell(self, error: Exception | None) -> None:
        """Logs the outcome of a round if it is another than the last one's."""
        trouble = "" if error is None else f"{type(error).__name__}: {error}"
        if trouble != self._trouble and error is None:
            logger.info("recompute works again")
        elif trouble != self._trouble:
            expected = isinstance(error, StoreError)
            level = logging.WARNING if expected else logging.ERROR
            logger.log(level, "recompute failed, will be tried again: %s", error, exc_info=None if expected else error)
        self._trouble = trouble

    def _moving(self, progress: Callable[[int], None] = lambda slots: None) -> Callable[[int], None]:
        def moved(slots: int) -> None:
            self._moved_at = time.monotonic()
            progress(slots)

        return moved

    def _adopt(self) -> None:
        now = time.monotonic()
        if now - self._adopted_at >= _ADOPT_EVERY_SECONDS:
            self.repair()
            self._adopted_at = now

    def _recount_landed(self) -> None:
        """The caller holds the lock."""
        landed = self._segments.landed(time.monotonic())
        if not landed:
            return
        own = [slot for segment in landed for slot in segment.slots()]
        done = self._rollups.recompute([segment.id for segment in landed], self._moving(), own=own)
        for segment in landed:
            self._segments.close(segment)
        self._last_seconds = done.seconds
        self._metrics.recompute_seconds.observe(done.seconds)
        self._metrics.duplicates_found.inc(max(0, sum(segment.landed_rows for segment in landed) - done.gained))
