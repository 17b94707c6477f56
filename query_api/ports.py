"""What the API needs from the rest of the program, named by role."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Protocol

from clickhouse.agent_detail import AgentDetail
from clickhouse.alert import Alert
from clickhouse.event import Event
from clickhouse.tenant import TenantId


class Questions(Protocol):
    """The three questions. They block, and raise clickhouse.errors.StoreUnavailableError."""

    def trend(self, tenant: TenantId, today: date, days: int) -> list[tuple[date, int]]:
        """Tokens of each of the `days` calendar days ending `today`, oldest first, zero days included."""
        ...

    def activity(self, tenant: TenantId, today: date, days: int) -> list[tuple[int, int, int]]:
        """(weekday with 0 for Sunday, hour, tokens) of the non-zero cells of those days, sorted."""
        ...

    def agents(self, tenant: TenantId, month: date, limit: int, after: tuple[str, int] | None) -> list[tuple[str, int]]:
        """(agent, tokens) of the calendar month that `month` lies in, largest first, ties by agent.

        At most `limit`, beginning after the pair `after` (None: with the largest).
        """
        ...


class AlertSource(Protocol):
    """What the detector has found. Blocks, and raises clickhouse.errors.StoreUnavailableError."""

    def of_tenant(self, tenant: TenantId, since: int, now: int) -> list[Alert]:
        """The alerts that lasted at `since` or began later (Unix seconds), newest first."""
        ...


class DetailSource(Protocol):
    """One agent, closely. Blocks, and raises clickhouse.errors.StoreUnavailableError."""

    def of(self, tenant: TenantId, agent: str, now: datetime, days: int) -> AgentDetail | None:
        """The `days` UTC days that end with today; None for an agent that the tenant never had."""
        ...


class EventWriter(Protocol):
    """The way into the store."""

    async def write(self, events: Sequence[Event]) -> None:
        """Returns once the events are durable. Raises StoreUnavailableError: none of them is promised then."""
        ...


class Readiness(Protocol):
    """Whether the store can be used."""

    def check(self) -> None:
        """Blocks shortly. Raises clickhouse.errors.StoreError with the reason."""
        ...
