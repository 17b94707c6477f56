"""All tenants at one moment, as columns: what the exporter publishes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

# The tenant id of the exporter's sum of tenants without series of their own. No tenant can have it: a tenant id starts
# with a letter or digit.
OTHER: Final = "_other"


@dataclass(frozen=True, slots=True)
class Fleet:
    """Equal-length columns, one row a tenant that has ever had an event or a published counter, by `tenant_id`.

    `tokens_issued` and `token_failures` never fall between two fleets of one store, not even across restarts.
    """

    tenant_id: list[str] = field(default_factory=list)
    tokens_issued: list[int] = field(default_factory=list)
    token_failures: list[int] = field(default_factory=list)
    active_agents: list[int] = field(default_factory=list)  # with a token in the hour-aligned 24 h
    top_agent_ratio: list[float] = field(default_factory=list)  # 0...1, of the calendar month (UTC)
    last_issued_seconds: list[float] = field(default_factory=list)  # Unix time; 0.0: no token yet
    month_tokens: list[int] = field(default_factory=list)
    published: list[bool] = field(default_factory=list)  # its counter has been shown, not only its first 0
    present: list[bool] = field(default_factory=list)  # has events; False: erased, only its counters are left
    other: tuple[int, int] | None = None  # highest (issued, failed) shown as `OTHER`; None: never shown
