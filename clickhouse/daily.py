"""The daily round: retention, then an audit of yesterday whose result is exported."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Final, Protocol

from clickhouse.audit import Report
from clickhouse.metrics import StoreMetrics
from clickhouse.removal import Removed

logger = logging.getLogger(__name__)

HOUR_OF_DAY: Final = 1  # UTC; late enough for most stragglers of yesterday


class _Settles(Protocol):
    def settle(self) -> None: ...


class _Removes(Protocol):
    def resume(self) -> int: ...

    def retain(self, days: int, now: datetime) -> list[Removed]: ...


class AuditedStore(Protocol):
    """What a daily round is made over: a store, of one shard or several."""

    @property
    def upkeep(self) -> _Settles: ...

    @property
    def removal(self) -> _Removes: ...

    @property
    def metrics(self) -> StoreMetrics: ...

    def verify(self, since: date, until: date) -> Report: ...


class DailyRound:
    """Blocking work for one thread; `run` raises StoreError."""

    def __init__(self, store: AuditedStore, *, retention_days: int | None, clock: Callable[[], float]) -> None:
        self._store = store
        self._retention_days = retention_days
        self._clock = clock

    def seconds_until_next(self) -> float:
        """Seconds from now until the next round is due."""
        now = self._now()
        due = now.replace(hour=HOUR_OF_DAY, minute=0, second=0, microsecond=0)
        if due <= now:
            due += timedelta(days=1)
        return (due - now).total_seconds()

    def resume(self) -> None:
        """Ends a removal that was interrupted, at the start or by yesterday's failure. Raises StoreError."""
        self._store.removal.resume()

    def run(self) -> Report:
        """Drops what is older than the retention, then recounts yesterday and publishes the differences."""
        now = self._now()
        self.resume()
        if self._retention_days is not None:
            removed = self._store.removal.retain(self._retention_days, now)
            if removed:
                logger.info("retention: removed events of %d tenants", len({entry.tenant_id for entry in removed}))
            self._store.metrics.retention_last_success.set(self._clock())
        yesterday = now.date() - timedelta(days=1)
        self._store.upkeep.settle()
        report = self._store.verify(yesterday, yesterday)
        self._store.metrics.verify_differences.set(len(report.differences))
        self._store.metrics.verify_conflicts.set(len(report.conflicts))
        self._store.metrics.verify_last_run.set(self._clock())
        log = logger.error if report.differences else logger.info
        log(
            "audit of %s: %d differences, %d conflicting ids", yesterday, len(report.differences), len(report.conflicts)
        )
        return report

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)
