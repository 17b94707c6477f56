"""One agent over HTTP, against a count in plain Python over the events that were sent."""

from __future__ import annotations

import ipaddress
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from clickhouse.connection import Connection
from tests.query_api.test_analytics import BAD_DAYS
from tests.support.api_harness import NOW, event, run, serving

DETAIL = "/api/v1/analytics/agents/detail"
KEYS = [
    *("tenantId", "agentId", "days", "firstSeen", "lastSeen", "issued", "failures", "outstanding", "wasted", "data"),
    *("networks", "userAgents", "grantTypes", "scopes"),
]
NOW_MS = int(NOW * 1000)
HOUR_MS = 3_600_000
USED = {"networks": "client_ip", "userAgents": "user_agent", "grantTypes": "grant_type", "scopes": "scope"}


def path_of(agent: str, **more: object) -> str:
    return f"{DETAIL}?{urlencode({'agent': agent, **more})}"


def moment(ms: int) -> str:
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds" if ms % 1000 else "seconds").replace("+00:00", "Z")


def network_of(address: str) -> str:
    """/24 of IPv4 and /48 of IPv6."""
    found = ipaddress.ip_address(address)
    return str(ipaddress.ip_network(f"{found}/{24 if found.version == 4 else 48}", strict=False))


def naive(events: Iterable[dict[str, Any]], tenant: str, agent: str, days: int) -> dict[str, Any]:
    """The body that has to come back."""
    ours = [e for e in events if e["tenant_id"] == tenant]
    seen = [e["issued_at"] for e in ours if e["agent_id"] == agent]
    contents: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for e in ours:
        contents[e["issued_at"], e["event_id"]].append(e)
    today = datetime.fromtimestamp(NOW, UTC).date()
    window = [today - timedelta(days=back) for back in reversed(range(days))]
    counted = [min(same, key=lambda e: (e["outcome"] == "failure", e["agent_id"])) for same in contents.values()]
    counted = [e for e in counted if e["agent_id"] == agent and day_of(e) in window]
    issued = [e for e in counted if e["outcome"] == "success"]
    with_lifetime = [e for e in issued if e.get("expires_in")]
    return {
        "tenantId": tenant,
        "agentId": agent,
        "days": days,
        "firstSeen": moment(min(seen)),
        "lastSeen": moment(max(seen)),
        "issued": len(issued),
        "failures": len(counted) - len(issued),
        "outstanding": sum(e["issued_at"] + 1000 * e["expires_in"] > NOW_MS for e in with_lifetime)
        if with_lifetime
        else None,
        "wasted": round(sum(map(bool, held(with_lifetime))) / len(with_lifetime), 4) if with_lifetime else None,
        "data": [
            {
                "date": day.isoformat(),
                "count": sum(day_of(e) == day for e in issued),
                "failures": sum(day_of(e) == day and e["outcome"] == "failure" for e in counted),
            }
            for day in window
        ],
        **{name: used(issued, member) for name, member in USED.items()},
    }


def day_of(e: dict[str, Any]) -> Any:
    return datetime.fromtimestamp(e["issued_at"] / 1000, UTC).date()


def held(events: Sequence[dict[str, Any]]) -> list[bool]:
    """Of each event: whether an earlier one of its scope had over half of its lifetime left."""
    ordered = sorted(events, key=lambda e: (e["issued_at"], e["event_id"]))
    return [
        any(
            before.get("scope") == e.get("scope") and e["issued_at"] < before["issued_at"] + 500 * before["expires_in"]
            for before in ordered[:place]
        )
        for place, e in enumerate(ordered)
    ]


def used(issued: Sequence[dict[str, Any]], member: str) -> list[dict[str, Any]]:
    times: dict[str, list[int]] = defaultdict(list)
    for e in issued:
        if e.get(member):
            times[network_of(e[member]) if member == "client_ip" else e[member]].append(e["issued_at"])
    rows = sorted(times.items(), key=lambda item: (-len(item[1]), item[0].encode()))
    return [
        {"value": value, "count": len(at), "firstSeen": moment(min(at)), "lastSeen": moment(max(at))}
        for value, at in rows[:20]
    ]


