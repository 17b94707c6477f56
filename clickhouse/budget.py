"""The budget: how many tokens a tenant or one of its agents may be issued in a calendar month (UTC)."""

from __future__ import annotations

from typing import NamedTuple


class Budget(NamedTuple):
    """`agent_id` "" stands for the tenant as a whole."""

    tenant_id: str
    agent_id: str
    tokens: int
