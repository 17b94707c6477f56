"""Every knob of the API process, with its default."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple


class Rate(NamedTuple):
    """A token bucket: refilled by `per_second`, holding at most `burst`."""

    per_second: float
    burst: int


_TENANT_REQUESTS: Final = Rate(200, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one caller may take. A rate of None is not limited."""

    tenant_requests: Rate | None = _TENANT_REQUESTS
    source_requests: Rate | None = None
    source_events: Rate | None = None
    # Of all callers together; a request beyond it is answered 503.
    requests_in_flight: int = 512
    # The front door asks the system for as many file descriptors, and some for the store: idle connections must never
    # leave it without one to write with.
    connections: int = 768
    # Half of the processors: with more, one tenant asking without a pause slows the answers of all the others.
    tenant_queries: int = field(default_factory=lambda: max(1, (os.cpu_count() or 2) // 2))
    tenant_queries_waiting: int = 256
    body_bytes: int = 10_000_000
    # Of all bodies being read or decoded at once; beyond it a sender is told to come back (503).
    body_bytes_in_flight: int = 256_000_000
    events_per_request: int = 50_000


@dataclass(frozen=True, kw_only=True)
class ApiSettings:
    """Settings of the query API and the ingest endpoint. All times are seconds."""

    host: str = "127.0.0.1"
    port: int = 3000
    tls_cert: Path | None = None
    tls_key: Path | None = None
    ingest_token_file: Path | None = None
    limits: Limits = field(default_factory=Limits)
    # More than one tenant's share (Limits.tenant_queries), so that a flood of one tenant leaves threads for others.
    query_threads: int = field(default_factory=lambda: max(24, os.cpu_count() or 2))
    # For the wait and the query together; a question beyond it is answered 503.
    query_seconds: float = 30.0
    body_seconds: float = 30.0
    answer_seconds: float = 60.0
    # Also bounds how long the headers of a request may take. Longer than the 60 s idle timeout usual in load
    # balancers: the side that reuses a connection must be the one to close it, or it meets a reset.
    keepalive_seconds: float = 75.0
    # How long a connection is read to its end after an early answer, so that the sender gets to see the answer.
    linger_seconds: float = 5.0
    drain_seconds: float = 10.0

    def __post_init__(self) -> None:
        """Raises ValueError for a combination that cannot work."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key belong together: give both or neither")
        if not 0 < self.limits.tenant_queries <= self.query_threads:
            raise ValueError(
                f"the queries of one tenant ({self.limits.tenant_queries}) must be between 1 and the number of "
                f"query threads ({self.query_threads})"
            )
