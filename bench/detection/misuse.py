"""What only the fields of events can show: leaked credentials used from elsewhere, and storms of refused requests.

Per tenant and 90 days on average one leak by volume or by a handful of tokens, and one storm, at any hour:

- `leak_network`: seven leaks in ten come from a network, and half of these with a user agent, that the agent never had;
- `leak_inside`: the others come from the agent's own network, as from a laptop behind the same NAT. Nothing in an event
  tells them apart, and a table must not count them as missed by a rule about networks;
- `failures`: refused requests at 1 to 20 times the agent's own rate, 15 minutes to 12 hours, from one replica or all.

Half of the leaks are a handful (2 to 10 tokens within a day), half are 0.2 to 3 times the agent's rate for 2 hours to 5
days. Seven in ten of the leaks that the counts have (`leak`) come from elsewhere too. Loops are the agent's own: same
address, same user agent, one scope; one replica runs in a loop, or all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bench.detection.identity import Identity
from bench.detection.incidents import Calendar, Incident, log_uniform
from bench.detection.label import Label
from bench.detection.local_time import BINS_A_DAY, BINS_AN_HOUR, START
from bench.detection.network import Elsewhere
from bench.detection.tenant import Tenant
from bench.detection.traces import BIN_SECONDS

A_TRACE: Final = {"leak": 1.0, "failures": 1.0}
FROM_ELSEWHERE: Final = 0.7
_FEWEST_FAILURES_A_BIN: Final = 0.5
_TOOLS: Final = ("curl/8.9.1", "python-urllib/3.12", "PostmanRuntime/7.43.0", "Wget/1.21.4")


@dataclass
class Misuse:
    """Requests that are not the agent's usual ones: `added` to its bins from `start` on; of `failures`, refused ones.

    `network` None: from where the agent runs. `user_agent` None: its own. `labelled`: the counts have no label of it.
    """

    kind: str
    identity: Identity
    start: int
    added: npt.NDArray[np.int32]
    multiplier: float
    network: Elsewhere | None = None
    user_agent: str | None = None
    one_replica: bool = True
    labelled: bool = True

    @property
    def end(self) -> int:
        """The bin after its last one."""
        return self.start + len(self.added)

    @property
    def refused(self) -> bool:
        """Its requests got no token."""
        return self.kind == "failures"

    def label(self, tenant: Tenant) -> Label:
        """As labels.csv has it."""
        return Label(
            tenant.name,
            self.identity.agent.name,
            self.kind,
            START + self.start * BIN_SECONDS,
            START + self.end * BIN_SECONDS,
            self.multiplier,
            tenant.expected(self.start, self.end),
            float(self.added.sum()),
            float(self.added[:2].sum()),
        )


def make_misuse(
    tenant: Tenant, identities: list[Identity], calendar: Calendar, incidents: list[Incident], pick: np.random.Generator
) -> list[Misuse]:
    """The incidents of the counts, each with a source, and the labelled misuse, whose tokens it adds to the counts."""
    of_agent = {identity.agent.name: identity for identity in identities}
    found = [
        _of_incident(incident, of_agent[incident.agent.name], pick)
        for incident in incidents
        if incident.agent is not None
    ]
    active = [identity for identity in identities if identity.agent.settled and identity.agent.mean > 0] or identities
    for kind, average in A_TRACE.items():
        for _ in range(int(pick.poisson(average))):
            identity = active[int(pick.integers(len(active)))]
            made = (_leak if kind == "leak" else _storm)(identity, calendar, pick)
            if made is None:
                continue
            if not made.refused:
                identity.agent.counts[made.start : made.end] += made.added
            found.append(made)
    return found


def _of_incident(incident: Incident, identity: Identity, pick: np.random.Generator) -> Misuse:
    away = incident.kind == "leak" and pick.random() < FROM_ELSEWHERE
    return Misuse(
        incident.kind,
        identity,
        incident.start,
        incident.added,
        incident.multiplier,
        network=Elsewhere(pick) if away else None,
        user_agent=_tool(pick) if away else None,
        one_replica=incident.kind == "retry" and pick.random() < 0.5,
        labelled=False,
    )


def _tool(pick: np.random.Generator) -> str | None:
    return str(pick.choice(_TOOLS)) if pick.random() < 0.5 else None


def _leak(identity: Identity, calendar: Calendar, pick: np.random.Generator) -> Misuse | None:
    if pick.random() < 0.5:
        length, multiplier = round(log_uniform(pick, 1, 24) * BINS_AN_HOUR), 0.0
        tokens = int(pick.integers(2, 11))
        added = np.bincount(pick.integers(length, size=tokens), minlength=length).astype(np.int32)
    else:
        length = round(log_uniform(pick, 2, 120) * BINS_AN_HOUR)
        multiplier = log_uniform(pick, 0.2, 3)
        added = pick.poisson(multiplier * identity.agent.mean, size=length).astype(np.int32)
    used = np.flatnonzero(added)
    if not len(used):
        return None
    # From its first token to its last one: before that there is nothing to find.
    added = added[used[0] : used[-1] + 1]
    start = calendar.place(len(added), pick)
    if start is None:
        return None
    if pick.random() >= FROM_ELSEWHERE:
        return Misuse("leak_inside", identity, start, added, multiplier)
    return Misuse("leak_network", identity, start, added, multiplier, network=Elsewhere(pick), user_agent=_tool(pick))


def _storm(identity: Identity, calendar: Calendar, pick: np.random.Generator) -> Misuse | None:
    length = min(round(log_uniform(pick, 0.25, 12) * BINS_AN_HOUR), BINS_A_DAY)
    multiplier = log_uniform(pick, 1, 20)
    added = pick.poisson(multiplier * max(identity.agent.mean, _FEWEST_FAILURES_A_BIN), size=length).astype(np.int32)
    start = calendar.place(length, pick)
    if start is None or not added.any():
        return None
    return Misuse("failures", identity, start, added, multiplier, one_replica=bool(pick.random() < 0.5))
