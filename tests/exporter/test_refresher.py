from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from clickhouse.errors import StoreError, StoreUnavailableError
from clickhouse.fleet import Fleet
from exporter.metrics import ExporterMetrics
from exporter.negotiation import Format
from exporter.refresher import Refresher
from tests.support.exporter_harness import Clock, Store, Tenant, curl, running, samples, tenant_series

ISSUED = tenant_series("tokens_issued_total", "a")


def own(registry: CollectorRegistry, name: str) -> float:
    value = registry.get_sample_value(f"agentidp_analytics_{name}")
    assert value is not None
    return value


def test_a_store_that_is_down_leaves_the_last_snapshot_until_it_is_too_old() -> None:
    async def scenario() -> None:
        clock, store = Clock(), Store({"a": Tenant(issued=5)}, published="a")
        async with running(store, clock=clock, interval=50.0, max_age=300.0) as exporter:

            async def scrape() -> dict[str, str]:
                return samples((await curl(exporter.url())).decode())

            assert (await scrape())["agentidp_analytics_up"] == "1.0"
            refreshes = own(exporter.registry, "refreshes_total")
            store.error = StoreUnavailableError("no answer")
            clock.now += 300
            await exporter.refresher.refresh_once()
            held = await scrape()
            assert held[ISSUED] == "5"
            assert held["agentidp_analytics_up"] == "0.0"
            assert held["agentidp_analytics_snapshot_age_seconds"] == "300.0"
            assert own(exporter.registry, "refreshes_total") == refreshes + 1
            assert held["agentidp_analytics_refresh_failures_total"] == "1.0"
            clock.now += 1
            dropped = await scrape()
            assert not [series for series in dropped if series.startswith("agentidp_tenant_")]
            assert dropped["agentidp_analytics_up"] == "0.0"
            assert dropped["agentidp_analytics_snapshot_age_seconds"] == "301.0"
            store.error = None
            await exporter.refresher.refresh_once()
            back = await scrape()
            assert (back[ISSUED], back["agentidp_analytics_up"]) == ("5", "1.0")
            assert back["agentidp_analytics_snapshot_age_seconds"] == "0.0"

    asyncio.run(scenario())


def test_a_store_that_was_never_there_shows_an_age_since_the_start() -> None:
    async def scenario() -> None:
        clock, store = Clock(), Store()
        store.error = StoreUnavailableError("no answer")
        async with running(store, clock=clock) as exporter:
            clock.now += 77
            body = samples((await curl(exporter.url())).decode())
            assert body["agentidp_analytics_up"] == "0.0"
            assert body["agentidp_analytics_snapshot_age_seconds"] == "77.0"
            assert not [series for series in body if series.startswith("agentidp_tenant_")]

    asyncio.run(scenario())


def test_a_clock_that_was_set_back_gives_no_negative_age() -> None:
    async def scenario() -> None:
        clock = Clock()
        async with running(Store({"a": Tenant()}), clock=clock) as exporter:
            clock.now -= 1_000
            assert own(exporter.registry, "snapshot_age_seconds") == 0
            assert exporter.refresher.snapshot() is not None

    asyncio.run(scenario())


def test_a_new_tenant_waits_for_a_real_scrape_and_is_remembered_before_it_is_shown() -> None:
    async def scenario() -> None:
        clock, store = Clock(), Store({"a": Tenant(issued=5_000)})
        async with running(store, clock=Clock(), timer=clock, zero_hold=15.0) as exporter:

            async def refreshed() -> str:
                await exporter.refresher.refresh_once()
                return samples((await curl(exporter.url())).decode())[ISSUED]

            clock.now += 60
            await exporter.refresher.refresh_once()
            await curl("--head", exporter.url())
            clock.now += 60
            assert await refreshed() == "0", "neither time nor a HEAD request is a scrape"
            assert own(exporter.registry, "zero_held_tenants") == 1
            clock.now += 14
            assert await refreshed() == "0"
            clock.now += 1
            store.write_error = StoreUnavailableError("disk full")
            assert await refreshed() == "0", "what the store cannot remember would fall after a restart"
            assert own(exporter.registry, "up") == 0
            assert own(exporter.registry, "refresh_failures_total") == 1
            store.write_error = None
            assert await refreshed() == "5000"
            assert store.published == {"a"}
            assert own(exporter.registry, "zero_held_tenants") == 0
            assert own(exporter.registry, "up") == 1

    asyncio.run(scenario())


def test_what_is_recorded_is_what_is_shown_also_when_the_store_says_less_now() -> None:
    async def scenario() -> None:
        store = Store({"a": Tenant(issued=100)}, published="a")
        async with running(store) as exporter:
            store.tenants["a"] = Tenant(issued=150)
            store.write_error = StoreUnavailableError("disk full")
            await exporter.refresher.refresh_once()
            store.tenants["a"] = Tenant(issued=120)
            store.write_error = None
            await exporter.refresher.refresh_once()
            shown = samples((await curl(exporter.url())).decode())[ISSUED]
            assert (store.recorded, shown) == ({"a": 150}, "150")

    asyncio.run(scenario())


