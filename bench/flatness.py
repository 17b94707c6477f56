"""Flatness: the three endpoints over HTTP on a small and on a large store, asked in turn on the same machine.

    python -m bench.flatness [--small 1000000] [--large 30000000] [--rounds 100]

10 tenants, 200 agents each, 90 days, 1 % of the events twice. The events are made inside the engine (a client would
take most of the time); marking, recompute and questions are the product's own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from clickhouse.open_store import open_store
from tests.support.service import ROOT, Service, clean_environment

TENANTS, AGENTS, DAYS = 10, 200, 90
AT_ONCE = 2_000_000
PATHS = ("tokens?days=90", "agents/activity?days=90", "agents")

_MAKE = """
INSERT INTO events (tenant_id, issued_at, event_id, agent_id, outcome, grant_type, scope, client_ip, expires_in)
SELECT concat('tenant-', toString(cityHash64(n, 3) % {tenants:UInt32})),
    fromUnixTimestamp64Milli(toInt64({first:Int64} + cityHash64(n, 1) % {span:UInt64})),
    lower(hex(MD5(toString(n)))), concat('agent-', toString(cityHash64(n, 2) % {agents:UInt32})),
    if(cityHash64(n, 4) % 50 = 0, 'failure', 'success'), 'client_credentials', 'read write', '192.0.2.1', 3600
FROM (SELECT if(number % 100 = 99, number - 1, number) AS n FROM numbers({start:UInt64}, {count:UInt64}))"""


def fill(path: str, events: int) -> None:
    now = datetime.now(UTC)
    end = int(now.timestamp()) // 900 * 900
    first = end - DAYS * 86_400
    with open_store(f"chdb://{path}", None, CollectorRegistry()) as store:
        slots = {(f"tenant-{tenant}", first + 900 * slot) for tenant in range(TENANTS) for slot in range(DAYS * 96)}
        store.writer.mark(slots)
        for start in range(0, events, AT_ONCE):
            store.connection.command(
                _MAKE,
                {
                    "tenants": TENANTS,
                    "agents": AGENTS,
                    "first": first * 1000,
                    "span": DAYS * 86_400_000,
                    "start": start,
                    "count": min(AT_ONCE, events - start),
                },
            )
        started = time.monotonic()
        store.upkeep.settle()
        print(f"  {events:,} events: recompute of everything {time.monotonic() - started:.0f} s", flush=True)


def ask(service: Service, question: str, number: int, token: str) -> tuple[float, Any]:
    started = time.perf_counter()
    status, body = service.get(f"/api/v1/analytics/{question}", token=token)
    assert status == 200, body
    return time.perf_counter() - started, body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=1_000_000)
    parser.add_argument("--large", type=int, default=30_000_000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--fill", nargs=2, metavar=("PATH", "EVENTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fill:
        fill(arguments.fill[0], int(arguments.fill[1]))
        return
    sizes = (arguments.small, arguments.large)
    with tempfile.TemporaryDirectory() as name:
        services = []
        for size in sizes:
            directory = Path(name) / str(size)
            directory.mkdir()
            command = [sys.executable, "-m", "bench.flatness", "--fill", str(directory / "store"), str(size)]
            subprocess.run(command, cwd=ROOT, env=clean_environment(), check=True)
            services.append(Service(directory).start())
        try:
            report(services, sizes, arguments.rounds)
        finally:
            for service in services:
                service.__exit__(None, None, None)


def report(services: list[Service], sizes: tuple[int, int], rounds: int) -> None:
    tokens = [[service.token(f"tenant-{tenant}") for tenant in range(TENANTS)] for service in services]
    for question in PATHS:
        seconds: list[list[float]] = [[], []]
        total = [0, 0]
        for number in range(rounds + 5):
            for side, service in enumerate(services):
                tenant = number % TENANTS
                took, body = ask(service, question, tenant, tokens[side][tenant])
                if number >= 5:
                    seconds[side].append(took)
                    total[side] += sum(row.get("count", row.get("tokenCount", 0)) for row in body["data"])
        small, large = (statistics.median(side) * 1000 for side in seconds)
        print(
            f"{question:<26} {sizes[0]:>12,}: {small:6.1f} ms   {sizes[1]:>12,}: {large:6.1f} ms   "
            f"ratio {large / small:.2f}   (tokens counted {total[0]:,} / {total[1]:,})",
            flush=True,
        )


if __name__ == "__main__":
    main()
