"""The history: hours of agents and tenants, and what follows from them for the coming hour.

Everything here is recomputed from the slots and nothing added to: an hour whose slots were recounted, because events
came late or were removed, is made anew, whatever it held before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from clickhouse.connection import Connection
from clickhouse.detection.progress import Progress
from clickhouse.detection.statements import statement

logger = logging.getLogger(__name__)

HOUR: Final = 3600
DAY: Final = 86_400
DAYS: Final = 60  # that anything is compared with
_NEAR: Final = (-HOUR, 0, HOUR)

# One core: questions and commits come first, and nobody waits for this.
IN_THE_BACKGROUND: Final = {"max_threads": 1, "max_bytes_before_external_group_by": 1024**3}

# Of tenant_slot, which keeps a row of zeros where an agent was erased, and agent_slot does not.
_STALE_HOURS: Final = """
SELECT DISTINCT toUnixTimestamp(toStartOfHour(slot)) AS hour FROM tenant_slot
WHERE generation > {after:UInt64} AND slot >= toDateTime({since:UInt32}, 'UTC')
    AND slot < toDateTime({until:UInt32}, 'UTC')
ORDER BY hour"""

# A recount takes its generation before it reads, and its rows are there when it ends: rows with a lower one than those
# seen may still come for this long.
RECOUNT_SECONDS: Final = 600.0
# Agents times hours of one statement, which bounds its memory; a day at most.
_AGENT_HOURS_AT_ONCE: Final = 50_000
_MOST_HOURS_AT_ONCE: Final = 24
_AGENTS: Final = """
SELECT uniq(tenant_id, agent_id) FROM agent_day WHERE day >= toDate(toDateTime({since:UInt32}, 'UTC'))"""
# What an hour changes in others: windows of its tokens end in the next one, silences for days, spreads for 60 hours.
_SPREAD_HOURS: Final = 60


class History:
    """Brings the detector's tables up to an hour. One thread at a time; every method raises StoreError."""

    def __init__(
        self, connection: Connection, progress: Progress, recount_seconds: float, *, events: bool = True
    ) -> None:
        """`recount_seconds`: how long a recount may be under way, 0 if nobody writes; `events`: see Detector."""
        self._events = events
        self._connection = connection
        self._progress = progress
        self._margin_ns = int(recount_seconds * 1e9)

    def bring_to(self, since: int, until: int) -> None:
        """Makes all that the bins in [since, until), Unix seconds of one day, are compared with.

        Once for each hour: hours of the past whose slots were recounted since are made anew, and no others.
        """
        reached = self._progress.read()
        over = until // HOUR * HOUR  # the hours before are
        last = (until - 1) // HOUR * HOUR
        if reached.get("hours", 0) >= over and reached.get("norms", 0) >= last:
            return
        generation = self._progress.generation()
        stale = self._stale(reached, over) if reached.get("hours", 0) < over else set()
        self._remake(stale, over)
        day = since // DAY * DAY
        if reached.get("habits", 0) < day:
            self._run("agent_habits", day=day)
        # Of the days before too, at first: a silence may have begun in them.
        known = reached.get("norms", min(stale, default=last) - HOUR)
        for start in range(max(day - 8 * DAY, (known + HOUR) // DAY * DAY), day + DAY, DAY):
            wanted = [hour for hour in range(start, min(start + DAY, last + HOUR), HOUR) if hour > known]
            self._norms(start, wanted, is_of_past=start < day)
        self._progress.write(
            slots=generation,
            hours=max(over, reached.get("hours", 0)),
            habits=max(day, reached.get("habits", 0)),
            norms=max(last, known),
        )

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

    def _stale(self, reached: Mapping[str, int], over: int) -> set[int]:
        """Hours to be made: those of recounted slots, and all since the last time, with slots or silent."""
        first = over - (DAYS + 2) * DAY
        parameters = {"after": max(0, reached.get("slots", 0) - self._margin_ns), "since": first, "until": over}
        changed = self._connection.rows(_STALE_HOURS, parameters, IN_THE_BACKGROUND)
        stale = {int(start) for (start,) in changed}
        return stale | {*range(max(first, reached.get("hours", min(stale, default=over))), over, HOUR)}

    def _norms(self, day: int, hours: Sequence[int], *, is_of_past: bool) -> None:
        targets = [(hour - day) // HOUR for hour in hours]
        if targets:
            self._run("tenant_norms", day=day, targets=targets, sources=hours_like(hours))
            if not is_of_past:
                self._run("agent_norms", day=day, targets=targets, sources=_hours_of_same_dates(hours))

    def _remake(self, stale: set[int], hour: int) -> None:
        if not stale:
            return
        agents = self._connection.rows(_AGENTS, {"since": min(stale)}, IN_THE_BACKGROUND)[0][0]
        most = max(1, min(_MOST_HOURS_AT_ONCE, _AGENT_HOURS_AT_ONCE // max(1, agents)))
        for since, until in _stretches(stale | {start + HOUR for start in stale}, hour, most):
            self._run("agent_hours", since=since, until=until)
            if self._events:
                self._run("agent_wastes", since=since, until=until)
                self._run("agent_networks", since=since, until=until)
        for since, until in _stretches(_widened(stale, 48), hour, most):
            self._run("tenant_hours", since=since, until=until)
        for since, until in _stretches(_widened(stale, _SPREAD_HOURS), hour, most):
            self._run("agent_spread", since=since, until=until)
        if len(stale) > 2 * _MOST_HOURS_AT_ONCE:
            logger.info("detector: %d hours of history made", len(stale))

    def _run(self, name: str, **parameters: object) -> None:
        self._connection.command(
            statement(name), {**parameters, "generation": self._progress.generation()}, **IN_THE_BACKGROUND
        )


def hours_like(hours: Iterable[int]) -> list[int]:
    """The same hours of each of the days before, and their neighbours, as starts in Unix seconds."""
    return sorted({hour - ago * DAY + near for hour in hours for ago in range(1, DAYS + 1) for near in _NEAR})


def _hours_of_same_dates(hours: Iterable[int]) -> list[int]:
    """The same, but no neighbour is of another date: the last hour of a day has its first one next to it."""
    return sorted({
        hour // DAY * DAY - ago * DAY + (hour + near) % DAY
        for hour in hours for ago in range(1, DAYS + 1) for near in _NEAR
    })  # fmt: skip


def _widened(starts: Iterable[int], hours: int) -> set[int]:
    return {start + later * HOUR for start in starts for later in range(hours)}


def _stretches(starts: set[int], until: int, most: int) -> Iterator[tuple[int, int]]:
    """Half-open stretches of at most `most` hours that cover these hours before `until`."""
    first = last = None
    for start in sorted(start for start in starts if start < until):
        if first is not None and last is not None and start == last and start - first < most * HOUR:
            last = start + HOUR
            continue
        if first is not None and last is not None:
            yield first, last
        first, last = start, start + HOUR
    if first is not None and last is not None:
        yield first, last
