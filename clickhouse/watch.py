"""The watch: what the detector says of all tenants now, for the exporter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from clickhouse.alerts import Alerts
from clickhouse.connection import Connection

_JUDGED: Final = "SELECT max(reached) FROM detection FINAL WHERE name = 'judged'"
_SCORES: Final = """
SELECT kind, tenant_id, max(score) FROM verdicts FINAL
WHERE kind IN ('spike', 'silence') AND bin >= toDateTime({since:UInt32}, 'UTC') AND score > 0
GROUP BY kind, tenant_id"""
_USUAL: Final = """
SELECT tenant_id, usual FROM tenant_norm FINAL
WHERE place = intDiv({now:UInt32}, 3600) % 384 AND hour = toStartOfHour(toDateTime({now:UInt32}, 'UTC'))"""

# A tenant whose last alert is older has no series any more.
REMEMBERED_SECONDS: Final = 7 * 86_400
# The band is where counts of an ordinary hour lie: three deviations of a negative binomial with this dispersion, by the
# two-thirds power that makes it symmetric.
_DISPERSION: Final = 0.3
_DEVIATIONS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Watch:
    """`judged`: end of the last bin that was judged, Unix seconds; 0: none yet."""

    judged: int = 0
    alerts: dict[str, dict[tuple[str, str], int]] = field(default_factory=dict)  # tenant -> (kind, severity) -> lasting
    spike: dict[str, float] = field(default_factory=dict)  # highest score of an agent in the last bin; 1 is the limit
    silence: dict[str, float] = field(default_factory=dict)
    expected: dict[str, tuple[float, float, float]] = field(default_factory=dict)  # lower, expected, upper of 5 minutes


class WatchReader:
    """Reads the watch; the last one again if the detector has said nothing since. One thread; raises StoreError."""

    def __init__(self, connection: Connection, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._clock = clock
        self._alerts = Alerts(connection)
        self._last = Watch()
        self._changes: int | None = None

    def read(self) -> Watch:
        """The watch now."""
        changes = self._connection.changes
        if changes is not None and changes == self._changes:
            return self._last
        judged = int(self._connection.rows(_JUDGED)[0][0])
        if judged != self._last.judged:
            self._last = self._ask(judged)
        self._changes = changes
        return self._last

    def _ask(self, judged: int) -> Watch:
        now = int(self._clock())
        alerts: dict[str, dict[tuple[str, str], int]] = {}
        for alert in self._alerts.of_all(now - REMEMBERED_SECONDS, now):
            of_tenant = alerts.setdefault(alert.tenant_id, {})
            if alert.until is None:
                key = (alert.kind, alert.severity)
                of_tenant[key] = of_tenant.get(key, 0) + 1
        scores: dict[str, dict[str, float]] = {"spike": {}, "silence": {}}
        for kind, tenant, score in self._connection.rows(_SCORES, {"since": judged - 300}):
            scores[kind][tenant] = float(score)
        usual = self._connection.rows(_USUAL, {"now": now})
        return Watch(
            judged=judged,
            alerts=alerts,
            spike=scores["spike"],
            silence=scores["silence"],
            expected={tenant: band(float(mean)) for tenant, mean in usual},
        )


def band(mean: float) -> tuple[float, float, float]:
    """(lower, expected, upper) tokens of five minutes of which `mean` are usual."""
    if mean <= 0:
        return 0.0, 0.0, 0.0
    width = 2 / 3 * _DEVIATIONS * math.sqrt((1 + _DISPERSION * mean) / mean)
    return mean * max(0.0, 1 - width) ** 1.5, mean, mean * (1 + width) ** 1.5


def merged(watches: Iterable[Watch]) -> Watch:
    """One watch of several shards, whose tenants are apart; judged as far as the last of them."""
    parts = list(watches)
    return Watch(
        judged=min((part.judged for part in parts), default=0),
        alerts={tenant: counts for part in parts for tenant, counts in part.alerts.items()},
        spike={tenant: score for part in parts for tenant, score in part.spike.items()},
        silence={tenant: score for part in parts for tenant, score in part.silence.items()},
        expected={tenant: bounds for part in parts for tenant, bounds in part.expected.items()},
    )
