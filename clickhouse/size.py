"""The size: how much disk the store takes, how much is left, and whether merges keep up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from clickhouse.connection import Connection

_PARTS: Final = """
SELECT sum(bytes), max(parts) FROM
(
    SELECT sum(bytes_on_disk) AS bytes, count() AS parts FROM system.parts
    WHERE database = currentDatabase() AND active GROUP BY table, partition_id
)"""

# Of the disks that hold something: a server may have others, which are not the store's to fill.
_FREE: Final = """
SELECT free_space FROM system.disks
WHERE name IN (SELECT disk_name FROM system.parts WHERE database = currentDatabase() AND active)"""


class Size(NamedTuple):
    """`parts` are those of the fullest partition: it is there that the engine refuses inserts. None: not known."""

    bytes: int
    parts: int
    free_bytes: int | None
    free_ratio: float | None  # of the room that the store has, which is what it takes and what is free


def measure(connection: Connection) -> Size:
    """The size of the store, or of one shard. Raises StoreError."""
    taken, parts = connection.rows(_PARTS)[0]
    free = min((int(free) for (free,) in connection.rows(_FREE)), default=None)
    return Size(int(taken), int(parts), free, None if free is None else free / max(1, free + int(taken)))


def together(shards: Sequence[Size]) -> Size:
    """The sum of what shards take; of all else the worst, because a full shard stops writing to its tenants."""
    free = [size.free_bytes for size in shards if size.free_bytes is not None]
    ratios = [size.free_ratio for size in shards if size.free_ratio is not None]
    return Size(
        sum(size.bytes for size in shards),
        max(size.parts for size in shards),
        min(free, default=None),
        min(ratios, default=None),
    )
