"""A store of several shards: each call goes to the shard of its tenant, or to all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from datetime import date, datetime
from typing import Any, Self, TypeVar

from clickhouse.agent_detail import AgentDetail, AgentDetails
from clickhouse.alert import Alert
from clickhouse.alerts import Alerts
from clickhouse.audit import Report
from clickhouse.budget import Budget
from clickhouse.cluster import shard_of
from clickhouse.daily import DailyRound
from clickhouse.detection.detector import Detector
from clickhouse.errors import StoreError
from clickhouse.event import Event
from clickhouse.failover import Followers
from clickhouse.fleet import Fleet
from clickhouse.metrics import StoreMetrics
from clickhouse.queries import Queries
from clickhouse.removal import Removal, Removed
from clickhouse.size import Size, together
from clickhouse.store import Store
from clickhouse.tenant import TenantId
from clickhouse.totals import Totals
from clickhouse.upkeep import Upkeep
from clickhouse.watch import Watch, merged
from clickhouse.writer import Writer

_Result = TypeVar("_Result")


class ShardedWriter:
    """Any number of threads may call it at once."""

    def __init__(self, writers: Sequence[Writer], threads: ThreadPoolExecutor) -> None:
        self._writers = writers
        self._threads = threads

    def write(self, events: Sequence[Event]) -> None:
        """As Writer.write. Raises StoreUnavailableError if one shard does: what the others stored counts once."""
        parts: dict[int, list[Event]] = {}
        for event in events:
            parts.setdefault(shard_of(event.tenant_id, len(self._writers)), []).append(event)
        if len(parts) == 1:
            ((shard, part),) = parts.items()
            self._writers[shard].write(part)
            return
        under_way = [self._threads.submit(self._writers[shard].write, part) for shard, part in parts.items()]
        errors = [error for future in under_way if (error := future.exception()) is not None]
        if errors:
            raise errors[0]


class ShardedUpkeep:
    """The upkeep of every shard; each has a thread of its own."""

    def __init__(self, shards: Sequence[Upkeep]) -> None:
        self._shards = shards

    def start(self) -> None:
        """As Upkeep.start."""
        for upkeep in self._shards:
            upkeep.start()

    def stop(self) -> None:
        """As Upkeep.stop."""
        for upkeep in self._shards:
            upkeep.stop()

    def settle(self) -> None:
        """As Upkeep.settle."""
        for upkeep in self._shards:
            upkeep.settle()

    def settle_if_behind(self) -> None:
        """As Upkeep.settle_if_behind."""
        for upkeep in self._shards:
            upkeep.settle_if_behind()

    def repair(self) -> None:
        """As Upkeep.repair."""
        for upkeep in self._shards:
            upkeep.repair()


class ShardedRemoval:
    """Retention on every shard, erasure on the tenant's."""

    def __init__(self, shards: Sequence[Removal]) -> None:
        self._shards = shards

    def retain(self, days: int, now: datetime) -> list[Removed]:
        """As Removal.retain."""
        return [removed for removal in self._shards for removed in removal.retain(days, now)]

    def erase(self, tenant: TenantId, agent: str | None, now: datetime) -> Removed | None:
        """As Removal.erase."""
        return self._of(tenant).erase(tenant, agent, now)

    def preview(self, tenant: TenantId, agent: str | None) -> Removed | None:
        """As Removal.preview."""
        return self._of(tenant).preview(tenant, agent)

    def resume(self) -> int:
        """As Removal.resume."""
        return sum(removal.resume() for removal in self._shards)

    def _of(self, tenant: TenantId) -> Removal:
        return self._shards[shard_of(str(tenant), len(self._shards))]


class ShardedQueries:
    """The tenant's questions, each to its shard."""

    def __init__(self, shards: Sequence[Queries]) -> None:
        self._shards = shards

    def trend(self, tenant: TenantId, today: date, days: int) -> list[tuple[date, int]]:
        """As Queries.trend."""
        return self._of(tenant).trend(tenant, today, days)

    def activity(self, tenant: TenantId, today: date, days: int) -> list[tuple[int, int, int]]:
        """As Queries.activity."""
        return self._of(tenant).activity(tenant, today, days)

    def agents(self, tenant: TenantId, month: date, *page: Any) -> list[tuple[str, int]]:
        """As Queries.agents."""
        return self._of(tenant).agents(tenant, month, *page)

    def _of(self, tenant: TenantId) -> Queries:
        return self._shards[shard_of(str(tenant), len(self._shards))]


class ShardedAlerts:
    """The alerts of a tenant from its shard, or of all."""

    def __init__(self, shards: Sequence[Alerts]) -> None:
        self._shards = shards

    def of_tenant(self, tenant: TenantId, since: int, now: int) -> list[Alert]:
        """As Alerts.of_tenant."""
        return self._shards[shard_of(str(tenant), len(self._shards))].of_tenant(tenant, since, now)

    def of_all(self, since: int, now: int) -> list[Alert]:
        """As Alerts.of_all."""
        found = [alert for alerts in self._shards for alert in alerts.of_all(since, now)]
        return sorted(found, key=lambda alert: (-alert.since, alert.id))


class ShardedAgentDetails:
    """An agent's detail, from the shard of its tenant."""

    def __init__(self, shards: Sequence[AgentDetails]) -> None:
        self._shards = shards

    def of(self, tenant: TenantId, agent: str, now: datetime, days: int) -> AgentDetail | None:
        """As AgentDetails.of."""
        return self._shards[shard_of(str(tenant), len(self._shards))].of(tenant, agent, now, days)


