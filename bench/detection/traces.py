"""A trace as columns: tokens of each agent in bins of five minutes, from counts.csv.gz or from a file of events."""

from __future__ import annotations

import gzip
import io
import json
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final, cast

import numpy as np
import numpy.typing as npt

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BIN_SECONDS: Final = 300
COUNTS_FILE: Final = "counts.csv.gz"
COLUMNS: Final = "tenant_id,agent_id,bin_start,count"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_GZIP: Final = b"\x1f\x8b"

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trace:
    """Non-zero bins, one a row: `agents[agent[i]]` asked for `count[i]` tokens in the bin that starts at `start[i]`."""

    agents: list[tuple[str, str]]
    agent: npt.NDArray[np.int32]
    start: Integers
    count: Integers

    @cached_property
    def first(self) -> int:
        """Start of the first bin, Unix seconds."""
        return int(self.start.min())

    @cached_property
    def end(self) -> int:
        """End of the last bin."""
        return int(self.start.max()) + BIN_SECONDS

    @property
    def bins(self) -> int:
        """Bins from the first to the last one."""
        return (self.end - self.first) // BIN_SECONDS

    @cached_property
    def tenants(self) -> list[str]:
        """Every tenant, sorted."""
        return sorted({tenant for tenant, _ in self.agents})

    def first_of_tenants(self) -> dict[str, int]:
        """Start of each tenant's first bin."""
        first = np.full(len(self.agents), np.iinfo(np.int64).max)
        np.minimum.at(first, self.agent, self.start)
        found: dict[str, int] = {}
        for (tenant, _), start in zip(self.agents, first.tolist(), strict=True):
            found[tenant] = min(start, found.get(tenant, start))
        return found

    def totals(self) -> Iterator[tuple[str, Integers]]:
        """Each tenant with all of its bins, zeros included, from the trace's first to its last one."""
        place = {tenant: number for number, tenant in enumerate(self.tenants)}
        tenant_of_row = np.array([place[tenant] for tenant, _ in self.agents], dtype=np.int32)[self.agent]
        order = np.argsort(tenant_of_row, kind="stable")
        ends = np.searchsorted(tenant_of_row[order], np.arange(len(place) + 1))
        for number, tenant in enumerate(self.tenants):
            rows = order[ends[number] : ends[number + 1]]
            dense = np.zeros(self.bins, dtype=np.int64)
            np.add.at(dense, (self.start[rows] - self.first) // BIN_SECONDS, self.count[rows])
            yield tenant, dense


class TraceReader:
    """Rows into columns of machine integers: a trace of 20 million rows takes 400 MB and not 4 GB."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], int] = {}
        self._agent, self._start, self._count = array("i"), array("q"), array("q")

    def place(self, tenant: str, agent: str) -> int:
        """The number of an agent."""
        return self._places.setdefault((tenant, agent), len(self._places))

    def add(self, place: int, start: int, count: int) -> None:
        """One row."""
        self._agent.append(place)
        self._start.append(start)
        self._count.append(count)

    def trace(self) -> Trace:
        """Everything that was added. Raises ValueError when that was nothing."""
        if not self._agent:
            raise ValueError("a trace without a single token")
        return Trace(
            list(self._places),
            np.frombuffer(self._agent, dtype=np.int32),
            np.frombuffer(self._start, dtype=np.int64),
            np.frombuffer(self._count, dtype=np.int64),
        )


def read_counts(path: Path) -> Trace:
    """A counts.csv.gz. Raises ValueError for other columns."""
    reader = TraceReader()
    with gzip.open(path, "rt", encoding="utf-8") as file:
        if (header := file.readline().strip()) != COLUMNS:
            raise ValueError(f"{path}: columns {header}, not {COLUMNS}")
        for line in file:
            tenant, agent, start, count = line.split(",")
            reader.add(reader.place(tenant, agent), int(start), int(count))
    return reader.trace()


def open_events(path: Path) -> IO[bytes]:
    """An NDJSON file, unpacked: its first bytes tell how it is packed."""
    with path.open("rb") as file:
        start = file.read(4)
    if start == _ZSTD:
        return io.BufferedReader(cast(Any, zstd.ZstdFile(path)))
    if start.startswith(_GZIP):
        return cast(IO[bytes], gzip.open(path))
    return path.open("rb")


def read_events(path: Path) -> Trace:
    """The tokens of an NDJSON file whose `issued_at` are Unix milliseconds, as `generate` writes them; failures are
    none.
    """
    counted: Counter[tuple[int, int]] = Counter()
    reader = TraceReader()
    with open_events(path) as file:
        for line in file:
            event = json.loads(line)
            if event.get("outcome", "success") == "success":
                place = reader.place(event["tenant_id"], event["agent_id"])
                counted[place, event["issued_at"] // 1000 // BIN_SECONDS * BIN_SECONDS] += 1
    for (place, start), count in counted.items():
        reader.add(place, start, count)
    return reader.trace()