class SlowStore(Store):
    """Blocks in `read` until it is let go, and notices two calls at once."""

    def __init__(self) -> None:
        super().__init__({"a": Tenant(issued=1)}, published="a")
        self.entered = threading.Event()
        self.let_go = threading.Event()
        self.running = 0
        self.overlapped = False

    def read(self) -> Fleet:
        self.running += 1
        self.overlapped |= self.running > 1
        self.entered.set()
        self.let_go.wait(10)
        try:
            return super().read()
        finally:
            self.running -= 1


def test_one_refresh_at_a_time_and_scrapes_do_not_wait_for_it() -> None:
    async def scenario() -> None:
        store = SlowStore()
        async with running(store, refreshed=False) as exporter:
            waiting = [asyncio.create_task(exporter.refresher.refresh_once()) for _ in range(5)]
            await asyncio.to_thread(store.entered.wait, 10)
            assert (await curl(exporter.url("/-/healthy"))) == b"Healthy\n"
            assert b"agentidp_analytics_up 0.0" in await curl(exporter.url())
            store.let_go.set()
            await asyncio.gather(*waiting)
            assert store.calls == 1
            await exporter.refresher.refresh_once()
            assert store.calls == 2
            assert not store.overlapped

    asyncio.run(scenario())


def test_stopping_waits_for_the_refresh_under_way() -> None:
    async def scenario() -> None:
        store = SlowStore()
        refresher = Refresher(store, ExporterMetrics(CollectorRegistry(), "1"))
        await refresher.start()
        await asyncio.to_thread(store.entered.wait, 10)
        stopping = asyncio.create_task(refresher.stop())
        await asyncio.sleep(0)
        assert not stopping.done()
        store.let_go.set()
        await stopping
        assert store.running == 0
        assert refresher.ready

    asyncio.run(scenario())


def test_it_refreshes_by_itself_and_says_so() -> None:
    async def scenario() -> None:
        registry = CollectorRegistry()
        store = Store({"a": Tenant(issued=1)}, published="a")
        refresher = Refresher(store, ExporterMetrics(registry, "1"), interval=0.01)

        async def until(condition: Callable[[], bool]) -> None:
            async with asyncio.timeout(10), refresher.refreshed:
                await refresher.refreshed.wait_for(condition)

        await refresher.start()
        for number in range(2, 5):
            store.tenants["a"].issued = number
            line = f'tokens_issued_total{{tenant_id="a"}} {number}\n'.encode()
            await until(partial(shows, refresher, line))
        store.error = StoreError("gone")
        await until(lambda: own(registry, "up") == 0)
        store.error = None
        await until(lambda: own(registry, "up") == 1)
        await refresher.stop()

    asyncio.run(scenario())


def shows(refresher: Refresher, line: bytes) -> bool:
    snapshot = refresher.snapshot()
    return snapshot is not None and line in b"".join(snapshot.bodies[Format.TEXT].plain(b""))


def test_failures_are_logged_once_each_and_without_what_drivers_put_into_their_messages(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="exporter")

    async def scenario() -> None:
        store = Store({"a": Tenant()})
        async with running(store) as exporter:
            for error in (
                StoreUnavailableError("the store does not answer"),
                StoreUnavailableError("the store does not answer"),
                ConnectionError("http://user:s3cret@db:8123 refused"),
                None,
            ):
                store.error = error
                await exporter.refresher.refresh_once()

    asyncio.run(scenario())
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert messages[0] == "cannot refresh from the store: StoreUnavailableError: the store does not answer"
    assert messages[1].startswith("cannot refresh from the store: ConnectionError at ")
    assert messages[2] == "refreshing from the store works again"
    assert "s3cret" not in caplog.text


def test_a_fleet_with_a_repeated_tenant_is_a_failure_and_not_a_broken_scrape() -> None:
    class Repeating(Store):
        def read(self) -> Fleet:
            return Fleet(["a", "a"], [1, 1], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [True, True], [True, True])

    async def scenario() -> None:
        async with running(Repeating()) as exporter:
            assert own(exporter.registry, "up") == 0
            assert not exporter.refresher.ready

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("options", "setting"),
    [({"interval": 0.0}, "interval"), ({"interval": 10.0, "max_age": 9.0}, "max_age"), ({"max_tenants": 0}, "max_ten")],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], setting: str) -> None:
    with pytest.raises(ValueError, match=setting):
        Refresher(Store(), ExporterMetrics(CollectorRegistry(), "1"), **options)
