from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from clickhouse.fleet import OTHER, Fleet
from exporter.counters import PublishedFleet, TenantCounters
from tests.support.exporter_harness import Store, Tenant

HOLD = 15.0


def refresh(counters: TenantCounters, store: Store, now: float = 0.0) -> dict[str, dict[str, Any]]:
    """A refresh as the exporter does it; the rows by tenant."""
    fleet = store.read()
    counters.update(fleet)
    releasable = counters.releasable(now)
    store.record(fleet, [tenant for tenant in releasable if tenant != OTHER], counters.other(releasable))
    counters.release(releasable)
    return rows(counters.publish())


def rows(published: PublishedFleet) -> dict[str, dict[str, Any]]:
    columns = ("tokens_issued", "token_failures", "active_agents", "top_agent_ratio", "last_issued_seconds")
    return {
        tenant_id: {column: getattr(published, column)[row] for column in (*columns, "month_tokens")}
        for row, tenant_id in enumerate(published.tenant_id)
    }


def issued(shown: dict[str, dict[str, Any]]) -> dict[str, int]:
    return {tenant_id: row["tokens_issued"] for tenant_id, row in shown.items()}


def test_a_lower_value_from_the_store_does_not_lower_the_counter() -> None:
    store = Store({"a": Tenant(issued=100, failures=10), "b": Tenant(issued=5)}, published="ab")
    counters = TenantCounters()
    refresh(counters, store)
    store.tenants["a"] = Tenant(issued=90, failures=11, month=3)
    shown = refresh(counters, store)
    assert (shown["a"]["tokens_issued"], shown["a"]["token_failures"], shown["a"]["month_tokens"]) == (100, 11, 3)
    store.tenants["a"] = Tenant(issued=101, failures=11)
    assert issued(refresh(counters, store)) == {"a": 101, "b": 5}


def test_a_new_tenant_is_shown_at_zero_until_scraped_and_held() -> None:
    store = Store({"new": Tenant(issued=5_000, failures=3, agents=2, ratio=0.5, last=9.5, month=4_000)})
    counters = TenantCounters(zero_hold=HOLD)
    at_birth = refresh(counters, store, now=0)["new"]
    assert at_birth == {
        "tokens_issued": 0,
        "token_failures": 0,
        "active_agents": 2,
        "top_agent_ratio": 0.5,
        "last_issued_seconds": 9.5,
        "month_tokens": 4_000,
    }
    assert issued(refresh(counters, store, now=1_000)) == {"new": 0}, "no scrape has seen the zero"
    counters.zeros_scraped(["new"], at=1_000)
    counters.zeros_scraped(["new"], at=1_010)
    assert issued(refresh(counters, store, now=1_014.9)) == {"new": 0}, "the hold is not over"
    assert store.published == set()
    shown = refresh(counters, store, now=1_015)
    assert (shown["new"]["tokens_issued"], shown["new"]["token_failures"]) == (5_000, 3)
    assert store.published == {"new"}
    assert counters.releasable(now=2_000) == [], "the store is told once"


def test_a_tenant_published_by_an_earlier_process_is_shown_at_once() -> None:
    store = Store({"old": Tenant(issued=7), "new": Tenant(issued=7)}, published=["old"])
    counters = TenantCounters()
    assert issued(refresh(counters, store)) == {"old": 7, "new": 0}
    assert counters.publish().held_at_zero == ("new",)


def test_tenants_beyond_the_limit_are_summed() -> None:
    store = Store(
        {
            "a": Tenant(1, 10, 100, 0.1, 11.0, 1_000),
            "b": Tenant(2, 20, 200, 0.2, 22.0, 2_000),
            "c": Tenant(3, 30, 300, 0.3, 44.0, 3_000),
            "d": Tenant(4, 40, 400, 0.4, 33.0, 4_000),
        },
        published="ab",
    )
    store.other = (0, 0)
    counters = TenantCounters(max_tenants=2)
    shown = refresh(counters, store)
    assert list(shown) == ["a", "b", OTHER]
    assert shown[OTHER] == {
        "tokens_issued": 7,
        "token_failures": 70,
        "active_agents": 700,
        "top_agent_ratio": None,
        "last_issued_seconds": 44.0,
        "month_tokens": 7_000,
    }
    published = counters.publish()
    assert (published.tenants, published.dropped) == (4, 2)


def test_other_starts_at_zero_when_it_appears() -> None:
    store = Store({"a": Tenant(issued=1)}, published="a")
    counters = TenantCounters(max_tenants=1, zero_hold=HOLD)
    assert issued(refresh(counters, store)) == {"a": 1}
    store.tenants["b"] = Tenant(issued=50, month=50)
    shown = refresh(counters, store)
    assert (shown[OTHER]["tokens_issued"], shown[OTHER]["month_tokens"]) == (0, 50)
    counters.zeros_scraped([OTHER], at=100)
    assert issued(refresh(counters, store, now=114)) == {"a": 1, OTHER: 0}
    assert issued(refresh(counters, store, now=115)) == {"a": 1, OTHER: 50}
    assert (store.published, store.other) == ({"a"}, (50, 0))


