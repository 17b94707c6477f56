"""Made-up issuance: 90 days of a small fleet with office hours, weekends, a retry loop and a tenant gone silent."""

from __future__ import annotations

import math
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final
from zlib import crc32

from agentidp_analytics.backfill import EVENTS_A_BATCH
from agentidp_analytics.progress import Progress
from clickhouse.event import Event
from clickhouse.store import Store
from clickhouse.totals import Totals

DAYS: Final = 90
_SCOPES: Final = ("agents:read", "agents:read tokens:read", "analytics:read")


@dataclass(frozen=True)
class DemoAgent:
    """`tokens_a_day` on a weekday; `night` is the share of the daytime rate that is left at night and weekends."""

    tenant_id: str
    agent_id: str
    tokens_a_day: float
    night: float


@dataclass(frozen=True)
class Trouble:
    """What an agent does in the last `minutes` before the start: a request every `seconds`."""

    story: str
    agent: DemoAgent
    seconds: float
    minutes: int = 20
    outcome: str = "success"
    client_ip: str = ""  # "": where it always is


@dataclass(frozen=True)
class DemoFleet:
    """The agents, and which of them tell a story."""

    agents: list[DemoAgent]
    looping_agent: str
    looping_tenant: str
    looping_days_ago: int
    silent_tenant: str
    silent_for_days: int
    dominated_tenant: str
    troubles: list[Trouble]  # of the last minutes, for the detector


def demo_fleet(seed: int = 7) -> DemoFleet:
    """Six tenants with 46 agents, the same for the same seed."""
    pick = random.Random(seed)  # noqa: S311 - made-up data, no secret
    sizes = {"acme": 12, "globex": 10, "initech": 8, "umbrella": 7, "hooli": 6, "stark": 3}
    agents = [
        DemoAgent(
            tenant_id=f"org-{tenant}",
            agent_id=str(uuid.UUID(int=pick.getrandbits(128), version=4)),
            tokens_a_day=pick.choice((24, 48, 96, 144)) * pick.uniform(0.7, 1.3),
            night=pick.choice((0.05, 0.1, 0.9)),
        )
        for tenant, size in sizes.items()
        for _ in range(size)
    ]
    heavy = next(index for index, agent in enumerate(agents) if agent.tenant_id == "org-hooli")
    agents[heavy] = DemoAgent(agents[heavy].tenant_id, agents[heavy].agent_id, 4000.0, 0.6)
    looping = max(
        (index for index, agent in enumerate(agents) if agent.tenant_id == "org-acme"),
        key=lambda index: agents[index].tokens_a_day,
    )
    agents[looping] = replace(agents[looping], night=0.9)  # so that a weekend shows the loop as well
    of = {tenant: [agent for agent in agents if agent.tenant_id == f"org-{tenant}"] for tenant in sizes}
    troubles = [
        Trouble("org-globex: an agent in a retry loop", of["globex"][0], 3.0),
        Trouble("org-initech: a credential used from a network it never came from", of["initech"][0], 150.0,
                client_ip="203.0.113.77"),
        Trouble("org-stark: an agent that does not keep its tokens", of["stark"][0], 20.0),
        Trouble("org-globex: an agent whose requests fail", of["globex"][1], 15.0, outcome="failure"),
    ]  # fmt: skip
    return DemoFleet(
        agents, agents[looping].agent_id, agents[looping].tenant_id, 9, "org-umbrella", 4, "org-hooli", troubles
    )


