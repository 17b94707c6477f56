"""What a rule raises, and the file of it."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple


class Alarm(NamedTuple):
    """One alert from its beginning to its end.

    `agent` is "" for one of a tenant as a whole. `start` is the start (Unix seconds) of the 5-minute bin whose counts
    raised it: it cannot be known before that bin is over. `end` is where it was last true.
    """

    tenant: str
    agent: str
    kind: str
    severity: str
    start: int
    end: int


COLUMNS: Final = Alarm._fields


def write_alarms(path: Path, alarms: Iterable[Alarm]) -> None:
    """alerts.csv, in order of time."""
    ordered = sorted(alarms, key=lambda alarm: (alarm.start, alarm))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(ordered)


def read_alarms(path: Path) -> list[Alarm]:
    """What `write_alarms` wrote. Raises ValueError for a file with other columns."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        if (header := tuple(next(rows, ()))) != COLUMNS:
            raise ValueError(f"{path}: columns {','.join(header)}, not {','.join(COLUMNS)}")
        return [Alarm(row[0], row[1], row[2], row[3], int(row[4]), int(row[5])) for row in rows]
