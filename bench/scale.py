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
from typing import Final, NamedTuple

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
REFRESH_SECONDS: Final = 5.0


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


class Shard(NamedTuple):
    """What a shard does: events and slots a second, bytes an event, seconds to read all of its tenants."""

    written: float
    recounted: float
    size: float
    fleet: float


def measured(store: Store, tenants: int) -> Shard:
    """Medians of the rounds."""
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
    totals, started = store.totals(), time.perf_counter()
    assert len(totals.read().tenant_id) == tenants
    fleet = time.perf_counter() - started
    return Shard(sorted(writes)[middle], sorted(recounts)[middle], float(size) / (tenants * ROUNDS), fleet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=20_000)
    tenants = parser.parse_args().tenants
    with (
        tempfile.TemporaryDirectory() as directory,
        open_store(f"chdb://{Path(directory) / 'store'}", None, CollectorRegistry()) as store,
    ):
        shard = measured(store, tenants)
    average = WANTED_EVENTS_A_DAY / DAY_SECONDS
    peak = average * PEAK
    print(
        f"a shard writes {shard.written:,.0f} events/s and recounts {shard.recounted:,.0f} slots/s; an event takes "
        f"{shard.size:.0f} bytes; all {tenants:,} tenants are read in {shard.fleet:.2f} s"
    )
    print(f"{WANTED_TENANTS:,} tenants, {WANTED_EVENTS_A_DAY:,} events a day: {average:,.0f}/s; {peak:,.0f}/s at peak")
    fleet = shard.fleet * WANTED_TENANTS / tenants
    for what, needed in (
        ("writing at the peak", peak / shard.written),
        # An event in a segment of its own is a slot recounted; recounts may take a fifth of the time.
        ("recounts at the peak, a fifth of the time", peak / (shard.recounted * 0.2)),
        ("recounts at the peak, all of the time", peak / shard.recounted),
        (f"the exporter's query in {REFRESH_SECONDS:.0f} s", fleet / REFRESH_SECONDS),
    ):
        print(f"  {what:<44}{needed:6.1f} shards")
    terabytes = WANTED_EVENTS_A_DAY * DAYS_KEPT * shard.size / 1e12
    print(f"  {f'disk of {DAYS_KEPT} days, one replica of each shard':<44}{terabytes:6.2f} TB")


if __name__ == "__main__":
    main()
