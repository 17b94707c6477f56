"""What the detector would have said, put into a store by a test."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from clickhouse.connection import Connection

BIN = 300


class Verdict(NamedTuple):
    """A row of `verdicts`, of the five minutes that begin at `bin` (Unix seconds)."""

    tenant_id: str
    kind: str
    agent_id: str  # "": of the whole tenant
    bin: int
    severity: str = "page"
    score: float = 2.0
    observed: float = 300.0
    expected: float = 12.5
    detail: str = ""
    generation: int = 1


def say(connection: Connection, verdicts: Iterable[Verdict]) -> None:
    """Inserts them as the detector does."""
    columns = list(zip(*verdicts, strict=True))
    connection.insert("verdicts", Verdict._fields, columns)


def bins(first: int, count: int) -> list[int]:
    """The starts of `count` bins in a row."""
    return [first + number * BIN for number in range(count)]
