"""The history: hours of agents and tenants, and what follows from them for the coming hour.

Everything here is recomputed from the slots and nothing added to: an hour whose slots were recounted, because events
came late or were removed, is made anew, whatever it held before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Final

from clickhouse.connection import Connection
from clickhouse.detection.progress import Progress
from clickhouse.detection.statements import statement

logger = logging.getLogger(__name__)

HOUR: Final = 3600
DAY: Final = 86_400
DAYS: Final = 60  # that anything is compared with

# One core: questions and commits come first, and nobody waits for this.
IN_THE_BACKGROUND: Final = {"max_threads": 1}

# Of tenant_slot, which keeps a row of zeros where an agent was erased, and agent_slot does not.
_STALE_HOURS: Final = """
SELECT DISTINCT toUnixTimestamp(toStartOfHour(slot)) AS hour FROM tenant_slot
WHERE generation > {after:UInt64} AND slot >= toDateTime({since:UInt32}, 'UTC')
    AND slot < toDateTime({until:UInt32}, 'UTC')
ORDER BY hour"""

# A recount takes its generation before it reads, and its rows are there when it ends: rows with a lower one than those
# seen may still come for this long.
RECOUNT_SECONDS: Final = 600.0
# Of one statement, which bounds its memory.
_HOURS_AT_ONCE: Final = 24
# What an hour changes in others: windows of its tokens end in the next one, silences for days, spreads for 60 hours.
_SPREAD_HOURS: Final = 60


class History:
    """Brings the detector's tables up to an hour. One thread at a time; every method raises StoreError."""

    def __init__(self, connection: Connection, progress: Progress, recount_seconds: float = RECOUNT_SECONDS) -> None:
        """`recount_seconds`: how long a recount may be under way; 0 if nobody writes meanwhile."""
        self._connection = connection
        self._progress = progress
        self._margin_ns = int(recount_seconds * 1e9)

    def bring_to(self, hour: int) -> None:
        """Makes all that the bins of the hour that starts at `hour` (Unix seconds) are compared with.

        Once for each hour: hours of the past whose slots were recounted since are made anew, and no others.
        """
        reached = self._progress.read()
        if min(reached.get("hours", 0), reached.get("norms", 0)) >= hour:
            return
        generation = self._progress.generation()
        first = hour - (DAYS + 2) * DAY
        stale = {
            int(start)
            for (start,) in self._connection.rows(
                _STALE_HOURS,
                {"after": max(0, reached.get("slots", 0) - self._margin_ns), "since": first, "until": hour},
                IN_THE_BACKGROUND,
            )
        }
        # Hours without any slot count as well: a tenant was silent in them.
        stale |= {*range(max(first, reached.get("hours", min(stale, default=hour))), hour, HOUR)}
        self._remake(stale, hour)
        self._progress.write(slots=generation, hours=hour)
        day = hour // DAY * DAY
        if reached.get("habits", 0) < day:
            self._run("agent_habits", day=day)
            self._progress.write(habits=day)
        self._norms(hour, reached.get("norms", min(stale, default=hour) - HOUR))

    def rewind(self, hour: int) -> None:
        """Lets the hours from `hour` on be made once more, because the clock was set back to it.

        What was made of them when they were still to come was made without their tokens, and of those that the clock
        left out there are no norms of agents: everything they do would be a record.
        """
        reached = self._progress.read()
        if reached.get("hours", 0) > hour:
            logger.warning("detector: the clock was set back; what was made of the hours to come is made again")
            before = hour // DAY * DAY - DAY
            self._progress.write(hours=hour, norms=hour - HOUR, habits=min(reached.get("habits", 0), before))

    def _norms(self, hour: int, known: int) -> None:
        """Of the hour, and at first of those before it in which a silence may have begun."""
        for start in range(max(hour - 8 * DAY, known + HOUR), hour + HOUR, HOUR):
            self._run("tenant_norms", hour=start, hours=hours_like(start))
            if start == hour:
                self._run("agent_norms", hour=start, hours=_hours_of_same_dates(start))
            self._progress.write(norms=start)

    def _remake(self, stale: set[int], hour: int) -> None:
        for since, until in _stretches(stale | {start + HOUR for start in stale}, hour):
            self._run("agent_hours", since=since, until=until)
            self._run("agent_wastes", since=since, until=until)
            self._run("agent_networks", since=since, until=until)
        for since, until in _stretches(_widened(stale, 48), hour):
            self._run("tenant_hours", since=since, until=until)
        for since, until in _stretches(_widened(stale, _SPREAD_HOURS), hour):
            self._run("agent_spread", since=since, until=until)
        if len(stale) > 2 * _HOURS_AT_ONCE:
            logger.info("detector: %d hours of history made", len(stale))

    def _run(self, name: str, **parameters: object) -> None:
        self._connection.command(
            statement(name), {**parameters, "generation": self._progress.generation()}, **IN_THE_BACKGROUND
        )


def hours_like(hour: int) -> list[int]:
    """The same hour of each of the days before, and its neighbours, as starts in Unix seconds."""
    return [hour - ago * DAY + near for ago in range(1, DAYS + 1) for near in (-HOUR, 0, HOUR)]


def _hours_of_same_dates(hour: int) -> list[int]:
    """The same, but no neighbour is of another date: the last hour of a day has its first one next to it."""
    date, hours = hour // DAY * DAY, [(hour + near) % DAY for near in (-HOUR, 0, HOUR)]
    return [date - ago * DAY + of_day for ago in range(1, DAYS + 1) for of_day in hours]


def _widened(starts: Iterable[int], hours: int) -> set[int]:
    return {start + later * HOUR for start in starts for later in range(hours)}


def _stretches(starts: set[int], until: int) -> Iterator[tuple[int, int]]:
    """Half-open stretches of at most a day that cover these hours before `until`."""
    first = last = None
    for start in sorted(start for start in starts if start < until):
        if first is not None and last is not None and start == last and start - first < _HOURS_AT_ONCE * HOUR:
            last = start + HOUR
            continue
        if first is not None and last is not None:
            yield first, last
        first, last = start, start + HOUR
    if first is not None and last is not None:
        yield first, last
