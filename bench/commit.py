"""Group commit: single-event posts over 64 connections against inserts one by one, on the same store and machine.

python -m bench.commit [--seconds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp
from prometheus_client import CollectorRegistry

from clickhouse.event import Event
from clickhouse.keeper import Keeper
from tests.service import INGEST_TOKEN, Service

CONNECTIONS = 64


def event(serial: str) -> Event:
    return Event("org-a", int(time.time() * 1000), serial, "agent-1")


def one_by_one(dsn: str, seconds: float) -> float:
    """Events a second when each is written, durably, before the next one."""
    with Keeper(dsn, None, CollectorRegistry()) as keeper:
        keeper.writer.write([event("warm-up")])
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            keeper.writer.write([event(f"one-{count}")])
            count += 1
        return count / (time.perf_counter() - started)


async def many_connections(url: str, seconds: float) -> tuple[float, list[float]]:
    """Events a second and latencies (s) when each of 64 connections posts one event at a time."""
    latencies: list[float] = []
    deadline = time.perf_counter() + seconds
    headers = {"Authorization": f"Bearer {INGEST_TOKEN}", "Content-Type": "application/json"}

    async def post(session: aiohttp.ClientSession, connection: int) -> None:
        serial = 0
        while time.perf_counter() < deadline:
            body = json.dumps(event(f"{connection}-{serial}")._asdict())
            started = time.perf_counter()
            async with session.post(f"{url}/api/v1/events", data=body, headers=headers) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()
            latencies.append(time.perf_counter() - started)
            serial += 1

    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(connector=connector) as session:
        started = time.perf_counter()
        await asyncio.gather(*(post(session, connection) for connection in range(CONNECTIONS)))
        return len(latencies) / (time.perf_counter() - started), latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        single = one_by_one(f"chdb://{directory / 'single'}", seconds)
        with Service(directory) as service:
            grouped, latencies = asyncio.run(many_connections(service.url, seconds))
        print(f"one by one, no HTTP       {single:10,.0f} events/s")
        print(f"{CONNECTIONS} connections, HTTP      {grouped:10,.0f} events/s")
        print(f"ratio                     {grouped / single:10.1f}")
        p99 = statistics.quantiles(latencies, n=100)[98]
        print(
            f"latency over HTTP         {statistics.median(latencies) * 1000:10.1f} ms median, {p99 * 1000:.1f} ms p99"
        )


if __name__ == "__main__":
    main()
