"""Shares: token buckets, turns at the query threads, and what one tenant's flood does to another's question."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clickhouse.connection import Connection
from query_api.fair_queue import FairQueue, QueueFullError
from query_api.rate_limit import TokenBuckets, Verdict, rate_limit_headers
from query_api.settings import ApiSettings, Limits, Rate
from tests.support.api_harness import Clock, run, serving

TOKENS = "/api/v1/analytics/tokens"


@settings(deadline=None)
@given(
    st.builds(Rate, st.sampled_from([0.5, 1, 3, 50]), st.integers(1, 20)),
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 30)), min_size=1, max_size=60),
)
def test_a_bucket_never_gives_more_than_its_rate_and_keeps_its_word(rate: Rate, steps: list[tuple[float, int]]) -> None:
    timer = Clock(0.0)
    buckets = TokenBuckets(rate, timer)
    given_away, largest = 0, 0
    for wait, cost in steps:
        timer.now += wait
        verdict = buckets.take("k", cost)
        if verdict.allowed:
            given_away, largest = given_away + cost, max(largest, cost)
        else:
            timer.now += verdict.more_in
            assert buckets.take("k", 1).allowed
            given_away += 1
        assert 0 <= verdict.remaining <= rate.burst
        # The last one may have been more than was there, once: a batch beyond the burst must get through somehow.
        assert given_away <= rate.burst + timer.now * rate.per_second + largest + 1e-6


def test_buckets_are_apart_and_bounded_in_number() -> None:
    timer = Clock(0.0)
    buckets = TokenBuckets(Rate(1, 1), timer, capacity=3)
    assert buckets.take("a").allowed
    assert not buckets.take("a").allowed
    assert buckets.take("b").allowed
    for key in "cdefg":
        buckets.take(key)
    assert len(buckets) == 3
    timer.now += 1000
    assert buckets.take("b") == Verdict(True, 0, 1)


def test_rate_limit_headers_follow_the_draft() -> None:
    rate = Rate(2, 7)
    buckets = TokenBuckets(rate, Clock(0.0))
    assert rate_limit_headers("tenant", rate, buckets.take("a")) == {
        "RateLimit-Policy": '"tenant";q=7;w=4',
        "RateLimit": '"tenant";r=6;t=1',
    }
    assert buckets.take("b", 0) == Verdict(True, 7, 0)
    assert buckets.take("c", 27) == Verdict(True, 0, 11)


@asynccontextmanager
async def turn(queue: FairQueue, tenant: str) -> AsyncIterator[None]:
    await queue.enter(tenant)
    try:
        yield
    finally:
        queue.leave(tenant)


def test_a_slot_goes_to_the_waiting_tenants_in_turn() -> None:
    async def scenario() -> list[str]:
        queue, order, release = FairQueue(2, 2, 10), [], asyncio.Event()

        async def query(tenant: str) -> None:
            async with turn(queue, tenant):
                order.append(tenant)
                if len(order) <= 2:
                    await release.wait()

        tasks = [asyncio.create_task(query(name)) for name in ("a1", "a2")]
        await asyncio.sleep(0)
        for tenant in ("flood", "flood", "flood", "flood", "quiet", "other"):
            tasks.append(asyncio.create_task(query(tenant)))
            await asyncio.sleep(0)
        release.set()
        await asyncio.gather(*tasks)
        return order

    assert run(scenario())[2:] == ["flood", "quiet", "other", "flood", "flood", "flood"]


def test_a_tenant_has_its_share_of_slots_and_of_waiting_and_no_more() -> None:
    async def scenario() -> None:
        queue, release = FairQueue(3, 2, 1), asyncio.Event()
        running: list[str] = []

        async def query(tenant: str) -> None:
            async with turn(queue, tenant):
                running.append(tenant)
                await release.wait()

        tasks = [asyncio.create_task(query("a")) for _ in range(4)]
        await asyncio.sleep(0.0)
        tasks.append(asyncio.create_task(query("b")))
        await asyncio.sleep(0.0)
        assert running == ["a", "a", "b"]
        release.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [type(None)] * 3 + [QueueFullError, type(None)]

    run(scenario())


def test_a_place_in_the_queue_that_is_given_up_is_free_again() -> None:
    async def scenario() -> None:
        queue = FairQueue(1, 1, 2)
        await queue.enter("a")
        for _ in range(3):
            waiting = [asyncio.create_task(queue.enter("a")) for _ in range(2)]
            await asyncio.sleep(0)
            assert not [task for task in waiting if task.done()]
            with pytest.raises(QueueFullError):
                await queue.enter("a")
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
        queue.leave("a")
        await queue.enter("b")

    run(scenario())


@pytest.mark.parametrize("seed", range(20))
def test_no_slot_is_lost_when_waiting_is_given_up(seed: int) -> None:
    chance = random.Random(seed)

    async def scenario() -> None:
        queue = FairQueue(3, 2, 5)
        active: list[str] = []

        async def query(tenant: str) -> None:
            async with turn(queue, tenant):
                active.append(tenant)
                assert len(active) <= 3
                assert active.count(tenant) <= 2
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                active.remove(tenant)

        async def cancellable(tenant: str) -> None:
            try:
                await query(tenant)
            except asyncio.CancelledError:
                if tenant in active:
                    active.remove(tenant)
                raise

        tasks: list[asyncio.Task[None]] = []
        for _ in range(300):
            tasks.append(asyncio.create_task(cancellable(chance.choice("abcd"))))
            if chance.random() < 0.3:
                await asyncio.sleep(0)
            if chance.random() < 0.4:
                chance.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # All three slots are there again: three queries of two tenants run at once.
        barrier = asyncio.Barrier(3)

        async def meet(tenant: str) -> None:
            async with turn(queue, tenant):
                await barrier.wait()

        await asyncio.wait_for(asyncio.gather(meet("a"), meet("a"), meet("b")), 5)

    run(scenario())


def test_a_tenant_that_asks_too_often_is_429_and_others_are_not(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path, limits=Limits(tenant_requests=Rate(0.5, 2))) as api:
            first = await api.get(TOKENS)
            assert (first.status, first.headers["RateLimit"]) == (200, '"tenant";r=1;t=2')
            assert first.headers["RateLimit-Policy"] == '"tenant";q=2;w=4'
            assert (await api.get(f"{TOKENS}?days=0")).status == 400
            reply = await api.get(f"{TOKENS}?days=0")
            assert (reply.status, reply.code, reply.headers["Retry-After"]) == (429, "RATE_LIMITED", "2")
            assert reply.headers["RateLimit"] == '"tenant";r=0;t=2'
            assert (await api.get(TOKENS, tenant="org-2")).status == 200
            assert (await api.request("GET", TOKENS)).status == 401
            api.timer.now += 2
            assert (await api.get(TOKENS)).status == 200
            assert api.metric("rate_limited_total", scope="tenant") == 1

    run(scenario())


def test_without_a_rate_nothing_is_said_about_one(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path, limits=Limits(tenant_requests=None)) as api:
            assert not [name for name in (await api.get(TOKENS)).headers if name.startswith("RateLimit")]

    run(scenario())


def test_one_tenants_flood_leaves_threads_for_others(embedded_store: Connection, tmp_path: Path) -> None:
    limits = Limits(tenant_queries=2, tenant_queries_waiting=3, tenant_requests=None)

    async def scenario() -> None:
        async with serving(embedded_store, tmp_path, query_threads=3, limits=limits) as api:
            held = api.questions.hold["org-1"] = threading.Event()
            flood = [asyncio.create_task(api.get(TOKENS)) for _ in range(9)]
            refused: list[asyncio.Task[object]] = []
            while len(refused) < 4:
                done, _ = await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
                refused += [task for task in done if task not in refused]
                flood = [task for task in flood if task not in done]
            for task in refused:
                reply = task.result()
                assert (reply.status, reply.headers["Retry-After"]) == (429, "1")  # type: ignore[attr-defined]
            assert (await api.get(TOKENS, tenant="org-2")).status == 200
            assert api.questions.calls.count(("trend", "org-1")) == 2
            held.set()
            assert [(await task).status for task in flood] == [200] * 5

    run(scenario())


def test_a_query_that_takes_too_long_is_503_and_keeps_its_turn(embedded_store: Connection, tmp_path: Path) -> None:
    limits = Limits(tenant_queries=1)

    async def scenario() -> None:
        async with serving(embedded_store, tmp_path, query_threads=2, limits=limits, query_seconds=1.0) as api:
            held = api.questions.hold["org-1"] = threading.Event()
            for _ in range(2):
                reply = await api.get(TOKENS)
                assert (reply.status, reply.code, reply.headers["Retry-After"]) == (503, "UNAVAILABLE", "5")
            # The second one waited for the first: its thread is busy, whoever has stopped waiting for it.
            assert api.questions.calls == [("trend", "org-1")]
            assert (await api.get(TOKENS, tenant="org-2")).status == 200
            held.set()
            while (await api.get(TOKENS)).status != 200:
                pass

    run(scenario())


def test_requests_in_flight_are_bounded_and_probes_are_not(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path, limits=Limits(requests_in_flight=1)) as api:
            held = api.questions.hold["org-1"] = threading.Event()
            arrived = asyncio.Event()
            loop = asyncio.get_running_loop()
            api.questions.arrived = lambda tenant: loop.call_soon_threadsafe(arrived.set)  # type: ignore[assignment]
            first = asyncio.create_task(api.get(TOKENS))
            await arrived.wait()
            reply = await api.get(TOKENS, tenant="org-2")
            assert (reply.status, reply.code, reply.headers["Retry-After"]) == (503, "UNAVAILABLE", "1")
            assert (await api.request("GET", "/healthz")).status == 200
            assert (await api.request("GET", "/readyz")).status == 200
            assert api.metric("http_requests_in_flight") == 1
            held.set()
            assert (await first).status == 200
            assert api.metric("http_requests_in_flight") == 0
            assert (await api.get(TOKENS, tenant="org-2")).status == 200

    run(scenario())


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="query threads"):
        ApiSettings(query_threads=4, limits=Limits(tenant_queries=5))
    with pytest.raises(ValueError, match="--tls-cert and --tls-key"):
        ApiSettings(tls_cert=Path("cert.pem"))
