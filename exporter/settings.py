"""Every knob of the exporter, with its default. Times are seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ExporterSettings:
    """Settings of the exporter, as the command line gives them."""

    host: str = "127.0.0.1"
    port: int = 9464
    refresh_interval: float = 5.0
    max_tenants: int = 10_000
    zero_hold: float = 15.0
    web_config_file: Path | None = None
    inquiry_seconds: float = 30.0

    @property
    def max_age(self) -> float:
        """How old a snapshot may be and still be served."""
        return max(300.0, self.refresh_interval)
