"""The naive count in plain Python: the answers that every part of the service has to give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

from clickhouse.event import Event


class Oracle:
    """Holds every event that was answered, as a set of identities with their contents."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._contents: dict[tuple[str, int, str], set[tuple[int, str]]] = {}
        self.add(events)

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            identity = (event.tenant_id, event.issued_at, event.event_id)
            content = (("success", "failure").index(event.outcome), event.agent_id)
            self._contents.setdefault(identity, set()).add(content)

    def tenants(self) -> list[str]:
        return sorted({tenant for tenant, _, _ in self._contents})

    def counted(self, tenant: str) -> list[tuple[datetime, str]]:
        """(moment, agent) of every issued token: one for an identity, under its smallest content."""
        found = []
        for (owner, issued_at, _), contents in self._contents.items():
            outcome, agent = min(contents)
            if owner == tenant and outcome == 0:
                found.append((datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=issued_at), agent))
        return found

    def failures(self, tenant: str) -> int:
        return sum(1 for (owner, _, _), contents in self._contents.items() if owner == tenant and min(contents)[0] == 1)

    def total(self, tenant: str) -> int:
        return len(self.counted(tenant))

    def trend(self, tenant: str, today: date, days: int) -> list[tuple[date, int]]:
        counts = Counter(moment.date() for moment, _ in self.counted(tenant))
        return [(today - timedelta(days=back), counts[today - timedelta(days=back)]) for back in reversed(range(days))]

    def activity(self, tenant: str, today: date, days: int) -> list[tuple[int, int, int]]:
        window = {day for day, _ in self.trend(tenant, today, days)}
        cells = Counter(
            (moment.isoweekday() % 7, moment.hour) for moment, _ in self.counted(tenant) if moment.date() in window
        )
        return [(dow, hour, count) for (dow, hour), count in sorted(cells.items())]

    def agents(self, tenant: str, month: date) -> list[tuple[str, int]]:
        counts = Counter(
            agent for moment, agent in self.counted(tenant) if (moment.year, moment.month) == (month.year, month.month)
        )
        return sorted(counts.items(), key=lambda item: (-item[1], item[0].encode()))
