"""The high-water file: what the exporter has published, kept beside an embedded store instead of in it.

A store that is restored from a copy forgets what was published after the copy. Prometheus would read a lower counter
as a restart of the process and the whole total as a burst of tokens.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger(__name__)

Counters = dict[str, tuple[int, int]]  # tenant_id -> (issued, failed)


class HighWater:
    """Highest published counters by tenant. Not thread-safe: the exporter's refresh is its only user."""

    def __init__(self, path: Path) -> None:
        """Reads `path` if it is there; an unreadable one is logged and begun anew."""
        self._path = path
        self.counters: Counters = {}
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            self.counters = {str(tenant): (int(issued), int(failed)) for tenant, (issued, failed) in read.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, AttributeError) as error:
            logger.warning("%s is not usable and begun anew: %s", path, error)

    def raise_to(self, counters: Iterable[tuple[str, int, int]]) -> None:
        """Remembers these; returns when a reader of the file would find them. Raises OSError."""
        for tenant, issued, failed in counters:
            before = self.counters.get(tenant, (0, 0))
            self.counters[tenant] = (max(before[0], issued), max(before[1], failed))
        written = self._path.with_name(self._path.name + ".new")
        written.write_text(json.dumps(self.counters), encoding="utf-8")
        written.replace(self._path)
