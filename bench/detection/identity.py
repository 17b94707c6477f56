"""Who an agent is to the identity provider: what its events say beside its name and the time.

What is assumed, drawn apart from the counts:

- An agent *caches* its tokens (services 75 %, office agents 60 %, batches 30 %, builds 10 %, and only one that up to 60
  caches can explain) or asks for one for every job. A cache asks again when its token has used 70 to 90 % of its life.
  Caches are added when the load asks for more tokens than those there are would, and are gone after three lifetimes
  without a request: that is autoscaling. One that does not cache has 1 to 60 replicas, each as likely to ask.
- Networks: a NAT of 1 to 4 addresses in a /24, 2 to 8 /24s of a cloud with an address for each replica for 1 to 14
  days, other addresses of a provider every day, a new address for each request of a build, or IPv6. One agent in twelve
  moves to another network for good; that is no event. Replicas of a deploy are new ones.
- One to three scopes an agent, one `grant_type`, one `expires_in`, a user agent whose version rises up to three times.
- Between 1 in 1,000 and 1 in 50 requests are refused, at any time.
- Of tenants, 15 % send none of these fields, 10 % no address, 10 % no `expires_in`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.detection.incidents import log_uniform
from bench.detection.local_time import BINS_AN_HOUR, DAYS
from bench.detection.network import Nat, Network, make_network
from bench.detection.tenant import MAX_INSTANCES, Agent, Tenant
from bench.detection.traces import BIN_SECONDS

ALL_FIELDS: Final = frozenset({"grant_type", "scope", "client_ip", "user_agent", "expires_in"})
LIFETIMES: Final = (300, 600, 900, 1_800, 3_600, 7_200, 14_400, 43_200, 86_400)
USED_BEFORE_RENEWAL: Final = 0.8
_CACHING: Final = {"service": 0.75, "office": 0.6, "ci": 0.1}
_SCOPES: Final = (
    "agents:read",
    "agents:write",
    "orders:read",
    "orders:write",
    "invoices:read",
    "mail:send",
    "search:query",
    "models:invoke",
    "files:read",
    "files:write",
)
_USER_AGENTS: Final = (
    "python-requests/2.{}.0",
    "python-httpx/0.{}.0",
    "Go-http-client/1.{}",
    "okhttp/4.{}.0",
    "axios/1.{}.2",
    "Java-http-client/21.0.{}",
    "reqwest/0.{}",
    "billing-agent/3.{}",
)
_GRANTS: Final = (
    "client_credentials",
    "urn:ietf:params:oauth:grant-type:jwt-bearer",
    "urn:ietf:params:oauth:grant-type:token-exchange",
)


@dataclass
class Identity:
    """`fields`: those that the tenant's events have. `networks`, `user_agents`: (first day, what holds from it on)."""

    agent: Agent
    fields: frozenset[str]
    caching: bool
    replicas: int
    lifetime: int
    grant_type: str
    scopes: tuple[str, ...]
    networks: list[tuple[int, Network]]
    user_agents: list[tuple[int, str]]
    failure_share: float

    @property
    def network_kind(self) -> str:
        """The first network's; "" when its address is not told."""
        return self.networks[0][1].kind if "client_ip" in self.fields else ""

    def network(self, day: int) -> Network:
        """Where it runs on that day."""
        return [network for first, network in self.networks if first <= day][-1]

    def user_agent(self, day: int) -> str:
        """What it calls itself on that day."""
        return [user_agent for first, user_agent in self.user_agents if first <= day][-1]


def make_identities(tenant: Tenant, pick: np.random.Generator) -> list[Identity]:
    """One for each of the tenant's agents, in their order."""
    fields = _fields(pick)
    office = Nat(pick)
    return [_identity(agent, fields, office, pick) for agent in tenant.agents]


def _fields(pick: np.random.Generator) -> frozenset[str]:
    share = pick.random()
    if share < 0.15:
        return frozenset()
    if share < 0.25:
        return ALL_FIELDS - {"client_ip"}
    return ALL_FIELDS - {"expires_in"} if share < 0.35 else ALL_FIELDS


def _identity(agent: Agent, fields: frozenset[str], office: Nat, pick: np.random.Generator) -> Identity:
    an_hour = max(agent.mean * BINS_AN_HOUR, 1e-3)
    # A lifetime with which the instances that the counts were drawn with ask as often as they do.
    fitting = agent.instances / an_hour * 3600 / USED_BEFORE_RENEWAL
    possible = [seconds for seconds in LIFETIMES if _most_caches(agent, seconds) <= MAX_INSTANCES]
    caching = bool(pick.random() < _CACHING.get(agent.kind, 0.3)) and bool(possible)
    lifetime = int(pick.choice([300, 900, 3_600, 3_600, 86_400]))
    if caching:
        lifetime = min(possible, key=lambda seconds: abs(np.log(seconds / fitting)))
    networks: list[tuple[int, Network]] = [(0, make_network(agent.kind, office, pick))]
    if pick.random() < 1 / 12:
        networks.append((int(pick.integers(20, DAYS)), make_network(agent.kind, office, pick)))
    client, version = str(pick.choice(_USER_AGENTS)), int(pick.integers(1, 30))
    releases = [0, *sorted(pick.integers(1, DAYS, size=int(pick.integers(0, 4))).tolist())]
    return Identity(
        agent,
        fields,
        caching,
        replicas=MAX_INSTANCES if caching else round(log_uniform(pick, 1, MAX_INSTANCES)),
        lifetime=lifetime,
        grant_type=str(pick.choice(_GRANTS, p=[0.4, 0.1, 0.5] if agent.kind == "ci" else [0.9, 0.07, 0.03])),
        scopes=tuple(str(scope) for scope in pick.choice(_SCOPES, size=int(pick.integers(1, 4)), replace=False)),
        networks=networks,
        user_agents=[(day, client.format(version + number)) for number, day in enumerate(releases)],
        failure_share=log_uniform(pick, 0.001, 0.02),
    )


def _most_caches(agent: Agent, lifetime: int) -> float:
    """How many caches the busiest time needs: the tokens expected while one of them serves."""
    renewal = lifetime * USED_BEFORE_RENEWAL / BIN_SECONDS
    if renewal < 1:
        return float(agent.expected.max()) * renewal
    so_far = np.concatenate([[0.0], agent.expected.cumsum()])
    return float((so_far[int(renewal) :] - so_far[: -int(renewal)]).max())
