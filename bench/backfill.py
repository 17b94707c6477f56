"""Backfill: how fast `ingest` takes a file, in how much memory, and how soon a store is ready after kill -9.

python -m bench.backfill [--events 10000000]
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from backports import zstd
from prometheus_client import CollectorRegistry

from clickhouse.open_store import open_store
from tests.support.service import ROOT, Service, clean_environment

TENANTS, AGENTS, DAYS = 10, 200, 90
_SIZES = (
    "SELECT table, sum(bytes_on_disk) AS size FROM system.parts WHERE active GROUP BY table ORDER BY size DESC LIMIT 3"
)


def write_file(path: Path, events: int, seed: int = 1) -> None:
    """Events of 90 days in order of time, as a provider's log has them, 1 % of them twice."""
    pick = random.Random(seed)
    end = int(time.time() * 1000) - 60_000
    step = DAYS * 86_400_000 / events
    with zstd.open(path, "wt", level=1) as file:
        for number in range(events):
            at = int(end - (events - number) * step)
            line = (
                f'{{"event_id":"{pick.getrandbits(128):032x}","tenant_id":"tenant-{pick.randrange(TENANTS)}",'
                f'"agent_id":"agent-{pick.randrange(AGENTS)}","issued_at":{at},"grant_type":"client_credentials",'
                f'"scope":"read write","client_ip":"192.0.2.{number % 250}","expires_in":3600}}\n'
            )
            file.write(line)
            if number % 100 == 0:
                file.write(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        file = directory / "events.ndjson.zst"
        write_file(file, arguments.events)
        print(f"{arguments.events:,} events, {file.stat().st_size / 1e6:,.0f} MB .zst")
        dsn = f"chdb://{directory / 'store'}"
        command = [sys.executable, "-m", "agentidp_analytics", "ingest", "--dsn", dsn, str(file)]
        started = time.monotonic()
        subprocess.run(command, cwd=ROOT, env=clean_environment(), check=True)
        seconds = time.monotonic() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"ingest: {seconds:.0f} s, {arguments.events / seconds:,.0f} events/s, peak {peak:,.0f} MiB RSS")
        with Service(directory, dsn=dsn) as service:
            service.post([{"event_id": "x", "tenant_id": "tenant-1", "agent_id": "a", "issued_at": time.time()}])
            service.kill()
            started = time.monotonic()
            service.start()
            print(f"ready after kill -9: {time.monotonic() - started:.1f} s")
            assert service.get("/api/v1/analytics/tokens?days=1", "tenant-1")[0] == 200
        with open_store(dsn, None, CollectorRegistry()) as store:
            store.connection.command("OPTIMIZE TABLE events FINAL")
            for table, size in store.connection.rows(_SIZES):
                print(f"{table} on disk, merged: {size / arguments.events:.1f} bytes an event")


if __name__ == "__main__":
    main()
