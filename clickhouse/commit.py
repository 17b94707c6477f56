"""Group commit: what many requests bring within a few milliseconds becomes one durable insert."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, Protocol

from clickhouse.errors import StoreUnavailableError
from clickhouse.event import Event
from clickhouse.metrics import StoreMetrics

logger = logging.getLogger(__name__)

MAX_EVENTS_WAITING: Final = 200_000
MAX_EVENTS_A_COMMIT: Final = 50_000
LINGER_SECONDS: Final = 0.008
STUCK_SECONDS: Final = 120.0  # an insert has a time-out of its own; a commit is two of them, or three
_ENDED: Final = "the committer has ended: nothing is stored until a new start"
_OVERLOADED: Final = "more events are waiting for the store than it can take; send them again later"


class EventWriter(Protocol):
    """The writer of a store, of one shard or several."""

    def write(self, events: Sequence[Event]) -> None:
        """As Writer.write."""


class _Waiting(NamedTuple):
    events: Sequence[Event]
    done: asyncio.Future[None]


class GroupCommit:
    """Collects events while the store is busy with the last commit; memory is bounded by `MAX_EVENTS_WAITING`.

    Lives on one event loop. A lone sender never waits for company. With several, their next events come just after
    their answers, so a commit waits a moment for them: else every group would be half of what it could be.
    """

    def __init__(
        self,
        writer: EventWriter,
        metrics: StoreMetrics,
        *,
        max_waiting: int = MAX_EVENTS_WAITING,
        timeout: float = 45.0,
    ) -> None:
        self._writer = writer
        self._metrics = metrics
        self._max_waiting = max_waiting
        self._timeout = timeout
        self._queue: list[_Waiting] = []
        self._events_held = 0
        self._arrived = asyncio.Event()
        self._stopping = False
        self._expected = 0  # senders in the last group
        self._complete = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._committer: asyncio.Task[None] | None = None
        self._under_way_since: float | None = None  # monotonic seconds

    async def start(self) -> None:
        """Starts to commit."""
        # One at a time: a second commit beside the first halves the groups and makes both slower.
        self._committer = asyncio.create_task(self._commit_for_ever())
        self._committer.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Refuses new events, stores those that wait, then ends."""
        self._stopping = True
        self._arrived.set()
        if self._committer is not None:
            await asyncio.wait([self._committer])
        self._thread.shutdown()

    def _ended(self, committer: asyncio.Task[None]) -> None:
        error = None if committer.cancelled() else committer.exception()
        if error is not None:
            logger.error(_ENDED, exc_info=error)
            for waiting in self._queue:
                if not waiting.done.done():
                    waiting.done.set_exception(StoreUnavailableError(_ENDED, retry_after=5))

    def check(self) -> None:
        """Raises StoreUnavailableError when nothing is committed any more. From any thread."""
        if self._committer is not None and self._committer.done() and not self._stopping:
            raise StoreUnavailableError(_ENDED, retry_after=5)
        since = self._under_way_since
        if since is not None and time.monotonic() - since > STUCK_SECONDS:
            raise StoreUnavailableError("a commit is under way for too long", retry_after=5)

    async def write(self, events: Sequence[Event]) -> None:
        """Returns when every event is durable.

        Raises StoreUnavailableError when the store fails or too much is waiting; the events may be sent again.
        """
        if not events:
            return
        if self._stopping:
            raise StoreUnavailableError("the service is stopping", retry_after=5)
        self.check()
        if self._events_held and self._events_held + len(events) > self._max_waiting:
            raise StoreUnavailableError(_OVERLOADED, retry_after=1)
        waiting = _Waiting(events, asyncio.get_running_loop().create_future())
        self._events_held += len(events)
        self._queue.append(waiting)
        self._arrived.set()
        if len(self._queue) >= self._expected:
            self._complete.set()
        try:
            # Shielded: a sender that hangs up takes nothing back, its events may be in the insert already.
            await asyncio.wait_for(asyncio.shield(waiting.done), self._timeout)
        except TimeoutError:
            raise StoreUnavailableError("the store did not answer in time", retry_after=5) from None

    async def _commit_for_ever(self) -> None:
        while True:
            await self._arrived.wait()
            if self._expected > 1 and not self._stopping:
                await self._wait_for_senders()
            group = self._take()
            self._expected = len(group)
            if group:
                await self._commit(group)
            elif self._stopping:
                return
            else:
                self._arrived.clear()

    async def _wait_for_senders(self) -> None:
        """Waits until as many senders are back as the last group had, and not longer than `LINGER_SECONDS`."""
        if len(self._queue) < self._expected:
            self._complete.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._complete.wait(), LINGER_SECONDS)

    def _take(self) -> list[_Waiting]:
        events = taken = 0
        for waiting in self._queue:
            if taken and events + len(waiting.events) > MAX_EVENTS_A_COMMIT:
                break
            events += len(waiting.events)
            taken += 1
        group, self._queue = self._queue[:taken], self._queue[taken:]
        return group

    async def _commit(self, group: list[_Waiting]) -> None:
        events = [event for waiting in group for event in waiting.events]
        started = time.perf_counter()
        failure: Exception | None = None
        self._under_way_since = time.monotonic()
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._writer.write, events)
        except Exception as error:  # each waiting request gets it; the committer itself must live on
            failure = error
            self._metrics.commit_failures.inc()
            logger.warning("commit of %d events failed: %s", len(events), error)
        else:
            self._metrics.commit_events.observe(len(events))
            self._metrics.commit_seconds.observe(time.perf_counter() - started)
        self._under_way_since = None
        self._events_held -= len(events)
        for waiting in group:
            with contextlib.suppress(asyncio.InvalidStateError):
                if failure is None:
                    waiting.done.set_result(None)
                else:
                    waiting.done.set_exception(failure)
