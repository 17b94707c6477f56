"""The totals: every tenant's figures for the exporter, with counters that never fall."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from clickhouse.connection import Connection
from clickhouse.counters_file import CountersFile
from clickhouse.fleet import OTHER, Fleet
from clickhouse.watch import Watch, WatchReader

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
    FROM removals GROUP BY tenant_id, removal_id HAVING max(done) = 2
    UNION ALL
    SELECT tenant_id, 0, 0, 0, 0., 0, 0, max(issued), max(failed), max(published), 0
    FROM counters GROUP BY tenant_id
)
GROUP BY tenant_id ORDER BY tenant_id""".replace(
    "month_start", "toDate(toDateTime({month_start:UInt32}, 'UTC'))"
).replace("month_end", "toDate(toDateTime({month_end:UInt32}, 'UTC'))")

_COUNTER_COLUMNS: Final = ("tenant_id", "issued", "failed", "published")


class Totals:
    """Reads all tenants at once, and remembers what is shown of them. Blocking; raises StoreError.

    In the order `read`, `record`, show: a counter is never less than any value recorded before, on no restart, and
    with a counters file not even in a store that was restored from an older copy.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        clock: Callable[[], float] = time.time,
        counters_file: CountersFile | None = None,
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._file = counters_file
        self._recorded: dict[str, tuple[int, int]] = {}  # what the store remembers, as of the last `read`
        self._watch = WatchReader(connection, clock)
        self._last = Fleet()
        self._last_of: tuple[int, dict[str, int]] | None = None  # state of the store and the calendar that it shows

    def read(self) -> Fleet:
        """All tenants now, from one columnar query; the last answer again if nothing can have changed it.

        A counter is the sum of the rollups, plus what retention and erasure removed, or what was recorded if that is
        more.
        """
        changes, windows = self._connection.changes, _windows(datetime.fromtimestamp(self._clock(), UTC))
        if self._last_of is not None and self._last_of == (changes, windows):
            self._connection.rows("SELECT 1")  # a store that is gone must not look like one where nothing happens
            return self._last
        self._last = self._ask(windows)
        self._last_of = None if changes is None else (changes, windows)
        return self._last

    def _ask(self, windows: dict[str, int]) -> Fleet:
        columns = self._connection.columns(_FLEET, windows)
        if not columns:
            return Fleet()
        tenants, issued, failed, active, ratio, last, month, issued_shown, failed_shown, shown, present = columns
        in_file = self._file.counters if self._file else {}
        self._recorded = dict(zip(tenants, zip(issued_shown, failed_shown, strict=True), strict=True))
        floors = [
            (max(recorded[0], kept[0]), max(recorded[1], kept[1]))
            for recorded, kept in ((self._recorded[tenant], in_file.get(tenant, (0, 0))) for tenant in tenants)
        ]
        fleet = Fleet(
            tenant_id=tenants,
            tokens_issued=[max(now, floor[0]) for now, floor in zip(issued, floors, strict=True)],
            token_failures=[max(now, floor[1]) for now, floor in zip(failed, floors, strict=True)],
            active_agents=active,
            top_agent_ratio=ratio,
            last_issued_seconds=last,
            month_tokens=month,
            published=[bool(flag) or tenant in in_file for tenant, flag in zip(tenants, shown, strict=True)],
            present=[bool(flag) for flag in present],
        )
        return _without_other(fleet, in_file.get(OTHER))

    def watch(self) -> Watch:
        """What the detector says of all tenants; the same object while it says the same."""
        return self._watch.read()

    def record(self, fleet: Fleet, newly_published: Sequence[str] = (), other: tuple[int, int] | None = None) -> None:
        """Remembers what is going to be shown of `fleet`, the last one read.

        `newly_published` are tenants whose true counters are shown from now on; `other` is what `OTHER` is going to
        show, if anything. Returns when a restart would find all of it.
        """
        new = {*newly_published}
        rising, published = [], {}
        counters = zip(fleet.tenant_id, fleet.tokens_issued, fleet.token_failures, fleet.published, strict=True)
        for tenant, issued, failed, is_published in counters:
            if tenant in new or (issued, failed) != self._recorded[tenant]:
                rising.append((tenant, issued, failed, int(tenant in new)))
            if is_published or tenant in new:
                published[tenant] = (issued, failed)
        if other is not None:
            published[OTHER] = other
            if other != self._recorded.get(OTHER):
                rising.append((OTHER, *other, 1))
        if rising:
            self._connection.insert("counters", _COUNTER_COLUMNS, list(zip(*rising, strict=True)))
        if self._file and any(self._file.counters.get(tenant) != shown for tenant, shown in published.items()):
            self._file.raise_to(published)


def _without_other(fleet: Fleet, kept: tuple[int, int] | None) -> Fleet:
    """`OTHER` is recorded like a tenant, and told apart from them here."""
    if OTHER not in fleet.tenant_id:
        return replace(fleet, other=kept)
    row = fleet.tenant_id.index(OTHER)
    columns = {name: value for name in fleet.__slots__ if isinstance(value := getattr(fleet, name), list)}
    others = {name: [*column[:row], *column[row + 1 :]] for name, column in columns.items()}
    return replace(fleet, **others, other=(fleet.tokens_issued[row], fleet.token_failures[row]))


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
