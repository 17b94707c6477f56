"""A trace through the service's own detection: the store, the rollups and the detector's statements as they are."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, date, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
from prometheus_client import CollectorRegistry

from bench.detection.alarm import Alarm
from bench.detection.traces import COUNTS_FILE, Trace, open_events, read_counts
from clickhouse.alerts import verdicts_of
from clickhouse.detection.detector import Detector
from clickhouse.event import Event, parse_event
from clickhouse.open_store import open_store
from clickhouse.store import Store

DAY: Final = 86_400
WARM_UP_DAYS: Final = 34  # what comes before is history only
_ROWS_AT_ONCE: Final = 500_000
_EVENTS_AT_ONCE: Final = 20_000
_ANY_TIME: Final = 2**45  # no event is of the future


def replay(*, traces: Path | None, events: Path | None, progress: Callable[[str], None]) -> list[Alarm]:
    """What the service would have raised on `traces`, a directory with counts.csv.gz, or on `events`, a file.

    Counts are written into the rollup that the detector reads, events go in as any source's do. Then every bin is
    judged, a day at a time.
    """
    parts = os.cpu_count() or 1
    progress(f"{parts} processes, each with a share of the tenants")
    with ProcessPoolExecutor(parts, mp_context=get_context("spawn")) as pool:
        shares = [pool.submit(_replay_share, traces, events, part, parts) for part in range(parts)]
        return sorted((alarm for share in shares for alarm in share.result()), key=lambda alarm: alarm.start)


def _replay_share(traces: Path | None, events: Path | None, part: int, parts: int) -> list[Alarm]:
    """The alarms of the tenants that fall to a process; what one tenant does changes nothing for another."""

    def progress(text: str) -> None:
        if part == 0:
            print(f"          {text}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as directory:
        store = open_store(f"chdb:///{directory}/store", None, CollectorRegistry())
        with store:
            if traces is not None:
                first, last = _load_counts(store, read_counts(traces / COUNTS_FILE), part, parts, progress)
            elif events is not None:
                first, last = _load_events(store, events, part, parts, progress)
            else:
                raise ValueError("neither counts nor events were given")
            detector = Detector(store.connection, recount_seconds=0, events=events is not None)
            start = min(first // DAY * DAY + WARM_UP_DAYS * DAY, last)
            for day in range(start, last, DAY):
                detector.judge(day, min(day + DAY, last))
                if (day - start) // DAY % 5 == 0:
                    progress(f"judged {datetime.fromtimestamp(day, UTC):%Y-%m-%d}")
            return [Alarm(*row) for row in verdicts_of(store.connection)]


def _share_of(tenant: str, parts: int) -> int:
    return zlib.crc32(tenant.encode()) % parts


def _load_counts(store: Store, whole: Trace, part: int, parts: int, progress: Callable[[str], None]) -> tuple[int, int]:
    """The rollups as they would be had every token been an event; returns the first moment and the end."""
    mine = np.array([_share_of(tenant, parts) == part for tenant, _ in whole.agents])[whole.agent]
    trace = Trace(whole.agents, whole.agent[mine], whole.start[mine], whole.count[mine])
    if len(trace.count) == 0:
        return whole.first, whole.end
    slot = trace.start // 900 * 900
    place = (trace.start - slot) // 300
    key = slot * len(trace.agents) + trace.agent
    unique, inverse = np.unique(key, return_inverse=True)
    bins = np.zeros((len(unique), 3), dtype=np.int64)
    np.add.at(bins, (inverse, place), trace.count)
    slots, agents = unique // len(trace.agents), unique % len(trace.agents)
    for begin in range(0, len(unique), _ROWS_AT_ONCE):
        rows = slice(begin, begin + _ROWS_AT_ONCE)
        names = [trace.agents[number] for number in agents[rows].tolist()]
        _insert(store, "agent_slot", {
            "tenant_id": [tenant for tenant, _ in names], "slot": slots[rows].tolist(),
            "agent_id": [agent for _, agent in names], "issued": bins[rows].sum(axis=1).tolist(),
            "issued_5": bins[rows, 1].tolist(), "issued_10": bins[rows, 2].tolist(),
        })  # fmt: skip
        progress(f"{min(begin + _ROWS_AT_ONCE, len(unique)):,} of {len(unique):,} slots written")
    _load_tenant_slots(store, trace)
    _load_days(store, trace)
    return whole.first, whole.end


def _load_tenant_slots(store: Store, trace: Trace) -> None:
    """What tells the detector which hours there are."""
    slots: dict[tuple[str, int], int] = {}
    key = trace.start // 900 * len(trace.agents) + trace.agent
    unique, inverse = np.unique(key, return_inverse=True)
    sums = np.bincount(inverse, weights=trace.count).astype(np.int64)
    for number, issued in zip(unique.tolist(), sums.tolist(), strict=True):
        of = trace.agents[number % len(trace.agents)][0], number // len(trace.agents) * 900
        slots[of] = slots.get(of, 0) + issued
    _insert(store, "tenant_slot", {
        "tenant_id": [tenant for tenant, _ in slots], "slot": [slot for _, slot in slots], "issued": [*slots.values()],
    })  # fmt: skip


def _load_days(store: Store, trace: Trace) -> None:
    days: dict[tuple[str, date, str], int] = {}
    key = trace.start // DAY * len(trace.agents) + trace.agent
    unique, inverse = np.unique(key, return_inverse=True)
    sums = np.bincount(inverse, weights=trace.count).astype(np.int64)
    for number, issued in zip(unique.tolist(), sums.tolist(), strict=True):
        tenant, agent = trace.agents[number % len(trace.agents)]
        days[tenant, date(1970, 1, 1) + timedelta(days=number // len(trace.agents)), agent] = issued
    tenants: dict[tuple[str, date], int] = {}
    for (tenant, day, _), issued in days.items():
        tenants[tenant, day] = tenants.get((tenant, day), 0) + issued
    _insert(store, "agent_day", {
        "tenant_id": [tenant for tenant, _, _ in days], "day": [day for _, day, _ in days],
        "agent_id": [agent for _, _, agent in days], "issued": [*days.values()],
    })  # fmt: skip
    _insert(store, "tenant_day", {
        "tenant_id": [tenant for tenant, _ in tenants], "day": [day for _, day in tenants],
        "issued": [*tenants.values()],
    })  # fmt: skip


def _insert(store: Store, table: str, columns: dict[str, list[Any]]) -> None:
    rows = len(next(iter(columns.values())))
    store.connection.insert(table, (*columns, "generation"), [*columns.values(), [1] * rows])


def _load_events(store: Store, path: Path, part: int, parts: int, progress: Callable[[str], None]) -> tuple[int, int]:
    first, last, written = None, 0, 0
    for batch in _batches(path):
        first = batch[0].issued_at // 1000 if first is None else first
        last = batch[-1].issued_at // 1000
        mine = [event for event in batch if _share_of(event.tenant_id, parts) == part]
        if mine:
            store.writer.write(mine)
            store.upkeep.settle_if_behind()
        written += len(batch)
        if written % (50 * _EVENTS_AT_ONCE) == 0:
            progress(f"{written:,} events read")
    store.upkeep.settle()
    if first is None:
        raise ValueError(f"{path}: not a single event")
    progress(f"{written:,} events written and counted")
    return first, last // 300 * 300 + 300


def _batches(path: Path) -> Iterator[list[Event]]:
    batch: list[Event] = []
    with open_events(path) as file:
        for line in file:
            batch.append(parse_event(json.loads(line), _ANY_TIME))
            if len(batch) == _EVENTS_AT_ONCE:
                yield batch
                batch = []
    if batch:
        yield batch
