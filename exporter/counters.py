"""From what the store says to what is published: floors, zero first, and the tenants beyond the limit.

Prometheus reads any fall of a counter as a restart from zero and adds the whole new value: one token less on a
counter of a million looks like a burst of a million. And it cannot see the first value of a new series as an
increase. Hence the two rules here: a counter never falls, and a new one is shown at 0 before its true value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import TypeVar

from clickhouse.fleet import OTHER, Fleet
from exporter.settings import ExporterSettings

_Number = TypeVar("_Number", int, float)
_Cell = TypeVar("_Cell", int, float, str)


@dataclass(frozen=True, slots=True)
class PublishedFleet:
    """Equal-length columns, one row a `tenant_id` label, in order of first appearance, `_other` last.

    None stands for "no sample".
    """

    tenant_id: list[str]
    tokens_issued: list[int]
    token_failures: list[int]
    active_agents: list[int]
    top_agent_ratio: list[float | None]
    last_issued_seconds: list[float | None]
    month_tokens: list[int]
    held_at_zero: tuple[str, ...]  # rows whose counters are
    tenants: int  # in the store now, with or without a series of their own
    dropped: int  # of these, the ones inside `_other`


class TenantCounters:
    """What was published of every tenant since this process started. Not thread-safe: one refresh at a time.

    The first `max_tenants` tenants to appear get series of their own and keep that place until the process ends,
    erased or not; among those that appear together, the ones an earlier process published come first, so that a
    restart leaves them where they were. All others are summed in `_other`.
    """

    def __init__(
        self, *, max_tenants: int = ExporterSettings.max_tenants, zero_hold: float = ExporterSettings.zero_hold
    ) -> None:
        """`zero_hold`: seconds from the first scrape that carried a new tenant's 0 to its true value.

        Raises ValueError for a limit below 1 or a negative hold.
        """
        if max_tenants < 1:
            raise ValueError(f"max_tenants is {max_tenants}; it must be at least 1")
        if zero_hold < 0:
            raise ValueError(f"zero_hold is {zero_hold} s; it cannot be negative")
        self._max_tenants = max_tenants
        self._zero_hold = zero_hold
        self._place: dict[str, int] = {}  # every tenant ever seen -> its position in the lists below
        self._ids: list[str] = []
        self._issued: list[int] = []  # the floors, kept for tenants that are gone too
        self._failures: list[int] = []
        self._held: dict[str, float | None] = {}  # held at 0 -> when a scrape first carried that 0
        self._fleet = Fleet()
        self._rows: list[int] = []  # position -> row of the fleet; one past its end for a tenant that is gone
        self._present: list[bool] = []
        self._other = (0, 0)  # what is shown of `_other`, and what that is above the sum of its tenants
        self._other_carry = (0, 0)

    def update(self, fleet: Fleet) -> Fleet:
        """Takes in what the store says now; returns it with the counters that are to be recorded and shown.

        They are higher than the store's if it says less than before, which it may when recording failed meanwhile.
        Raises ValueError, with nothing changed, if columns differ in length or a tenant comes twice: Prometheus
        would reject the whole scrape for one repeated series.
        """
        _require_equal_lengths(fleet)
        if fleet.tenant_id != self._fleet.tenant_id:
            self._place_tenants(fleet)
        self._fleet = fleet
        self._present = [row < len(fleet.present) and fleet.present[row] for row in self._rows]
        issued, failures = self._by_place(fleet.tokens_issued), self._by_place(fleet.token_failures)
        self._issued, self._failures = _larger(self._issued, issued), _larger(self._failures, failures)
        self._sum_other(fleet.other or (0, 0))
        if (self._issued, self._failures) == (issued, failures):
            return fleet
        places = [self._place[tenant_id] for tenant_id in fleet.tenant_id]
        return replace(
            fleet,
            tokens_issued=[self._issued[place] for place in places],
            token_failures=[self._failures[place] for place in places],
        )

    def _sum_other(self, recorded: tuple[int, int]) -> None:
        """`_other` is the sum of its tenants, and what it showed for tenants that have left it since.

        A higher limit lets tenants out of it at a restart. What they had stays: a sum without them would be less.
        """
        sums = (sum(self._issued[self._max_tenants :]), sum(self._failures[self._max_tenants :]))
        floors = (max(recorded[0], self._other[0]), max(recorded[1], self._other[1]))
        carry = [max(now, floor - total) for now, floor, total in zip(self._other_carry, floors, sums, strict=True)]
        self._other_carry = (carry[0], carry[1])
        self._other = (sums[0] + carry[0], sums[1] + carry[1])

    def _place_tenants(self, fleet: Fleet) -> None:
        rows = {tenant_id: row for row, tenant_id in enumerate(fleet.tenant_id)}
        if len(rows) != len(fleet.tenant_id):
            raise ValueError("the fleet has a tenant twice")
        new = [tenant_id for tenant_id in fleet.tenant_id if tenant_id not in self._place]
        had_other = self._has_other
        for tenant_id in sorted(new, key=lambda t: not fleet.published[rows[t]]):
            place = self._place[tenant_id] = len(self._ids)
            self._ids.append(tenant_id)
            self._issued.append(0)
            self._failures.append(0)
            if place < self._max_tenants and not fleet.published[rows[tenant_id]]:
                self._held[tenant_id] = None
        if self._has_other and not had_other and fleet.other is None:
            self._held[OTHER] = None
        self._rows = [rows.get(tenant_id, len(rows)) for tenant_id in self._ids]

    @property
    def _has_other(self) -> bool:
        return len(self._ids) > self._max_tenants

    def _by_place(self, column: list[_Number]) -> list[_Number]:
        """A column of the fleet, by position instead of by row; 0 for a tenant that is gone."""
        padded = list(column)
        padded.append(0)
        return [padded[row] for row in self._rows]

    def zeros_scraped(self, tenant_ids: Iterable[str], at: float) -> None:
        """Notes that a scrape at `at` (monotonic seconds) carried these zeros; only a tenant's first one counts."""
        for tenant_id in tenant_ids:
            if tenant_id in self._held and self._held[tenant_id] is None:
                self._held[tenant_id] = at

    def releasable(self, now: float) -> list[str]:
        """Whose 0 was scraped and whose hold is over: record them in the store, then call `release`.

        In that order: a process that dies in between finds them published, and shows more than 0, never less.
        `_other` waits until no tenant is held, so that it is shown for the first time with all who are in it.
        """
        over = [tenant_id for tenant_id in self._held if tenant_id != OTHER and self._hold_is_over(tenant_id, now)]
        if OTHER in self._held and self._hold_is_over(OTHER, now) and {*self._held_rows()} <= {OTHER, *over}:
            over.append(OTHER)
        return over

    def other(self, released: Iterable[str] = ()) -> tuple[int, int] | None:
        """(issued, failures) that `_other` shows once `released` are released; None while it is held or absent."""
        return self._other if self._has_other and (OTHER not in self._held or OTHER in released) else None

    def release(self, tenant_ids: Iterable[str]) -> None:
        """Shows the true counters of `tenant_ids` from now on."""
        for tenant_id in tenant_ids:
            del self._held[tenant_id]

    def _hold_is_over(self, tenant_id: str, now: float) -> bool:
        scraped = self._held[tenant_id]
        return scraped is not None and now - scraped >= self._zero_hold

    def _held_rows(self) -> tuple[str, ...]:
        return tuple(t for t in self._held if t == OTHER or self._present[self._place[t]])

    def publish(self) -> PublishedFleet:
        """The rows to show for the last fleet taken in."""
        issued, failures = self._issued.copy(), self._failures.copy()
        for tenant_id in self._held:
            if tenant_id != OTHER:
                issued[self._place[tenant_id]] = failures[self._place[tenant_id]] = 0
        issued, failures = self._shown(issued, sum), self._shown(failures, sum)
        if self._has_other:
            issued[-1], failures[-1] = self.other() or (0, 0)
        ratio: list[float | None] = [*self._shown(self._by_place(self._fleet.top_agent_ratio), max)]
        if self._has_other:
            ratio[-1] = None  # a share of one tenant's month: there is none of many
        last = self._shown(self._by_place(self._fleet.last_issued_seconds), max)
        tenants, own = sum(self._present), sum(self._present[: self._max_tenants])
        return PublishedFleet(
            tenant_id=self._shown(self._ids, lambda _: OTHER),
            tokens_issued=issued,
            token_failures=failures,
            active_agents=self._shown(self._by_place(self._fleet.active_agents), sum),
            top_agent_ratio=ratio,
            last_issued_seconds=[seconds or None for seconds in last],
            month_tokens=self._shown(self._by_place(self._fleet.month_tokens), sum),
            held_at_zero=self._held_rows(),
            tenants=tenants,
            dropped=tenants - own,
        )

    def _shown(self, values: list[_Cell], combine: Callable[[Sequence[_Cell]], _Cell]) -> list[_Cell]:
        """The values of the tenants with series of their own that are not gone, then that of `_other`."""
        shown = list(compress(values[: self._max_tenants], self._present))
        if self._has_other:
            shown.append(combine(values[self._max_tenants :]))
        return shown


def _larger(floors: list[int], values: list[int]) -> list[int]:
    """Like `map(max, ...)`, in a quarter of its time."""
    return [value if value > floor else floor for floor, value in zip(floors, values, strict=True)]


def _require_equal_lengths(fleet: Fleet) -> None:
    columns = (
        fleet.tokens_issued,
        fleet.token_failures,
        fleet.active_agents,
        fleet.top_agent_ratio,
        fleet.last_issued_seconds,
        fleet.month_tokens,
        fleet.published,
        fleet.present,
    )
    if any(len(column) != len(fleet.tenant_id) for column in columns):
        raise ValueError("the columns of the fleet differ in length")
