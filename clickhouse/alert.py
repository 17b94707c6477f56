"""The alert: an episode of one kind, of one agent or of a tenant as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

KINDS: Final = ("spike", "silence", "unusual_hours", "dominance", "new_network", "failures", "waste", "budget")
SEVERITIES: Final = ("page", "ticket", "info")


@dataclass(frozen=True, slots=True)
class Alert:
    """`since` and `until` in Unix seconds, `until` None while it lasts; a `score` above `threshold` is over the limit.

    What `observed` and `expected` count depends on the kind, and `message` says it.
    """

    id: str  # the same at every look, and after a restart
    tenant_id: str
    kind: str
    severity: str
    agent_id: str | None  # None: of the whole tenant
    since: int
    until: int | None
    score: float
    threshold: float
    observed: float
    expected: float
    detail: str

    @property
    def message(self) -> str:
        """What happened, in one sentence, with what was seen and what is usual."""
        at = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M UTC")
        return f"{self._what_happened()} (since {at})."

    def _what_happened(self) -> str:
        observed, expected = _number(self.observed), _number(self.expected)
        agent = f"Agent {self.agent_id}"
        match self.kind:
            case "spike":
                return f"{agent} was issued {observed} tokens in {self.detail}, where about {expected} are usual"
            case "silence":
                return f"Tenant {self.tenant_id} is issued no tokens, where {expected} were to be expected by now"
            case "unusual_hours":
                return f"{agent} is at work at hours at which it rests: {observed} against at most {expected} before"
            case "dominance":
                return (
                    f"{agent} has {self.observed:.0%} of the tokens of tenant {self.tenant_id} of the last 24 hours, "
                    f"where {self.expected:.0%} is usual"
                )
            case "new_network":
                return f"{agent} was issued {observed} tokens from {self.detail}, which it never used before"
            case "failures":
                shares = f"{self.observed:.0%} of its token requests, where {self.expected:.0%} is usual"
                return f"{agent} fails in {shares}"
            case "waste":
                return (
                    f"{agent} was issued {observed} tokens in five minutes while it still held fresh ones of the same "
                    f"scope, where {expected} is its record"
                )
            case _:
                whose = agent if self.agent_id else f"Tenant {self.tenant_id}"
                if self.detail == "used":
                    return f"{whose} has used {observed} tokens this month, of a budget of {expected}"
                return f"{whose} is going to use {observed} tokens this month, of a budget of {expected}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