def demo_history(fleet: DemoFleet, now: datetime, seed: int = 7) -> Iterator[Event]:
    """The 90 days before `now` (UTC), agent by agent, none in the future; the same seed gives the same events."""
    pick = random.Random(seed + 1)  # noqa: S311
    first = now.replace(minute=0, second=0, microsecond=0) - timedelta(days=DAYS - 1, hours=now.hour)
    hours = int((now - first).total_seconds() // 3600) + 1
    silent_from = now - timedelta(days=fleet.silent_for_days)
    loop_day = (now - timedelta(days=fleet.looping_days_ago)).date()
    now_ms = int(now.timestamp() * 1000)
    for agent in fleet.agents:
        for offset in range(hours):
            hour = first + timedelta(hours=offset)
            if agent.tenant_id == fleet.silent_tenant and hour >= silent_from:
                break
            expected = agent.tokens_a_day * hourly_share(hour, agent.night)
            if agent.agent_id == fleet.looping_agent and hour.date() == loop_day:
                expected *= 20
            start_ms = int(hour.timestamp() * 1000)
            for _ in range(_poisson(pick, expected)):
                at = start_ms + int(pick.random() * 3_600_000)
                if at <= now_ms:
                    yield demo_event(pick, agent, at)
    for trouble in fleet.troubles:
        for number in range(int(60 * trouble.minutes / trouble.seconds)):
            event = demo_event(pick, trouble.agent, now_ms - int(1000 * trouble.seconds * (number + pick.random())))
            address = trouble.client_ip or event.client_ip
            yield event._replace(outcome=trouble.outcome, client_ip=address)


def demo_event(pick: random.Random, agent: DemoAgent, issued_at_ms: int) -> Event:
    """One event of `agent`; one in fifty is a refusal."""
    return Event(
        tenant_id=agent.tenant_id,
        issued_at=issued_at_ms,
        event_id=str(uuid.UUID(int=pick.getrandbits(128), version=4)),
        agent_id=agent.agent_id,
        outcome="failure" if pick.random() < 0.02 else "success",
        grant_type="client_credentials",
        scope=_SCOPES[crc32(agent.agent_id.encode()) % len(_SCOPES)],
        client_ip=f"192.0.2.{crc32(agent.agent_id.encode()) % 254 + 1}",
        user_agent="demo-agent/1.0",
        source="demo",
        expires_in=3600,
    )


def demo_moment(fleet: DemoFleet, pick: random.Random, now: datetime) -> list[Event]:
    """A few events of this moment, from agents that are likely to be busy; none of the silent tenant."""
    agents = [agent for agent in fleet.agents if agent.tenant_id != fleet.silent_tenant]
    weights = [agent.tokens_a_day**0.5 * (0.2 + hourly_share(now, agent.night)) for agent in agents]
    chosen = pick.choices(agents, weights, k=pick.randint(1, 6))
    return [demo_event(pick, agent, int(now.timestamp() * 1000)) for agent in chosen]


def hourly_share(hour: datetime, night: float) -> float:
    """Share of a weekday's tokens in one hour: a bell around 13:00 on weekdays, `night` of its mean otherwise."""
    bell = math.exp(-(((hour.hour - 13) / 4) ** 2))
    working = bell if hour.weekday() < 5 else 0.0
    mean = 7.09 / 24  # of the bell over a day
    return (night * mean + (1 - night) * working) / 7.09


def _poisson(pick: random.Random, expected: float) -> int:
    if expected > 50:
        return max(0, round(pick.gauss(expected, math.sqrt(expected))))
    limit, count, product = math.exp(-expected), 0, pick.random()
    while product > limit:
        count += 1
        product *= pick.random()
    return count


def fill(store: Store, fleet: DemoFleet) -> int:
    """Writes the history and marks its tenants as published, as if the service had run all the time.

    Returns the number of events. Shows progress on stderr. Raises StoreError.
    """
    batch: list[Event] = []
    written = 0
    with Progress() as progress:
        for event in demo_history(fleet, datetime.now(UTC)):
            batch.append(event)
            if len(batch) == EVENTS_A_BATCH:
                store.writer.write(batch)
                written += len(batch)
                progress.say(f"making up {DAYS} days: {written:,} events")
                batch = []
        store.writer.write(batch)
        progress.say("rolling up ...")
        store.upkeep.settle()
        totals = Totals(store.connection)
        all_tenants = totals.read()
        totals.record(all_tenants, newly_published=all_tenants.tenant_id)
    return written + len(batch)