def test_other_waits_for_the_tenants_with_series_of_their_own() -> None:
    """Else a restart before they are remembered could put one of them into `_other`, and take another one out."""
    store = Store({"m": Tenant(issued=5), "z": Tenant(issued=50)})
    counters = TenantCounters(max_tenants=1, zero_hold=HOLD)
    refresh(counters, store)
    counters.zeros_scraped([OTHER], at=0)
    assert issued(refresh(counters, store, now=100)) == {"m": 0, OTHER: 0}
    counters.zeros_scraped(["m", OTHER], at=100)
    assert issued(refresh(counters, store, now=115)) == {"m": 5, OTHER: 50}


def test_other_does_not_wait_for_a_new_tenant_that_was_erased() -> None:
    store = Store({"m": Tenant(issued=5), "z": Tenant(issued=50)})
    counters = TenantCounters(max_tenants=1, zero_hold=HOLD)
    refresh(counters, store)
    del store.tenants["m"]
    counters.zeros_scraped([OTHER], at=0)
    assert issued(refresh(counters, store, now=100)) == {OTHER: 50}


def test_a_tenant_keeps_its_series_when_others_appear_before_it_in_the_alphabet() -> None:
    store = Store({"m": Tenant(issued=1), "n": Tenant(issued=1)}, published="mn")
    counters = TenantCounters(max_tenants=2)
    refresh(counters, store)
    store.tenants["a"] = Tenant(issued=1)
    assert list(refresh(counters, store)) == ["m", "n", OTHER]
    after_restart = TenantCounters(max_tenants=2)
    assert list(refresh(after_restart, store)) == ["m", "n", OTHER]


def test_an_erased_tenant_vanishes_and_comes_back_no_lower() -> None:
    store = Store({"a": Tenant(issued=100), "b": Tenant(issued=1)}, published="ab")
    counters = TenantCounters(max_tenants=2)
    refresh(counters, store)
    del store.tenants["a"]
    assert issued(refresh(counters, store)) == {"b": 1}
    assert counters.publish().tenants == 1
    store.tenants["c"] = Tenant(issued=9)
    assert issued(refresh(counters, store)) == {"b": 1, OTHER: 0}, "the place of an erased tenant is not given away"
    store.tenants["a"] = Tenant(issued=2)
    assert issued(refresh(counters, store)) == {"a": 100, "b": 1, OTHER: 0}


def test_other_keeps_counting_after_one_of_its_tenants_is_erased() -> None:
    store = Store({"a": Tenant(), "b": Tenant(issued=1_000), "c": Tenant(issued=10)}, published="a")
    store.other = (1_000, 0)
    counters = TenantCounters(max_tenants=1)
    assert issued(refresh(counters, store))[OTHER] == 1_010
    del store.tenants["b"]
    store.tenants["c"].issued = 13
    assert issued(refresh(counters, store))[OTHER] == 1_013


def test_a_tenant_without_a_token_has_no_time_of_its_last_one() -> None:
    counters = TenantCounters()
    shown = refresh(counters, Store({"a": Tenant(failures=1), "b": Tenant(issued=1, last=5.0)}))
    assert (shown["a"]["last_issued_seconds"], shown["b"]["last_issued_seconds"]) == (None, 5.0)


@pytest.mark.parametrize(
    ("fleet", "problem"),
    [
        (Fleet(["a", "a"], [1, 2], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [True, True], [True, True]), "twice"),
        (
            Fleet(["a", "b"], [1], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [True, True], [True, True]),
            "differ in length",
        ),
    ],
)
def test_a_fleet_that_cannot_be_shown_changes_nothing(fleet: Fleet, problem: str) -> None:
    store = Store({"x": Tenant(issued=3)}, published="x")
    counters = TenantCounters()
    before = refresh(counters, store)
    with pytest.raises(ValueError, match=problem):
        counters.update(fleet)
    assert rows(counters.publish()) == before


@pytest.mark.parametrize("options", [{"max_tenants": 0}, {"zero_hold": -1.0}])
def test_limits_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        TenantCounters(**options)


