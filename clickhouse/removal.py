"""Removal: retention and erasure, which take events away without a counter ever falling.

Each removal is written down with what it takes before it takes anything. The exporter adds that to a tenant's total
once the removal is done; until then its own high-water mark holds the counter. A crash leaves the record, and the
next start carries it out again: deleting what is gone is no work.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from clickhouse.epoch import new_epoch_id
from clickhouse.store import Store, quote_name
from clickhouse.tenant import TenantId
from clickhouse.upkeep import Upkeep
from clickhouse.writer import Writer

logger = logging.getLogger(__name__)

_COLUMNS: Final = ("tenant_id", "removal_id", "agent_id", "before", "issued", "failed", "done")

_OLDER_THAN: Final = """
SELECT tenant_id, sum(issued), sum(failed) FROM tenant_day FINAL
WHERE day < toDate(toDateTime({before:UInt32}, 'UTC')) GROUP BY tenant_id"""

# What the tenant's total loses: an event that came under two agents still counts under the other one.
_OF_AGENT: Final = """
SELECT countIf(now.1 = 'success') - countIf(others > 0 AND later.1 = 'success'),
    countIf(now.1 = 'failure') - countIf(others > 0 AND later.1 = 'failure')
FROM
(
    SELECT min((outcome, agent_id)) AS now, countIf(agent_id != {agent:String}) AS others,
        minIf((outcome, agent_id), agent_id != {agent:String}) AS later
    FROM events WHERE tenant_id = {tenant:String} GROUP BY issued_at, event_id
)"""

_OF_TENANT: Final = "SELECT sum(issued), sum(failed) FROM tenant_day FINAL WHERE tenant_id = {tenant:String}"

_SLOTS_OF: Final = """
SELECT DISTINCT toUnixTimestamp(slot) FROM agent_slot
WHERE tenant_id = {tenant:String} AND ({agent:String} = '' OR agent_id = {agent:String})"""

_PENDING: Final = """
SELECT tenant_id, removal_id, max(agent_id), toUnixTimestamp(max(before)), max(issued), max(failed)
FROM removals GROUP BY tenant_id, removal_id HAVING max(done) = 0"""


class Removed(NamedTuple):
    """One tenant's part of a removal; `agent_id` "" stands for all agents, `before` (Unix seconds) 0 for all times."""

    tenant_id: str
    removal_id: int
    agent_id: str
    before: int
    issued: int
    failed: int


class Removal:
    """Runs in the process that writes. Blocking; every method raises StoreError."""

    def __init__(self, store: Store, writer: Writer, upkeep: Upkeep) -> None:
        self._store = store
        self._writer = writer
        self._upkeep = upkeep

    def retain(self, days: int, now: datetime) -> list[Removed]:
        """Removes the events and rollups of all UTC days before the last `days` ones (today included)."""
        cutoff = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days - 1)
        before = int(cutoff.timestamp())
        self._upkeep.settle()
        # The cut-off names the removal: two processes that do the same one take away, and add to a counter, once.
        removed = [
            Removed(tenant, before, "", before, int(issued), int(failed))
            for tenant, issued, failed in self._store.rows(_OLDER_THAN, {"before": before})
        ]
        self._record(removed, done=False)
        self._carry_out(removed)
        return removed

    def erase(self, tenant: TenantId, agent: str | None, now: datetime) -> Removed:
        """Removes every trace of a tenant, or of one agent of it, but the tenant's share in its own counters."""
        self._upkeep.settle()
        statement, parameters = (
            (_OF_TENANT, {"tenant": str(tenant)})
            if agent is None
            else (_OF_AGENT, {"tenant": str(tenant), "agent": agent})
        )
        issued, failed = self._store.rows(statement, parameters)[0]
        removal_id = new_epoch_id(int(now.timestamp() * 1000))
        removed = Removed(str(tenant), removal_id, agent or "", 0, max(0, int(issued)), max(0, int(failed)))
        self._record([removed], done=False)
        self._carry_out([removed])
        return removed

    def resume(self) -> int:
        """Carries out what a crash interrupted; returns how many tenants' removals that were."""
        pending = [Removed(*row) for row in self._store.rows(_PENDING)]
        if pending:
            logger.info("resuming %d interrupted removals", len(pending))
            self._carry_out(pending)
        return len(pending)

    def _record(self, removed: Sequence[Removed], *, done: bool) -> None:
        rows = [(*entry, int(done)) for entry in removed]
        self._store.insert("removals", _COLUMNS, list(zip(*rows, strict=True)))

    def _carry_out(self, removed: Sequence[Removed]) -> None:
        for before in {entry.before for entry in removed if entry.before}:
            self._delete_before(before)
        for entry in removed:
            if not entry.before:
                self._erase(entry)
        self._record(removed, done=True)
        for entry in removed:
            if entry.agent_id:
                forget = (
                    f"ALTER TABLE {self._target('removals')} UPDATE agent_id = '' WHERE removal_id = {{removal:UInt64}}"
                )
                self._store.command(forget, {"removal": entry.removal_id}, mutations_sync=2)

    def _delete_before(self, before: int) -> None:
        with self._upkeep.paused():
            parameters = {"before": before}
            for table, column in (("events", "issued_at"), ("agent_slot", "slot"), ("tenant_slot", "slot")):
                self._delete(table, f"{column} < toDateTime({{before:UInt32}}, 'UTC')", parameters)
            for table in ("agent_day", "tenant_day"):
                self._delete(table, "day < toDate(toDateTime({before:UInt32}, 'UTC'))", parameters)

    def _erase(self, entry: Removed) -> None:
        parameters = {"tenant": entry.tenant_id, "agent": entry.agent_id}
        whose = "tenant_id = {tenant:String} AND ({agent:String} = '' OR agent_id = {agent:String})"
        # Marked first: until the recompute is through, answers come from the raw events that are left.
        slots = {(entry.tenant_id, start) for (start,) in self._store.rows(_SLOTS_OF, parameters)}
        self._writer.mark(slots)
        self._delete("events", whose, parameters)
        self._upkeep.settle()
        with self._upkeep.paused():
            for table in ("agent_slot", "agent_day"):
                self._delete(table, whose, parameters)
            if not entry.agent_id:
                for table in ("tenant_slot", "tenant_day"):
                    self._delete(table, "tenant_id = {tenant:String}", parameters)

    def _delete(self, table: str, condition: str, parameters: dict[str, str] | dict[str, int]) -> None:
        """A mutation rewrites the parts at once: what was erased is gone from the disk, not hidden."""
        self._store.command(f"ALTER TABLE {self._target(table)} DELETE WHERE {condition}", parameters, mutations_sync=2)

    def _target(self, table: str) -> str:
        return table if not self._store.cluster else f"{table}_local ON CLUSTER {quote_name(self._store.cluster)}"
