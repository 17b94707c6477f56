"""What the detector costs: history of an hour, a round, and what a round does to the questions asked meanwhile.

    python -m bench.detector [--tenants 10000] [--agents 5] [--days 60]

The store is filled by the engine itself, with agents that work in two of three hours, as counts (no raw events). One
core does the rounds (max_threads 1); another asks for trends, once beside rounds and once alone.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from prometheus_client import CollectorRegistry

from clickhouse.detection.detector import Detector
from clickhouse.open_store import open_store
from clickhouse.store import Store
from clickhouse.tenant import TenantId

DAY: Final = 86_400
END: Final = 1_795_478_400  # 2026-11-24 00:00 UTC

_SLOTS: Final = """
INSERT INTO agent_slot (tenant_id, slot, agent_id, issued, failed, last_issued_ms, issued_5, issued_10, generation)
SELECT concat('org-', toString(tenant)), toDateTime({start:UInt32} + 900 * slot_number, 'UTC'),
    concat('agent-', toString(agent)), 1 + hash % 7, 0, 0, hash % 2, intDiv(hash, 7) % 2, 1
FROM
(
    SELECT intDiv(number, 96 * {agents:UInt32}) AS tenant, intDiv(number, 96) % {agents:UInt32} AS agent,
        number % 96 AS slot_number, cityHash64(number, {start:UInt32}) AS hash
    FROM numbers({tenants:UInt64} * {agents:UInt32} * 96)
)
WHERE hash % 3 > 0"""
_AGENT_DAYS: Final = """
INSERT INTO agent_day SELECT tenant_id, toDate(slot) AS day, agent_id, sum(issued), sum(failed), 1 FROM agent_slot
WHERE slot >= toDateTime({start:UInt32}, 'UTC') AND slot < toDateTime({start:UInt32} + 86400, 'UTC')
GROUP BY tenant_id, day, agent_id"""
_TENANT_DAYS: Final = """
INSERT INTO tenant_day SELECT tenant_id, toDate(slot) AS day, sum(issued), sum(failed), 0, 1 FROM agent_slot
WHERE slot >= toDateTime({start:UInt32}, 'UTC') AND slot < toDateTime({start:UInt32} + 86400, 'UTC')
GROUP BY tenant_id, day"""


def _fill(store: Store, tenants: int, agents: int, days: int) -> None:
    for number in range(days):
        start = END - (days - number) * DAY
        parameters = {"start": start, "tenants": tenants, "agents": agents}
        for statement in (_SLOTS, _AGENT_DAYS, _TENANT_DAYS):
            store.connection.command(statement, parameters)
        if number % 10 == 9:
            print(f"  {number + 1} of {days} days filled", flush=True)


def _p99(questions: list[float]) -> float:
    return statistics.quantiles(questions, n=100)[98] if len(questions) > 1 else float("nan")


def _ask_while(store: Store, tenants: int, is_over: Callable[[], bool]) -> list[float]:
    queries, today = store.queries(), datetime.fromtimestamp(END, UTC).date()
    took: list[float] = []
    while not is_over() or len(took) < 200:
        tenant = TenantId(f"org-{len(took) * 7919 % tenants}")
        started = time.perf_counter()
        queries.trend(tenant, today, 30)
        took.append(time.perf_counter() - started)
    return took


def _judged(detector: Detector, since: int, until: int) -> float:
    started = time.perf_counter()
    detector.judge(since, until)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--agents", type=int, default=5)
    parser.add_argument("--days", type=int, default=60)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        open_store(f"chdb:///{directory}/store", None, CollectorRegistry()) as store,
    ):
        _fill(store, arguments.tenants, arguments.agents, arguments.days)
        hour = END - 4 * 3600
        detector = Detector(store.connection, recount_seconds=0, events=False)
        print(f"history of {arguments.days} days: {_judged(detector, hour - 3600, hour):.1f} s", flush=True)
        first = [_judged(detector, at, at + 300) for at in (hour, hour + 3600)]
        print(f"first round of an hour, with its history: {min(first):.2f} s", flush=True)
        rounds = [_judged(detector, at - 3300, at + 300) for at in range(hour + 4200, hour + 6000, 300)]
        print(f"a round: {statistics.median(rounds):.2f} s (median of {len(rounds)})", flush=True)
        print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB", flush=True)
        alone = _ask_while(store, arguments.tenants, lambda: True)
        over = threading.Event()

        def judge() -> None:
            for at in range(hour + 6000, hour + 7200, 300):
                _judged(detector, at - 3300, at + 300)
            over.set()

        thread = threading.Thread(target=judge)
        thread.start()
        beside = _ask_while(store, arguments.tenants, over.is_set)
        thread.join()
        print(
            f"trend of 30 days, p99: {_p99(alone) * 1000:.1f} ms alone, {_p99(beside) * 1000:.1f} ms while a round is "
            f"under way ({_p99(beside) / _p99(alone):.1f} times; {len(alone)} and {len(beside)} questions)"
        )


if __name__ == "__main__":
    main()