class AnyLife(RuleBasedStateMachine):
    """Growth, lagging reads, erasures, scrapes, failing writes and restarts in any order, as Prometheus sees them.

    The store keeps its own promise: the first read of a process is not a lagging one, and what erasure took away
    still counts when the tenant comes back. One fall is possible and allowed for here: that of `_other` in a
    restart after an erasure, because nothing outside the process remembers who was in it.
    """

    TENANTS = st.sampled_from("abcdefg")

    def __init__(self) -> None:
        super().__init__()
        self.totals: dict[str, Tenant] = {}
        self.store = Store()
        self.now = 0.0
        self.last_scraped: dict[str, tuple[int, int]] = {}
        self.first_zero: dict[str, float] = {}
        self.erased = False
        self.limit = 3
        self.restarted = False
        self._start()

    def _start(self) -> None:
        self.counters = TenantCounters(max_tenants=self.limit, zero_hold=HOLD)
        self.page = self.counters.publish()
        self.highest_read: dict[str, int] = {}
        self.with_own_series: set[str] = set()

    @rule(tenant=TENANTS, tokens=st.integers(0, 50), failures=st.integers(0, 3))
    def grow(self, tenant: str, tokens: int, failures: int) -> None:
        total = self.store.tenants[tenant] = self.totals.setdefault(tenant, Tenant())
        total.issued += tokens
        total.failures += failures

    @rule(tenant=TENANTS)
    def erase(self, tenant: str) -> None:
        self.erased |= self.store.tenants.pop(tenant, None) is not None

    @rule()
    def refresh(self) -> None:
        self._refresh(self.store.tenants)

    @precondition(lambda self: self.highest_read)
    @rule(lag=st.dictionaries(TENANTS, st.integers(1, 60) | st.none()))
    def refresh_from_a_lagging_replica(self, lag: dict[str, int | None]) -> None:
        behind = dict(self.store.tenants)
        for tenant in lag.keys() & behind.keys():
            lost, row = lag[tenant], behind.pop(tenant)
            if lost is not None:
                behind[tenant] = Tenant(max(0, row.issued - lost), max(0, row.failures - lost))
        self._refresh(behind)

    def _refresh(self, tenants: dict[str, Tenant]) -> None:
        behind = Store(tenants, self.store.published)
        behind.other = self.store.other
        fleet = behind.read()
        self.counters.update(fleet)
        for tenant, row in tenants.items():
            self.highest_read[tenant] = max(row.issued, self.highest_read.get(tenant, 0))
        releasable = self.counters.releasable(self.now)
        if self.store.write_error is not None:
            return
        newly_published = [tenant for tenant in releasable if tenant != OTHER]
        self.store.record(fleet, newly_published, self.counters.other(releasable))
        self.counters.release(releasable)
        self.page = self.counters.publish()
        self.with_own_series |= set(self.page.tenant_id) - {OTHER}
        assert len(self.with_own_series) <= self.limit
        for label, shown in zip(self.page.tenant_id, self.page.tokens_issued, strict=True):
            if label in self.page.held_at_zero:
                assert shown == 0
            elif label == OTHER:
                total = sum(n for t, n in self.highest_read.items() if t not in self.with_own_series)
                assert shown >= total
                assert shown == total or self.restarted or self.erased
            else:
                assert shown == self.highest_read[label]

    @rule()
    def scrape(self) -> None:
        self.counters.zeros_scraped(self.page.held_at_zero, self.now)
        values = zip(self.page.tokens_issued, self.page.token_failures, strict=True)
        for label, value in zip(self.page.tenant_id, values, strict=True):
            before = self.last_scraped.get(label)
            if before is None:
                assert value == (0, 0), f"{label} was not shown at zero first"
            if before is not None:
                assert value[0] >= before[0], f"{label} fell"
                assert value[1] >= before[1], f"{label} fell"
            if value == (0, 0):
                self.first_zero.setdefault(label, self.now)
            elif label in self.first_zero:
                assert self.now - self.first_zero[label] >= HOLD, f"{label} was not held at zero"
            self.last_scraped[label] = value

    @rule(seconds=st.sampled_from([1.0, 5.0, HOLD]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def the_store_stops_or_starts_taking_writes(self) -> None:
        self.store.write_error = None if self.store.write_error else OSError()

    @rule(limit=st.integers(1, 4))
    def restart(self, limit: int) -> None:
        self.restarted = True
        self.limit = limit
        self._start()

    @rule()
    def in_the_end_all_is_shown(self) -> None:
        self.store.write_error = None
        self.refresh()
        self.scrape()
        self.wait(HOLD)
        self.refresh()
        assert self.page.held_at_zero == ()


TestAnyLife = AnyLife.TestCase
TestAnyLife.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_an_erased_tenant_holds_other_up_over_a_restart() -> None:
    def fleet(issued: list[int], present: list[bool]) -> Fleet:
        ids = ["a", "b", "c"]
        return Fleet(ids, issued, [0] * 3, [0] * 3, [0.0] * 3, [0.0] * 3, [0] * 3, [True] * 3, present, (16, 0))

    before = TenantCounters(max_tenants=1)
    before.update(fleet([5, 7, 9], [True] * 3))
    shown = before.publish()
    assert (shown.tenant_id, shown.tokens_issued) == (["a", OTHER], [5, 16])
    restarted = TenantCounters(max_tenants=1)
    restarted.update(fleet([5, 7, 9], [True, False, True]))  # the store says what was published of the erased one
    shown = restarted.publish()
    assert (shown.tenant_id, shown.tokens_issued, shown.dropped) == (["a", OTHER], [5, 16], 1)
    gone = TenantCounters(max_tenants=3)
    gone.update(fleet([5, 7, 9], [True, False, True]))
    assert gone.publish().tenant_id == ["a", "c"]