def fleet(seed: int) -> list[dict[str, Any]]:
    """Made-up events of two tenants with agents of the same names; some sent twice, some under two agents."""
    rng = random.Random(seed)
    events = [
        event(
            number,
            tenant_id=rng.choice(["org-1", "org-1", "org-2"]),
            agent_id=rng.choice(["a", "b"]),
            issued_at=NOW_MS - rng.randrange(0, 40 * 24 * HOUR_MS if number % 2 else 2 * HOUR_MS),
            outcome="failure" if rng.random() < 0.2 else "success",
            expires_in=rng.choice([None, 60, 3_600, 86_400]),
            client_ip=rng.choice(
                [None, "192.0.2.7", "192.0.2.200", "198.51.100.1", "2001:db8:1:2::3", "2001:db8:1::9"]
            ),
            user_agent=rng.choice([None, "curl/8", "sdk/2 (ü)"]),
            grant_type=rng.choice([None, "client_credentials", "token_exchange"]),
            scope=rng.choice([None, "read", "read write"]),
        )
        for number in range(400)
    ]
    again = rng.sample(events, 60)
    shared = [{**e, "agent_id": "b" if e["agent_id"] == "a" else "a"} for e in rng.sample(events, 40)]
    refused = [{**e, "outcome": "failure"} for e in rng.sample(events, 20)]
    sent = events + again + shared + refused
    rng.shuffle(sent)
    return sent


@pytest.mark.parametrize("seed", [1, 2])
def test_every_figure_is_that_of_the_naive_count(connection: Connection, tmp_path: Path, seed: int) -> None:
    events = fleet(seed)

    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            for start in range(0, len(events), 100):
                assert (await api.send(events[start : start + 100])).status == 200
            for tenant in ("org-1", "org-2"):
                for agent in ("a", "b"):
                    for days in (1, 30, 90):
                        reply = await api.get(path_of(agent, days=days), tenant=tenant)
                        body = reply.json()
                        assert list(body) == KEYS
                        assert body == naive(events, tenant, agent, days), (tenant, agent, days)

    run(scenario())


