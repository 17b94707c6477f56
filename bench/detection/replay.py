"""A trace through the service's own detection. Not here yet: nothing is raised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.detection.alarm import Alarm


def replay(*, traces: Path | None, events: Path | None, progress: Callable[[str], None]) -> list[Alarm]:
    """What the service would have raised on `traces`, a directory with counts.csv.gz, or on `events`, a file."""
    progress(f"replay is not there yet: no alarms of ours on {traces or events}")
    return []
