"""The per-tenant metric families: what each is called, means, and which column of the fleet it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

_AGE: Final = "as of the last refresh: up to one refresh interval old"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family with the single label `tenant_id`."""

    name: str  # as OpenMetrics names the family: a counter without its `_total`
    kind: Literal["counter", "gauge"]
    documentation: str  # the HELP text, unescaped
    column: str  # attribute of `exporter.counters.PublishedFleet`
    conversion: str  # how `%` prints one value; %d prints an integer of any size exactly

    @property
    def sample_name(self) -> str:
        """The name on a sample line; text format 0.0.4 uses it for HELP and TYPE too."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


FAMILIES: Final = (
    Family(
        "agentidp_tenant_tokens_issued",
        "counter",
        f"Tokens issued to the tenant's agents since its first event, {_AGE}.",
        "tokens_issued",
        "%d",
    ),
    Family(
        "agentidp_tenant_token_failures",
        "counter",
        f"Token requests of the tenant's agents that failed since its first event, {_AGE}.",
        "token_failures",
        "%d",
    ),
    Family(
        "agentidp_tenant_active_agents",
        "gauge",
        f"Agents that got a token in the current hour or the 23 hours before it (UTC), {_AGE}.",
        "active_agents",
        "%d",
    ),
    Family(
        "agentidp_tenant_top_agent_ratio",
        "gauge",
        f"Share (0 to 1) of the calendar month's tokens (UTC) that went to the tenant's largest agent, {_AGE}.",
        "top_agent_ratio",
        "%.9g",
    ),
    Family(
        "agentidp_tenant_last_issued_timestamp_seconds",
        "gauge",
        f"Unix time of the tenant's newest token; no sample before the first token; {_AGE}.",
        "last_issued_seconds",
        "%.3f",
    ),
    Family(
        "agentidp_tenant_month_tokens",
        "gauge",
        f"Tokens issued in the current calendar month (UTC), {_AGE}.",
        "month_tokens",
        "%d",
    ),
)
