"""The totals: every tenant's figures for the exporter, with counters that never fall."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from clickhouse.fleet import Fleet
from clickhouse.high_water import HighWater
from clickhouse.store import Store

# Only rollups: a refresh must cost what the tenants cost, not what their events of the last minutes cost. A slot
# that is still dirty is in the next refresh.
_FLEET: Final = """
SELECT tenant_id, sum(issued_ever), sum(failed_ever), sum(active), max(ratio), max(last_ms) / 1000, sum(issued_month),
    max(issued_shown), max(failed_shown), max(shown), sum(days) > 0
FROM
(
    SELECT tenant_id, sum(issued) AS issued_ever, sum(failed) AS failed_ever, 0 AS active, 0. AS ratio,
        max(last_issued_ms) AS last_ms, sumIf(issued, day >= month_start AND day < month_end) AS issued_month,
        0 AS issued_shown, 0 AS failed_shown, 0 AS shown, count() AS days
    FROM tenant_day FINAL GROUP BY tenant_id
    UNION ALL
    SELECT tenant_id, 0, 0, uniqExact(agent_id), 0., 0, 0, 0, 0, 0, 0
    FROM agent_slot FINAL
    WHERE slot >= toDateTime({active_since:UInt32}, 'UTC') AND slot < toDateTime({active_until:UInt32}, 'UTC')
        AND issued > 0
    GROUP BY tenant_id
    UNION ALL
    SELECT tenant_id, 0, 0, 0, max(issued_by_agent) / sum(issued_by_agent), 0, 0, 0, 0, 0, 0
    FROM
    (
        SELECT tenant_id, agent_id, sum(issued) AS issued_by_agent FROM agent_day FINAL
        WHERE day >= month_start AND day < month_end GROUP BY tenant_id, agent_id HAVING issued_by_agent > 0
    )
    GROUP BY tenant_id
    UNION ALL
    SELECT tenant_id, max(issued), max(failed), 0, 0., 0, 0, 0, 0, 0, 0
    FROM removals GROUP BY tenant_id, removal_id HAVING max(done) = 1
    UNION ALL
    SELECT tenant_id, 0, 0, 0, 0., 0, 0, max(issued), max(failed), max(published), 0
    FROM counters GROUP BY tenant_id
)
GROUP BY tenant_id ORDER BY tenant_id""".replace(
    "month_start", "toDate(toDateTime({month_start:UInt32}, 'UTC'))"
).replace("month_end", "toDate(toDateTime({month_end:UInt32}, 'UTC'))")

_COUNTER_COLUMNS: Final = ("tenant_id", "issued", "failed", "published")


class Totals:
    """Reads all tenants at once and remembers in the store what was published. Blocking; raises StoreError."""

    def __init__(
        self, store: Store, *, clock: Callable[[], float] = time.time, high_water: HighWater | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._high_water = high_water

    def fleet(self) -> Fleet:
        """All tenants now, from one columnar query.

        A counter is the sum of the rollups, plus what retention and erasure removed, and never less than any value
        this method returned before: that value is stored before it is returned.
        """
        columns = self._store.columns(_FLEET, _windows(datetime.fromtimestamp(self._clock(), UTC)))
        if not columns:
            return Fleet()
        tenants, issued, failed, active, ratio, last, month, issued_shown, failed_shown, shown, present = columns
        outside = self._high_water.counters if self._high_water else {}
        counters, higher = [], []
        for tenant, now, now_failed, *before in zip(tenants, issued, failed, issued_shown, failed_shown, strict=True):
            kept = outside.get(tenant, (0, 0))
            counter = (tenant, max(now, kept[0], before[0]), max(now_failed, kept[1], before[1]))
            counters.append(counter)
            if counter[1] > before[0] or counter[2] > before[1]:
                higher.append(counter)
        self._remember([(*counter, 0) for counter in higher])
        if self._high_water and higher:
            self._high_water.raise_to(higher)
        return Fleet(
            tenant_id=tenants,
            tokens_issued=[counter[1] for counter in counters],
            token_failures=[counter[2] for counter in counters],
            active_agents=active,
            top_agent_ratio=ratio,
            last_issued_seconds=last,
            month_tokens=month,
            known=[bool(flag) for flag in shown],
            present=[bool(flag) for flag in present],
        )

    def published(self, tenant_ids: Sequence[str]) -> None:
        """Remembers that these tenants' counters have been shown, so that a restart need not begin at 0 again."""
        self._remember([(tenant, 0, 0, 1) for tenant in tenant_ids])

    def _remember(self, rows: list[tuple[str, int, int, int]]) -> None:
        if rows:
            self._store.insert("counters", _COUNTER_COLUMNS, list(zip(*rows, strict=True)))


def _windows(now: datetime) -> dict[str, int]:
    """Bounds (Unix seconds) of the calendar month and of the 24 hours that end with the current hour, both UTC."""
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    next_month = (month + timedelta(days=32)).replace(day=1)
    hour_end = now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    return {
        "month_start": int(month.timestamp()),
        "month_end": int(next_month.timestamp()),
        "active_since": int((hour_end - timedelta(hours=24)).timestamp()),
        "active_until": int(hour_end.timestamp()),
    }