def test_the_default_is_thirty_days_and_no_answer_is_kept(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            await api.send(event())
            reply = await api.get(path_of("agent-1"))
            assert (reply.status, reply.headers["Cache-Control"]) == (200, "no-store")
            assert (reply.json()["days"], len(reply.json()["data"])) == (30, 30)

    run(scenario())


def test_without_lifetimes_what_needs_them_is_null(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            # Neither a failure's lifetime nor one of 0 says anything about tokens.
            await api.send([event(1), event(2, expires_in=0), event(3, expires_in=60, outcome="failure")])
            body = (await api.get(path_of("agent-1"))).json()
            assert (body["issued"], body["failures"]) == (2, 1)
            assert (body["outstanding"], body["wasted"]) == (None, None)
            await api.send(event(4, expires_in=60))
            body = (await api.get(path_of("agent-1"))).json()
            assert (body["outstanding"], body["wasted"]) == (0, 0.0)

    run(scenario())


def test_a_short_token_between_does_not_hide_the_long_one_before(connection: Connection, tmp_path: Path) -> None:
    at = NOW_MS - HOUR_MS
    lifetimes = [(0, 3_600), (1_000, 10), (60_000, 3_600), (5_400_000, 60)]

    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            events = [
                event(number, issued_at=at + after - 5_400_000, expires_in=lifetime)
                for number, (after, lifetime) in enumerate(lifetimes)
            ]
            await api.send(events)
            assert (await api.get(path_of("agent-1"))).json()["wasted"] == 0.5

    run(scenario())


def test_lists_are_the_twenty_largest(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            await api.send(
                [
                    event(100 * number + again, scope=f"s-{number:02}", client_ip=f"10.0.{number}.1")
                    for number in range(25)
                    for again in range(number % 3 + 1)
                ]
            )
            body = (await api.get(path_of("agent-1"))).json()
            assert [len(body[name]) for name in USED] == [20, 0, 0, 20]
            counts = [entry["count"] for entry in body["scopes"]]
            assert counts == sorted(counts, reverse=True)
            assert counts[-1] == 1
            assert [e["value"] for e in body["scopes"] if e["count"] == 3] == [f"s-{n:02}" for n in range(2, 25, 3)]

    run(scenario())


def test_an_agent_that_the_tenant_never_had_is_404_also_if_another_has_it(
    connection: Connection, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            await api.send(
                [event(), event(1, tenant_id="org-2", agent_id="theirs", scope="secret"), event(2, agent_id="ü&=%")]
            )
            unknown = await api.get(path_of("nobody"))
            assert (unknown.status, unknown.code) == (404, "NOT_FOUND")
            theirs = await api.get(path_of("theirs"))
            assert (theirs.status, {**theirs.json()}) == (404, {**unknown.json()})
            assert b"secret" not in theirs.body
            assert (await api.get(path_of("theirs"), tenant="org-2")).json()["issued"] == 1
            assert (await api.get(path_of("ü&=%"))).json()["agentId"] == "ü&=%"
            # Known for longer than the days asked for: an answer of zeros.
            await api.send(event(3, agent_id="old", issued_at="2026-01-01T00:00:00Z", expires_in=60))
            body = (await api.get(path_of("old", days=7))).json()
            assert (body["issued"], body["outstanding"], body["wasted"]) == (0, None, None)
            assert body["firstSeen"] == body["lastSeen"] == "2026-01-01T00:00:00Z"

    run(scenario())


def test_an_agent_of_the_same_name_of_another_tenant_changes_nothing(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            await api.send(event(expires_in=60, scope="ours"))
            before = (await api.get(path_of("agent-1"))).json()
            await api.send([event(n, tenant_id="org-2", expires_in=9_999, scope="theirs") for n in range(5)])
            assert (await api.get(path_of("agent-1"))).json() == before

    run(scenario())


def test_only_parameters_that_can_be_meant_are_taken(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            for days in BAD_DAYS:
                reply = await api.get(f"{DETAIL}?agent=a&days={days}")
                assert (reply.status, reply.code) == (400, "VALIDATION_ERROR"), days
                assert reply.json()["details"] == {"parameter": "days", "minimum": 1, "maximum": 90}, days
            for query in (
                *("", "?", "?days=7", "?agent", "?agent=", "?agent=a&agent=b", "?agent=a&agent=a"),
                *(f"?agent={bad}" for bad in ("%00", "a%0A", "%C2%85", "x" * 257)),
            ):
                reply = await api.get(DETAIL + query)
                assert (reply.status, reply.code) == (400, "VALIDATION_ERROR"), query
                assert reply.json()["details"] == {"parameter": "agent"}, query
            for query in ("tenant=org-2", "tenantId=org-2", "to=2026-11-01", "tz=UTC", "Agent=a"):
                reply = await api.get(f"{DETAIL}?agent=a&{query}")
                assert (reply.status, reply.code) == (400, "VALIDATION_ERROR"), query
            assert api.questions.calls == []

    run(scenario())


@pytest.mark.parametrize("query", ["?agent=agent-1", "?agent=nobody", "", "?days=0"])
def test_credentials_are_looked_at_first(embedded_store: Connection, tmp_path: Path, query: str) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            anonymous = await api.request("GET", DETAIL + query)
            assert (anonymous.status, anonymous.code) == (401, "UNAUTHORIZED")
            for claims in ({"scope": "other"}, {"organization_id": None}, {"organization_id": "a b"}):
                headers = {"Authorization": f"Bearer {api.access_token(**claims)}"}
                denied = await api.request("GET", DETAIL + query, headers=headers)
                assert (denied.status, denied.code) == (403, "FORBIDDEN"), claims
            assert api.questions.calls == []

    run(scenario())
