"""Keeps a fresh snapshot: reads the store and renders in a thread of its own, one refresh at a time."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from clickhouse.errors import StoreError
from clickhouse.fleet import OTHER, Fleet
from clickhouse.watch import Watch
from exporter.counters import PublishedFleet, TenantCounters
from exporter.exposition import Exposition
from exporter.metrics import ExporterMetrics
from exporter.settings import ExporterSettings
from exporter.snapshot import Snapshot
from exporter.watch_lines import WatchLines

_logger = logging.getLogger(__name__)

# A refresh under way when the process ends gets this long to come back: closing the store under it is worse.
_STOP_SECONDS: Final = 10.0


class FleetSource(Protocol):
    """The store, as the exporter sees it. All calls block, come from one thread and raise `StoreError`."""

    def read(self) -> Fleet:
        """All tenants now."""

    def record(self, fleet: Fleet, newly_published: Sequence[str], other: tuple[int, int] | None) -> None:
        """Remembers for good what is going to be shown of the last fleet read: whose true counters from now on
        (`Fleet.published`), and what of `OTHER`.
        """

    def watch(self) -> Watch:
        """What the detector says; the same object while it says the same."""


class Refresher:
    """Refreshes a snapshot every `interval` seconds between `start` and `stop`. Belongs to one event loop."""

    def __init__(
        self,
        source: FleetSource,
        metrics: ExporterMetrics,
        *,
        interval: float = ExporterSettings.refresh_interval,
        max_age: float = 300.0,
        zero_hold: float = ExporterSettings.zero_hold,
        max_tenants: int = ExporterSettings.max_tenants,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """Times in seconds. `max_age`: a snapshot older than this is not served any more.

        Raises ValueError for a time or limit out of range.
        """
        if interval <= 0:
            raise ValueError(f"interval is {interval} s; it must be above 0")
        if max_age < interval:
            raise ValueError(f"max_age is {max_age} s; it must be at least the interval of {interval} s")
        self.metrics = metrics
        self.refreshed = asyncio.Condition()  # notified after every refresh, failed or not
        self._source = source
        self._counters = TenantCounters(max_tenants=max_tenants, zero_hold=zero_hold)
        self._exposition = Exposition()
        self._watch_lines = WatchLines()
        self._interval = interval
        self._max_age = max_age
        self._clock = clock
        self._timer = timer  # of the zero hold: a clock that is set would end it too early, or never
        self._started_at = clock()
        self._snapshot: Snapshot | None = None
        self._zeros_noted_for: Snapshot | None = None
        self._zeros_scraped: list[tuple[tuple[str, ...], float]] = []
        self._failure: str | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="exporter-refresh")
        self._in_flight: asyncio.Task[None] | None = None
        self._loop_task: asyncio.Task[None] | None = None
        metrics.snapshot_age.set_function(self._age)

    @property
    def ready(self) -> bool:
        """Whether the store could be read at least once."""
        return self._snapshot is not None

    def snapshot(self) -> Snapshot | None:
        """What to serve now; None before the first snapshot and when the last one is too old to be believed."""
        return self._snapshot if self._age() <= self._max_age else None

    def _age(self) -> float:
        since = self._started_at if self._snapshot is None else self._snapshot.read_at
        return max(0.0, self._clock() - since)

    def scraped(self, snapshot: Snapshot) -> None:
        """Notes that a scrape was served from `snapshot`, and so has seen the zeros in it."""
        if snapshot.held_at_zero and snapshot is not self._zeros_noted_for:
            self._zeros_noted_for = snapshot
            self._zeros_scraped.append((snapshot.held_at_zero, self._timer()))

    async def start(self) -> None:
        """Begins refreshing, at once and then by the interval."""
        self._loop_task = asyncio.create_task(self._refresh_for_ever())

    async def stop(self) -> None:
        """Ends refreshing for good; waits up to 10 s for a refresh under way, so that the store can be closed."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            with suppress(asyncio.CancelledError):
                await self._loop_task
        if self._in_flight is not None:
            await asyncio.wait({self._in_flight}, timeout=_STOP_SECONDS)
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _refresh_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            await self.refresh_once()
            took = loop.time() - begun
            # A store that needs longer than the interval still rests half of the time.
            await asyncio.sleep(max(self._interval - took, took))

    async def refresh_once(self) -> None:
        """Waits for a refresh: the one under way, else a new one. Failures are counted and logged, never raised."""
        if self._in_flight is None:
            self._in_flight = asyncio.create_task(self._refresh())
        await asyncio.shield(self._in_flight)

    async def _refresh(self) -> None:
        begun = self._clock()
        zeros_scraped, self._zeros_scraped = self._zeros_scraped, []
        read = asyncio.get_running_loop().run_in_executor(self._worker, self._read, begun, zeros_scraped)
        failure: Exception | None
        try:
            snapshot, fleet = await read
            failure = None
        except Exception as error:
            failure = error
        else:
            self._snapshot = snapshot
            self.metrics.tenants.set(fleet.tenants)
            self.metrics.dropped_tenants.set(fleet.dropped)
            self.metrics.zero_held_tenants.set(len(fleet.held_at_zero))
        finally:
            self._in_flight = None
        self.metrics.refresh_duration.set(max(0.0, self._clock() - begun))
        self.metrics.refreshes.inc()
        if failure is not None:
            self.metrics.refresh_failures.inc()
        self.metrics.up.set(failure is None)
        self._log_change(failure)
        async with self.refreshed:
            self.refreshed.notify_all()

    def _read(self, now: float, zeros_scraped: list[tuple[tuple[str, ...], float]]) -> tuple[Snapshot, PublishedFleet]:
        """In the worker thread. What cannot be recorded is not shown: after a restart it would fall."""
        for tenant_ids, at in zeros_scraped:
            self._counters.zeros_scraped(tenant_ids, at)
        fleet = self._counters.update(self._source.read())
        releasable = self._counters.releasable(self._timer())
        self._source.record(fleet, [t for t in releasable if t != OTHER], self._counters.other(releasable))
        self._counters.release(releasable)
        published = self._counters.publish()
        more = self._watch_lines.render(self._source.watch(), published.tenant_id, (OTHER,))
        return Snapshot(now, self._exposition.render(published, more), published.held_at_zero), published

    def _log_change(self, error: Exception | None) -> None:
        """One line when refreshing starts to fail, when the reason changes and when it works again."""
        failure = None if error is None else _describe(error)
        if failure == self._failure:
            return
        if failure is None:
            _logger.info("refreshing from the store works again")
        else:
            _logger.warning("cannot refresh from the store: %s", failure)
        self._failure = failure


def _describe(error: Exception) -> str:
    """What may be logged: the text of the project's own errors; of others, which may quote a DSN, only the place."""
    name = type(error).__name__
    if isinstance(error, StoreError):
        return f"{name}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{name} at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else name
