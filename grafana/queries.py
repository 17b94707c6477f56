"""The PromQL that both dashboards share. `$job` is the dashboard's variable."""

from __future__ import annotations

from typing import Final, Literal

ISSUED: Final = "agentidp_tenant_tokens_issued_total"
FAILED: Final = "agentidp_tenant_token_failures_total"
ACTIVE_AGENTS: Final = "agentidp_tenant_active_agents"
TOP_AGENT: Final = "agentidp_tenant_top_agent_ratio"
LAST_ISSUED: Final = "agentidp_tenant_last_issued_timestamp_seconds"
MONTH: Final = "agentidp_tenant_month_tokens"
EXPECTED: Final = "agentidp_tenant_expected_tokens"
SPIKE_SCORE: Final = "agentidp_tenant_spike_score"
SILENCE_SCORE: Final = "agentidp_tenant_silence_score"
TENANT_ALERTS: Final = "agentidp_tenant_alerts"

JOB: Final = 'job=~"$job"'

# How the panels' descriptions name their windows.
RATE_WINDOW: Final = "Grafana's rate interval, at least four scrapes"
NOW: Final = "the newest scrape"


def once(expression: str) -> str:
    """Two exporters of one store publish the same series: the larger one, never the sum."""
    return f"max without (instance, pod) ({expression})"


def gauge(metric: str, selector: str = JOB) -> str:
    """A tenant gauge, once."""
    return once(f"{metric}{{{selector}}}")


def rate(metric: str, selector: str = JOB, window: str = "$__rate_interval", modifier: str = "") -> str:
    """A tenant counter per second, once."""
    return once(f"rate({metric}{{{selector}}}[{window}]{modifier})")


def increase(metric: str, selector: str = JOB, window: str = "$__range", modifier: str = "") -> str:
    """A tenant counter's growth in the window, once."""
    return once(f"increase({metric}{{{selector}}}[{window}]{modifier})")


def expected(bound: Literal["lower", "expected", "upper"], selector: str = JOB) -> str:
    """Tokens that the detector expects in the current 5 minutes, or an end of the band around them, once."""
    return gauge(EXPECTED, f'{selector}, bound="{bound}"')


def by_tenant(expression: str) -> str:
    """The same tenant in two deployments is shown once, added up."""
    return f"sum by (tenant_id) ({expression})"


def failure_ratio(failed: str, issued: str) -> str:
    """Failures' share of all requests; 0 when there was none."""
    return f"{failed} / clamp_min({failed} + {issued}, 1e-9)"
