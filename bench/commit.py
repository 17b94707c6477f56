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

from prometheus_client import CollectorRegistry

from clickhouse.event import Event
from clickhouse.open_store import open_store
from tests.support.service import INGEST_TOKEN, Service

CONNECTIONS = 64


def event(serial: str) -> Event:
    return Event("org-a", int(time.time() * 1000), serial, "agent-1")


def one_by_one(dsn: str, seconds: float) -> float:
    """Events a second when each is written, durably, before the next one."""
    with open_store(dsn, None, CollectorRegistry()) as store:
        store.writer.write([event("warm-up")])
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            store.writer.write([event(f"one-{count}")])
            count += 1
        return count / (time.perf_counter() - started)


async def many_connections(host: str, port: int, seconds: float) -> tuple[float, list[float]]:
    """Events a second and latencies (s) when each of 64 connections posts one event at a time.

    The client writes HTTP by hand: a full HTTP client would take the core that the service needs.
    """
    latencies: list[float] = []
    deadline = time.perf_counter() + seconds

    async def post(connection: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        serial = 0
        while time.perf_counter() < deadline:
            body = json.dumps(event(f"{connection}-{serial}")._asdict()).encode()
            head = (
                f"POST /api/v1/events HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {INGEST_TOKEN}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            started = time.perf_counter()
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b'"rejected":[]}')
            assert answer.startswith(b"HTTP/1.1 200"), answer
            latencies.append(time.perf_counter() - started)
            serial += 1
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(post(connection) for connection in range(CONNECTIONS)))
    return len(latencies) / (time.perf_counter() - started), latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        single = one_by_one(f"chdb://{directory / 'single'}", seconds)
        with Service(directory) as service:
            grouped, latencies = asyncio.run(many_connections("127.0.0.1", service.port, seconds))
        print(f"one by one, no HTTP       {single:10,.0f} events/s")
        print(f"{CONNECTIONS} connections, HTTP      {grouped:10,.0f} events/s")
        print(f"ratio                     {grouped / single:10.1f}")
        p99 = statistics.quantiles(latencies, n=100)[98]
        print(
            f"latency over HTTP         {statistics.median(latencies) * 1000:10.1f} ms median, {p99 * 1000:.1f} ms p99"
        )


if __name__ == "__main__":
    main()
