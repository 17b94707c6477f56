"""What really happened in a trace, and which agents it has."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

LABELS_FILE: Final = "labels.csv"
AGENTS_FILE: Final = "agents.csv"


class Label(NamedTuple):
    """An event of a trace, from `start` to `end` (Unix seconds, whole bins).

    `agent` is "" for one of the whole tenant. `expected`: tokens that the tenant was expected to ask for in that time.
    `extra`: tokens (of `failures`: refused requests) that the event added, below 0 for those it took away. `first10`:
    those of its first ten minutes.
    """

    tenant: str
    agent: str
    kind: str
    start: int
    end: int
    multiplier: float
    expected: float
    extra: float
    first10: float


COLUMNS: Final = ("tenant_id", "agent_id", "kind", "start", "end", "multiplier", "expected", "extra", "first10")


class AgentKind(NamedTuple):
    """How an agent works (`kind`) and from where (`network`, "" where its events do not say)."""

    kind: str
    network: str


def write_labels(path: Path, labels: Iterable[Label]) -> None:
    """labels.csv, in the order given."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for label in labels:
            rounded = (
                round(label.multiplier, 3),
                round(label.expected, 2),
                round(label.extra, 1),
                round(label.first10, 1),
            )
            writer.writerow([*label[:5], *rounded])


def read_labels(path: Path) -> list[Label]:
    """Every label of the file; its columns in any order."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Label(
                row["tenant_id"],
                row["agent_id"],
                row["kind"],
                int(float(row["start"])),
                int(float(row["end"])),
                *(float(row[name] or 0) for name in ("multiplier", "expected", "extra", "first10")),
            )
            for row in csv.DictReader(file)
        ]


def read_agents(path: Path) -> dict[tuple[str, str], AgentKind]:
    """(tenant, agent) -> its kind; empty when there is no such file, as of a trace that was not made here."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {
            (row["tenant_id"], row["agent_id"]): AgentKind(row["kind"], row.get("network") or "")
            for row in csv.DictReader(file)
        }
