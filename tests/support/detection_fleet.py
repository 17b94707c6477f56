"""Fleets for the detector: counts of five minutes for each agent, written into the rollups as a recount leaves them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from math import sqrt
from typing import Any, Final

from clickhouse.connection import Connection
from clickhouse.detection.detector import Detector
from clickhouse.detection.progress import Progress

BIN: Final = 300
HOUR: Final = 3600
DAY: Final = 86_400

# (tenant, kind, agent, bin) -> severity, score
Verdicts = dict[tuple[str, str, str, int], tuple[str, float]]


def at(text: str) -> int:
    """Unix seconds of a moment in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def office(moment: int) -> bool:
    """From 8 to 18 h, Monday to Friday."""
    when = datetime.fromtimestamp(moment, UTC)
    return when.isoweekday() < 6 and 8 <= when.hour < 18


def always(_: int) -> bool:
    return True


class Counts:
    """Tokens of bins and failures of quarters of an hour."""

    def __init__(self, seed: int = 1) -> None:
        self._rng = random.Random(seed)
        self.bins: dict[tuple[str, str], dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self.failed: dict[tuple[str, str], dict[int, int]] = defaultdict(lambda: defaultdict(int))

    def works(
        self, tenant: str, agent: str, since: int, until: int, mean: float, when: Callable[[int], bool] = office
    ) -> None:
        """About `mean` tokens in each bin of [since, until) `when` it works."""
        for start in range(since, until, BIN):
            if when(start):
                self.bins[tenant, agent][start] += max(0, round(self._rng.gauss(mean, sqrt(mean))))

    def stops(self, tenant: str, since: int, until: int) -> None:
        for (owner, _), bins in self.bins.items():
            for start in range(since, until, BIN):
                if owner == tenant:
                    bins.pop(start, None)

    def load(self, connection: Connection, generation: int = 1) -> None:
        """Writes all of it, as counted by a recount of that generation."""
        slots: dict[tuple[str, str, int], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        for (tenant, agent), bins in self.bins.items():
            for start, count in bins.items():
                row = slots[tenant, agent, start // 900 * 900]
                row[0] += count
                if place := start % 900 // BIN:
                    row[1 + place] += count
        for (tenant, agent), quarters in self.failed.items():
            for start, count in quarters.items():
                slots[tenant, agent, start][1] += count
        tenant_slots: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
        days: dict[tuple[str, str, date], list[int]] = defaultdict(lambda: [0, 0])
        tenant_days: dict[tuple[str, date], list[int]] = defaultdict(lambda: [0, 0])
        for (tenant, agent, slot), (issued, failed, _, _) in slots.items():
            day = date(1970, 1, 1) + timedelta(days=slot // DAY)
            for sums in (tenant_slots[tenant, slot], days[tenant, agent, day], tenant_days[tenant, day]):
                sums[0] += issued
                sums[1] += failed
        for table, names, rows in (
            ("agent_slot", "tenant_id agent_id slot issued failed issued_5 issued_10", slots),
            ("tenant_slot", "tenant_id slot issued failed", tenant_slots),
            ("agent_day", "tenant_id agent_id day issued failed", days),
            ("tenant_day", "tenant_id day issued failed", tenant_days),
        ):
            lines: list[tuple[Any, ...]] = [(*key, *row, generation) for key, row in rows.items()]
            connection.insert(table, (*names.split(), "generation"), list(zip(*lines, strict=True)))


def detector_at(connection: Connection, now: int, *, norms_since: int | None = None) -> Detector:
    """A new one. `norms_since`: with no norms of earlier hours: hundreds that nobody looks at."""
    if norms_since is not None:
        Progress(connection).write(norms=norms_since - HOUR)
    return Detector(connection, clock=lambda: float(now), recount_seconds=0)


def verdicts(connection: Connection, since: int = 0, until: int = 2**32 - 1) -> Verdicts:
    """What is said, and not taken back, of the bins in [since, until)."""
    rows = connection.rows(
        "SELECT tenant_id, kind, agent_id, toUnixTimestamp(bin), severity, round(score, 6) FROM verdicts FINAL "
        "WHERE score > 0 AND bin >= toDateTime({since:UInt32}, 'UTC') AND bin < toDateTime({until:UInt32}, 'UTC')",
        {"since": since, "until": until},
    )
    return {row[:4]: row[4:] for row in rows}
