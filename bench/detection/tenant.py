"""A made-up tenant: its agents, and how many tokens each of them asked for in each bin.

Sizes: 40 % of tenants below 5 tokens an hour, 40 % up to 200, 20 % up to 6,000. Counts are negative binomial around a
rate that has the shape of the agent's kind, growth, a common factor a day and slow drift. Six agents in a hundred begin
or end within the trace; deploys make service agents ask for all of their tokens in one bin. None of that is an event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bench.detection.local_time import (
    BINS,
    BINS_A_DAY,
    BINS_AN_HOUR,
    DAYS,
    ZONES,
    Booleans,
    Floats,
    Integers,
    LocalTime,
    local_time,
)
from bench.detection.shapes import KINDS, SHARES, drift, shape

MAX_INSTANCES: Final = 60
_RESTARTS_A_WEEK: Final = 0.7
_LARGEST_BATCH: Final = {"daily": 3_000, "weekly": 600, "monthly": 600}


@dataclass
class Agent:
    """`expected` and `counts`: tokens of each bin. `settled`: it neither began nor ended within the trace."""

    name: str
    kind: str
    expected: Floats
    counts: npt.NDArray[np.int32]
    instances: int
    settled: bool

    @property
    def mean(self) -> float:
        """Expected tokens of a bin."""
        return float(self.expected.mean())


@dataclass
class Tenant:
    """`off`: weekends and holidays, for each bin."""

    name: str
    clock: LocalTime
    off: Booleans
    agents: list[Agent]

    def expected(self, start: int, end: int) -> float:
        """Tokens expected from bin `start` to before `end`."""
        return float(sum(agent.expected[start:end].sum() for agent in self.agents))


def make_tenant(seed: int, pick: np.random.Generator) -> Tenant:
    """The tenant of a seed, without any event. The name alone comes from `seed`."""
    clock = local_time(str(pick.choice(ZONES)))
    holidays = pick.choice(np.arange(5, DAYS - 2), size=int(pick.integers(1, 4)), replace=False)
    off = clock.weekend | np.isin(clock.day, holidays)
    an_hour, agents = _size(pick)
    weights = np.arange(1, agents + 1) ** -pick.uniform(0.7, 1.4) * pick.lognormal(0, 0.4, agents)
    weights /= weights.sum()
    kinds = [str(kind) for kind in pick.choice(KINDS, size=agents, p=SHARES)]
    if agents <= 2:
        # A tenant of batches alone would be silent for most of the trace.
        kinds[0] = str(pick.choice(["office", "service"]))
    opens = float(pick.normal(8.5, 0.7))
    people = np.exp(pick.normal(0, pick.uniform(0.05, 0.2), DAYS + 2))[clock.day + 1]
    growth = np.exp(np.clip(pick.normal(0.002, 0.004), -0.01, 0.015) * np.arange(BINS) / BINS_A_DAY)
    made = []
    for number, (kind, weight) in enumerate(zip(kinds, weights.tolist(), strict=True)):
        rate = an_hour * weight / BINS_AN_HOUR
        expected = shape(kind, clock, off, opens, pick) * growth
        if kind in _LARGEST_BATCH:
            expected *= min(rate, _LARGEST_BATCH[kind] / (BINS_A_DAY * (1 if kind == "daily" else 7)))
        else:
            expected *= rate * drift(pick) * (people if kind == "office" else 1.0)
        settled = bool(pick.random() >= 0.06)
        if not settled:
            expected[_absent(pick)] = 0.0
        made.append(_agent(f"agent-{seed}-{number}", kind, expected, settled, pick))
    tenant = Tenant(f"org-{seed}", clock, off, made)
    _restart(tenant, pick)
    return tenant


def _size(pick: np.random.Generator) -> tuple[float, int]:
    """(tokens an hour, agents)."""
    share = pick.random()
    if share < 0.4:
        return float(10 ** pick.uniform(np.log10(0.2), np.log10(5))), int(pick.integers(1, 6))
    if share < 0.8:
        return float(10 ** pick.uniform(np.log10(5), np.log10(200))), int(pick.integers(2, 16))
    return float(10 ** pick.uniform(np.log10(200), np.log10(6_000))), int(pick.integers(5, 41))


def _absent(pick: np.random.Generator) -> slice:
    """The bins before an agent was put to work, or after it was retired."""
    turn = int(pick.integers(10 * BINS_A_DAY, (DAYS - 5) * BINS_A_DAY))
    return slice(0, turn) if pick.random() < 0.7 else slice(turn, BINS)


def _agent(name: str, kind: str, expected: Floats, settled: bool, pick: np.random.Generator) -> Agent:
    size = pick.uniform(3, 60)
    counts = pick.poisson(expected * pick.gamma(size, 1 / size, BINS)).astype(np.int32)
    an_hour = float(expected.mean()) * BINS_AN_HOUR
    instances = int(np.clip(an_hour * pick.uniform(0.3, 1.5), 1, MAX_INSTANCES))
    return Agent(name, kind, expected, counts, instances, settled)


def _restart(tenant: Tenant, pick: np.random.Generator) -> None:
    """Deploys in working hours: about half of the services ask for a token for each of their instances at once."""
    clock = tenant.clock
    working: Integers = np.flatnonzero(~tenant.off & (clock.hour > 9) & (clock.hour < 18))
    services = [agent for agent in tenant.agents if agent.kind == "service"]
    for moment in pick.choice(working, size=int(pick.poisson(_RESTARTS_A_WEEK * DAYS / 7)), replace=False).tolist():
        for agent in services:
            if pick.random() < 0.5 and agent.expected[moment] > 0:
                agent.counts[moment] += agent.instances
