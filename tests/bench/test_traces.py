"""Traces as columns, from counts and from events."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from bench.detection.traces import BIN_SECONDS, COLUMNS, read_counts, read_events

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ROWS: Final = [("org-b", "x", 900, 2), ("org-a", "y", 300, 5), ("org-b", "z", 1500, 1), ("org-b", "x", 1500, 7)]


def counts_file(path: Path) -> Path:
    with gzip.open(path, "wt") as file:
        file.write(f"{COLUMNS}\n" + "".join(",".join(map(str, row)) + "\n" for row in ROWS))
    return path


def test_counts_are_columns(tmp_path: Path) -> None:
    trace = read_counts(counts_file(tmp_path / "counts.csv.gz"))
    assert trace.agents == [("org-b", "x"), ("org-a", "y"), ("org-b", "z")]
    assert (trace.agent.tolist(), trace.count.tolist()) == ([0, 1, 2, 0], [2, 5, 1, 7])
    assert (trace.first, trace.end, trace.bins) == (300, 1500 + BIN_SECONDS, 5)
    assert trace.first_of_tenants() == {"org-b": 900, "org-a": 300}


def test_totals_have_every_bin_of_every_tenant(tmp_path: Path) -> None:
    totals = {name: bins.tolist() for name, bins in read_counts(counts_file(tmp_path / "counts.csv.gz")).totals()}
    assert totals == {"org-a": [5, 0, 0, 0, 0], "org-b": [0, 0, 2, 0, 8]}


@pytest.mark.parametrize("content", ["tenant,agent,start,count\n", f"{COLUMNS}\n"])
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "counts.csv.gz"
    path.write_bytes(gzip.compress(content.encode()))
    with pytest.raises(ValueError, match=r"columns tenant,|without a single token"):
        read_counts(path)


PACKED: Final[dict[str, Callable[[bytes], bytes]]] = {"plain": bytes, "gz": gzip.compress, "zst": zstd.compress}


@pytest.mark.parametrize("packing", PACKED)
def test_events_are_counted_unless_refused(tmp_path: Path, packing: str) -> None:
    outcomes = [("success", 300_000), ("failure", 300_001), (None, 599_999), ("success", 600_000)]
    events = [
        {"event_id": str(number), "tenant_id": "a", "agent_id": "x", "issued_at": at}
        | ({"outcome": outcome} if outcome else {})
        for number, (outcome, at) in enumerate(outcomes)
    ]
    text = "".join(json.dumps(event) + "\n" for event in events).encode()
    path = tmp_path / "events"
    path.write_bytes(PACKED[packing](text))
    trace = read_events(path)
    assert dict(zip(trace.start.tolist(), trace.count.tolist(), strict=True)) == {300: 2, 600: 1}
