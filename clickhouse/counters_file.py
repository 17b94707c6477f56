"""The counters file: what the exporter has published, kept beside an embedded store instead of in it.

A store that is restored from a copy, or made anew from an export, forgets what was published since. Prometheus would
read a lower counter as a restart of the process and the whole total as a burst of tokens.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from clickhouse.errors import StoreSetupError, StoreUnavailableError

logger = logging.getLogger(__name__)

Counters = Mapping[str, tuple[int, int]]  # tenant_id -> (issued, failed)


class CountersFile:
    """Highest published counters by tenant. Not thread-safe: the exporter's refresh is its only user."""

    def __init__(self, path: Path) -> None:
        """Reads `path` if it is there; a damaged one is set aside, logged and begun anew.

        Raises StoreSetupError if it cannot be read, or not written: counters could fall, or no tenant be shown.
        """
        self._path = path
        self.counters: dict[str, tuple[int, int]] = {}
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            self.counters = {str(tenant): (int(issued), int(failed)) for tenant, (issued, failed) in read.items()}
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreSetupError(
                f"{path} cannot be read ({error.strerror}), where published counters are kept beside the store; "
                "make it readable, or put it back from a copy"
            ) from error
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            damaged = path.with_name(path.name + ".damaged")
            with contextlib.suppress(OSError):
                path.replace(damaged)
            logger.warning("%s is damaged (%s) and begun anew; it is now %s", path, error, damaged.name)
        try:
            self._write(self.counters)
        except OSError as error:
            connection = path.name.removesuffix(".counters.json")
            raise StoreSetupError(
                f"{path} cannot be written ({error.strerror}), where published counters are kept beside the store; "
                f"let this process write in {path.parent}, or give a --dsn one level deeper, "
                f"such as chdb://{path.parent / connection}/store"
            ) from error

    def raise_to(self, counters: Counters) -> None:
        """Remembers these, each as published; returns when a reader would find them after a loss of power.

        Raises StoreUnavailableError.
        """
        raised = dict(self.counters)
        for tenant, (issued, failed) in counters.items():
            before = raised.get(tenant, (0, 0))
            raised[tenant] = (max(before[0], issued), max(before[1], failed))
        try:
            self._write(raised)
        except OSError as error:
            raise StoreUnavailableError(f"{self._path} cannot be written: {error.strerror}") from error
        self.counters = raised

    def _write(self, counters: Counters) -> None:
        written = self._path.with_name(self._path.name + ".new")
        with written.open("w", encoding="utf-8") as file:
            json.dump(counters, file)
            file.flush()
            os.fsync(file.fileno())
        written.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
