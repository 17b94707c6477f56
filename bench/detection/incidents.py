"""Events of the counts: retry loops, leaks at odd hours, work at weekends, silences. Each is a label of the trace.

Per tenant and 90 days on average: 3 loops (5 to 50 times the agent's rate for 10 to 120 minutes), 0.5 leaks (1.5 to 3
times, outside of working hours, growing over two days, for 2 to 7), 0.5 weekends, 1 silence (1 to 24 hours, of all
agents). Two events of a tenant lie at least a day apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bench.detection.label import Label
from bench.detection.local_time import BINS, BINS_A_DAY, BINS_AN_HOUR, START, Floats
from bench.detection.tenant import Agent, Tenant
from bench.detection.traces import BIN_SECONDS

FIRST_BIN: Final = 7 * BINS_A_DAY  # the first week has none
A_TRACE: Final = {"retry": 3.0, "leak": 0.5, "weekend": 0.5, "silence": 1.0}
LARGEST_LOOP_A_BIN: Final = 20_000
_TRIES: Final = 40
_LAST_BINS: Final = 14


@dataclass
class Incident:
    """`added`: what it adds to the agent's bins from `start` on. A silence has no agent, and takes away."""

    kind: str
    agent: Agent | None
    start: int
    added: npt.NDArray[np.int32]
    multiplier: float
    expected: float = 0.0

    @property
    def end(self) -> int:
        """The bin after its last one."""
        return self.start + len(self.added)

    def label(self, tenant: Tenant) -> Label:
        """As labels.csv has it."""
        return Label(
            tenant.name,
            self.agent.name if self.agent else "",
            self.kind,
            START + self.start * BIN_SECONDS,
            START + self.end * BIN_SECONDS,
            self.multiplier,
            self.expected,
            float(self.added.sum()),
            float(self.added[:2].sum()) if self.agent else 0.0,
        )


class Calendar:
    """Which bins of a tenant are taken by an event."""

    def __init__(self) -> None:
        self._taken = np.zeros(BINS, dtype=np.bool_)

    def place(self, length: int, pick: np.random.Generator, weights: Floats | None = None) -> int | None:
        """A first bin for an event of so many bins, by weight; None when there is no room."""
        shares = weights / weights.sum() if weights is not None and weights.sum() > 0 else None
        for _ in range(_TRIES):
            start = int(pick.choice(BINS, p=shares)) if shares is not None else int(pick.integers(FIRST_BIN, BINS))
            near = slice(max(0, start - BINS_A_DAY), start + length + BINS_A_DAY)
            if start >= FIRST_BIN and start + length + _LAST_BINS < BINS and not self._taken[near].any():
                self._taken[start : start + length] = True
                return start
        return None


def log_uniform(pick: np.random.Generator, low: float, high: float) -> float:
    """Every order of magnitude as likely as the next one."""
    return float(np.exp(pick.uniform(np.log(low), np.log(high))))


def make_incidents(tenant: Tenant, calendar: Calendar, pick: np.random.Generator) -> list[Incident]:
    """Draws the events, adds them to the counts, and returns them in order of time."""
    settled = [agent for agent in tenant.agents if agent.settled and agent.mean > 0]
    candidates = settled or [max(tenant.agents, key=lambda agent: agent.mean)]
    found = []
    for kind, average in A_TRACE.items():
        for _ in range(int(pick.poisson(average))):
            made = _MAKE[kind](tenant, candidates, calendar, pick)
            if made is None or not made.added.any():
                continue  # no room for it, or it changed not one count: nothing that anybody could find
            made.expected = tenant.expected(made.start, made.end)
            if made.agent:
                made.agent.counts[made.start : made.end] += made.added
            found.append(made)
    return sorted(found, key=lambda incident: incident.start)


def _retry(tenant: Tenant, agents: list[Agent], calendar: Calendar, pick: np.random.Generator) -> Incident | None:
    agent = agents[int(pick.integers(len(agents)))]
    length = max(2, round(log_uniform(pick, 10, 120) * 60 / BIN_SECONDS))
    multiplier = log_uniform(pick, 5, 50)
    start = calendar.place(length, pick, agent.expected if pick.random() < 0.7 else None)
    if start is None:
        return None
    usual = np.maximum(agent.expected[start : start + length], agent.mean)
    added = np.minimum((multiplier - 1) * usual, LARGEST_LOOP_A_BIN)
    return Incident("retry", agent, start, pick.poisson(added).astype(np.int32), multiplier)


def _leak(tenant: Tenant, agents: list[Agent], calendar: Calendar, pick: np.random.Generator) -> Incident | None:
    agent = agents[int(pick.integers(len(agents)))]
    length = int(pick.uniform(2, 7) * BINS_A_DAY)
    multiplier = float(pick.uniform(1.5, 3))
    start = calendar.place(length, pick)
    if start is None:
        return None
    during = slice(start, start + length)
    odd = tenant.off[during] | (tenant.clock.hour[during] < 7) | (tenant.clock.hour[during] >= 21)
    growing = np.minimum(1.0, np.arange(length) / (2 * BINS_A_DAY))
    added = pick.poisson((multiplier - 1) * agent.mean * growing * odd).astype(np.int32)
    return Incident("leak", agent, start, added, multiplier)


def _weekend(tenant: Tenant, agents: list[Agent], calendar: Calendar, pick: np.random.Generator) -> Incident | None:
    agents = [agent for agent in agents if agent.kind in ("office", "ci")]
    if not agents:
        return None
    agent = agents[int(pick.integers(len(agents)))]
    length = int(pick.uniform(4, 24) * BINS_AN_HOUR)
    multiplier = float(pick.uniform(0.3, 1))
    start = calendar.place(length, pick, tenant.clock.weekend.astype(float))
    if start is None:
        return None
    workday = float(agent.expected[~tenant.off].mean())
    added = pick.poisson(multiplier * workday * tenant.clock.weekend[start : start + length]).astype(np.int32)
    return Incident("weekend", agent, start, added, multiplier)


def _silence(tenant: Tenant, agents: list[Agent], calendar: Calendar, pick: np.random.Generator) -> Incident | None:
    length = round(log_uniform(pick, 1, 24) * BINS_AN_HOUR)
    start = calendar.place(length, pick)
    if start is None:
        return None
    during = slice(start, start + length)
    taken = np.zeros(length, dtype=np.int32)
    for agent in tenant.agents:
        taken -= agent.counts[during]
        agent.counts[during] = 0
    return Incident("silence", None, start, taken, 0.0)


_Make = Callable[[Tenant, list[Agent], Calendar, np.random.Generator], Incident | None]
_MAKE: Final[dict[str, _Make]] = {"retry": _retry, "leak": _leak, "weekend": _weekend, "silence": _silence}