class ShardedDetector:
    """The detectors of all shards, one after the other."""

    def __init__(self, shards: Sequence[Detector]) -> None:
        self._shards = shards

    def tick(self) -> None:
        """As Detector.tick. Raises the first StoreError, after all shards had their turn."""
        errors: list[StoreError] = []
        for detector in self._shards:
            try:
                detector.tick()
            except StoreError as error:
                errors.append(error)
        if errors:
            raise errors[0]


class ShardedTotals:
    """All tenants of all shards, in the order of their ids; the first shard remembers what is shown of `OTHER`."""

    def __init__(self, shards: Sequence[Totals], threads: ThreadPoolExecutor) -> None:
        self._shards = shards
        self._threads = threads
        self._watches: tuple[list[Watch], Watch] | None = None

    def read(self) -> Fleet:
        """As Totals.read. Raises StoreError if one shard does: without its tenants the fleet would have shrunk."""
        fleets = list(self._threads.map(lambda totals: totals.read(), self._shards))
        rows = sorted((tenant, shard, row) for shard, f in enumerate(fleets) for row, tenant in enumerate(f.tenant_id))
        columns: dict[str, Any] = {
            entry.name: [getattr(fleets[shard], entry.name)[row] for _, shard, row in rows]
            for entry in fields(Fleet)
            if entry.name != "other"
        }
        return Fleet(**columns, other=fleets[0].other)

    def watch(self) -> Watch:
        """As Totals.watch."""
        parts = [totals.watch() for totals in self._shards]
        if self._watches is None or any(now is not then for now, then in zip(parts, self._watches[0], strict=True)):
            self._watches = (parts, merged(parts))
        return self._watches[1]

    def record(self, fleet: Fleet, newly_published: Collection[str] = (), other: tuple[int, int] | None = None) -> None:
        """As Totals.record."""
        of = [shard_of(tenant, len(self._shards)) for tenant in fleet.tenant_id]
        for shard, totals in enumerate(self._shards):
            columns: dict[str, Any] = {
                entry.name: [value for value, at in zip(getattr(fleet, entry.name), of, strict=True) if at == shard]
                for entry in fields(Fleet)
                if entry.name != "other"
            }
            new = [tenant for tenant in newly_published if shard_of(tenant, len(self._shards)) == shard]
            totals.record(Fleet(**columns), new, other if shard == 0 else None)


class ShardedStore:
    """What Store is, over the shards of a cluster; inside its context, failovers are followed."""

    def __init__(
        self, shards: Sequence[Store], followers: Followers, metrics: StoreMetrics, *, clock: Callable[[], float]
    ) -> None:
        self.shards = shards
        self.followers = followers
        self.metrics = metrics
        self._clock = clock
        self._threads = ThreadPoolExecutor(4 * len(shards), thread_name_prefix="shards")
        self.writer = ShardedWriter([shard.writer for shard in shards], self._threads)
        self.upkeep = ShardedUpkeep([shard.upkeep for shard in shards])
        self.removal = ShardedRemoval([shard.removal for shard in shards])

    def queries(self, seconds: float = 30.0) -> ShardedQueries:
        """As Store.queries."""
        return ShardedQueries([shard.queries(seconds) for shard in self.shards])

    def totals(self) -> ShardedTotals:
        """As Store.totals."""
        return ShardedTotals([shard.totals() for shard in self.shards], self._threads)

    def alerts(self, seconds: float = 30.0) -> ShardedAlerts:
        """As Store.alerts."""
        return ShardedAlerts([shard.alerts(seconds) for shard in self.shards])

    def agent_details(self, seconds: float = 30.0) -> ShardedAgentDetails:
        """As Store.agent_details."""
        return ShardedAgentDetails([shard.agent_details(seconds) for shard in self.shards])

    def detector(self, budgets: Callable[[], Sequence[Budget]] = lambda: ()) -> ShardedDetector:
        """As Store.detector; a budget is looked at on the shard of its tenant, the others have no tokens of it."""
        return ShardedDetector([shard.detector(budgets) for shard in self.shards])

    def daily(self, retention_days: int | None) -> DailyRound:
        """As Store.daily."""
        return DailyRound(self, retention_days=retention_days, clock=self._clock)

    def size(self) -> Size:
        """As Store.size, of all primaries. Raises StoreError if one shard does: the sum would have shrunk."""
        return together([shard.size() for shard in self.shards])

    def verify(
        self,
        since: date | None = None,
        until: date | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Report:
        """As Store.verify; days are counted once for each shard."""
        reports = [shard.verify(since, until, progress) for shard in self.shards]
        return Report(
            differences=[entry for report in reports for entry in report.differences],
            conflicts=[entry for report in reports for entry in report.conflicts],
            days=sum(report.days for report in reports),
            unsettled=sum(report.unsettled for report in reports),
        )

    def export(self) -> Iterator[bytes]:
        """As Store.export."""
        for shard in self.shards:
            yield from shard.export()

    def check(self) -> None:
        """As Store.check, of one shard at least: the tenants of the others shall not pay for one that is away."""
        errors: list[StoreError] = []
        for shard in self.shards:
            try:
                shard.check()
            except StoreError as error:
                errors.append(error)
        if len(errors) == len(self.shards):
            raise errors[0]

    def __enter__(self) -> Self:
        self.followers.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.followers.stop()
        self._threads.shutdown()
        for shard in self.shards:
            shard.connection.close()
