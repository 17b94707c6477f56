"""One rendered state of all tenants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from exporter.exposition import Body
from exporter.negotiation import Format


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What scrapes are served from until the next refresh."""

    read_at: float  # Unix time at which reading the store began; the data is at least this new
    bodies: Mapping[Format, Body]
    held_at_zero: tuple[str, ...]  # `tenant_id` labels whose counters are held at 0 in the bodies
