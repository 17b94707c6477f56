"""What a shard carries, and how many it takes: measured here, calculated for 1 M tenants and 1 B events a day.

    python -m bench.scale [--tenants 20000]

An embedded store stands for a shard: the same statements on the same engine, without network and replication. Recounts
are measured at their worst: every event alone in its slot, as with many tenants that each send one now and then.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from clickhouse.event import Event
from clickhouse.open_store import open_store
from clickhouse.store import Store

DAY_SECONDS: Final = 86_400
WANTED_TENANTS: Final = 1_000_000
WANTED_EVENTS_A_DAY: Final = 1_000_000_000
PEAK: Final = 3.0  # of the day's average
ROUNDS: Final = 6
AGENTS: Final = 5
DAYS_KEPT: Final = 90


def events_of(tenants: int, round_number: int, moment: float) -> list[Event]:
    """One event of each tenant, in its order, at about `moment`."""
    pick = random.Random(round_number)
    return [
        Event(
            f"tenant-{number:07}",
            int((moment - pick.random() * 800) * 1000),
            f"{pick.getrandbits(128):032x}",
            f"agent-{pick.randrange(AGENTS)}",
        )
        for number in range(tenants)
    ]


def measured(store: Store, tenants: int) -> tuple[float, float, float]:
    """(events written, slots recounted, events on disk per byte) a second, of the last rounds' medians."""
    writes, recounts = [], []
    for round_number in range(ROUNDS):
        # A slot further each time, so that each one has to be made and none is only raised.
        made = events_of(tenants, round_number, time.time() - 1_000 * (ROUNDS - round_number))
        started = time.perf_counter()
        for start in range(0, tenants, 10_000):
            store.writer.write(made[start : start + 10_000])
        writes.append(tenants / (time.perf_counter() - started))
        slots, started = store.segments.dirty_slots(), time.perf_counter()
        store.upkeep.settle()
        recounts.append(slots / (time.perf_counter() - started))
        print(
            f"  round {round_number + 1}: {writes[-1]:8,.0f} events/s written, {recounts[-1]:8,.0f} slots/s", flush=True
        )
    for table in ("events", "agent_slot", "tenant_slot", "agent_day", "tenant_day"):
        store.connection.command(f"OPTIMIZE TABLE {table} FINAL")
    size = store.connection.rows(
        "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = currentDatabase()"
    )[0][0]
    middle = ROUNDS // 2
    return sorted(writes)[middle], sorted(recounts)[middle], float(size) / (tenants * ROUNDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=20_000)
    tenants = parser.parse_args().tenants
    with (
        tempfile.TemporaryDirectory() as directory,
        open_store(f"chdb://{Path(directory) / 'store'}", None, CollectorRegistry()) as store,
    ):
        written, recounted, size = measured(store, tenants)
    average = WANTED_EVENTS_A_DAY / DAY_SECONDS
    peak = average * PEAK
    print(
        f"a shard writes {written:,.0f} events/s, recounts {recounted:,.0f} slots/s, keeps an event in {size:.0f} bytes"
    )
    print(
        f"{WANTED_TENANTS:,} tenants, {WANTED_EVENTS_A_DAY:,} events a day: {average:,.0f}/s, {peak:,.0f}/s at the peak"
    )
    for what, needed in (
        ("writing at the peak", peak / written),
        # An event in a segment of its own is a slot recounted; recounts may take a fifth of the time.
        ("recounts at the peak, a fifth of the time", peak / (recounted * 0.2)),
        ("recounts at the peak, all of the time", peak / recounted),
    ):
        print(f"  {what:<44}{needed:6.1f} shards")
    print(
        f"  disk of {DAYS_KEPT} days{'':<29}{WANTED_EVENTS_A_DAY * DAYS_KEPT * size / 1e12:6.2f} TB, a replica of all"
    )


if __name__ == "__main__":
    main()
