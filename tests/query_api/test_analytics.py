"""The three questions over HTTP: exact bodies, strict parameters, one tenant only, and errors in one shape."""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from clickhouse.connection import Connection
from clickhouse.errors import StoreUnavailableError
from tests.support.api_harness import event, issuer, logged, run, serving
from tests.support.hostile_tokens import attacks, complaints, controls, send

TOKENS = "/api/v1/analytics/tokens"
ACTIVITY = "/api/v1/analytics/agents/activity"
AGENTS = "/api/v1/analytics/agents"

# Sunday 22nd, the last and first hour of a day, the oldest day of 30, one too old, another month, a failure.
EVENTS = [
    event(1, issued_at="2026-11-22T23:59:59.999Z", agent_id="b"),
    event(2, issued_at="2026-11-23T00:00:00Z", agent_id="a"),
    event(3, issued_at="2026-11-23T01:30:00+01:00", agent_id="b"),
    event(4, issued_at="2026-10-25T00:00:00Z"),
    event(5, issued_at="2026-10-24T23:59:59Z"),
    event(6, issued_at="2026-11-23T00:00:01Z", agent_id="c", outcome="failure"),
    event(1, tenant_id="org-2", issued_at="2026-11-23T00:00:00Z", agent_id="secret-of-org-2"),
]


def test_the_trend_has_every_day_and_this_tenant_only(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            assert (await api.send(EVENTS)).json() == {"accepted": 7, "rejected": []}
            reply = await api.get(f"{TOKENS}?days=3")
            assert reply.status == 200
            assert reply.json() == {
                "tenantId": "org-1",
                "days": 3,
                "data": [
                    {"date": "2026-11-21", "count": 0},
                    {"date": "2026-11-22", "count": 1},
                    {"date": "2026-11-23", "count": 2},
                ],
            }
            month = (await api.get(TOKENS)).json()
            assert month["days"] == 30
            assert [day["date"] for day in month["data"]][:2] == ["2026-10-25", "2026-10-26"]
            assert sum(day["count"] for day in month["data"]) == 4
            other = (await api.get(f"{TOKENS}?days=1", tenant="org-2")).json()
            assert other == {"tenantId": "org-2", "days": 1, "data": [{"date": "2026-11-23", "count": 1}]}

    run(scenario())


def test_activity_and_agents_have_exactly_the_contract_members(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            await api.send(EVENTS)
            assert (await api.get(f"{ACTIVITY}?days=2")).json() == {
                "tenantId": "org-1",
                "data": [{"dow": 0, "hour": 23, "count": 1}, {"dow": 1, "hour": 0, "count": 2}],
            }
            assert (await api.get(AGENTS)).json() == {
                "tenantId": "org-1",
                "month": "2026-11",
                "data": [{"agentId": "b", "tokenCount": 2}, {"agentId": "a", "tokenCount": 1}],
            }
            empty = await api.get(AGENTS, tenant="org-3")
            assert empty.json() == {"tenantId": "org-3", "month": "2026-11", "data": []}

    run(scenario())


def test_today_and_this_month_come_from_the_clock(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            await api.send(EVENTS)
            api.clock.now = datetime(2026, 11, 30, 23, 59, 59, 999_000, tzinfo=UTC).timestamp()
            assert (await api.get(f"{TOKENS}?days=1")).json()["data"] == [{"date": "2026-11-30", "count": 0}]
            assert (await api.get(AGENTS)).json()["month"] == "2026-11"
            api.clock.now += 0.001
            assert (await api.get(f"{TOKENS}?days=1")).json()["data"] == [{"date": "2026-12-01", "count": 0}]
            assert (await api.get(AGENTS)).json() == {"tenantId": "org-1", "month": "2026-12", "data": []}

    run(scenario())


def fleet_of(agents: int) -> list[dict[str, Any]]:
    """Events of `agents` agents, one to three each, so that many have the same number."""
    return [
        event(number * 3 + again, agent_id=f"agent-{number:03}")
        for number in range(agents)
        for again in range(number % 3 + 1)
    ]


def test_pages_of_agents_follow_their_links_to_the_whole_list(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            await api.send([*fleet_of(25), event(1, tenant_id="org-2")])
            whole = (await api.get(AGENTS)).json()["data"]
            assert len(whole) == 25
            assert whole == sorted(whole, key=lambda row: (-row["tokenCount"], row["agentId"]))
            for limit in (1, 7, 24, 25, 10_000):
                found, path, pages = [], f"{AGENTS}?limit={limit}", 0
                while path:
                    reply = await api.get(path)
                    assert reply.status == 200
                    assert set(reply.json()) == {"tenantId", "month", "data"}
                    found += reply.json()["data"]
                    pages += 1
                    link = re.fullmatch('<(.*)>; rel="next"', reply.headers.get("Link", ""))
                    path = urljoin(f"http://x{path}", link[1]).removeprefix("http://x") if link else ""
                assert (found, pages) == (whole, -(-25 // limit))

    run(scenario())


def test_pages_stay_in_their_month_and_their_tenant(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            await api.send(fleet_of(3))
            link = (await api.get(f"{AGENTS}?limit=2")).headers["Link"]
            following = AGENTS + link[link.index("?") : link.index(">")]
            api.clock.now = datetime(2026, 12, 1, 0, 0, 1, tzinfo=UTC).timestamp()
            assert (await api.get(following)).json() == {
                "tenantId": "org-1", "month": "2026-11", "data": [{"agentId": "agent-000", "tokenCount": 1}],
            }  # fmt: skip
            assert (await api.get(following, tenant="org-2")).json()["data"] == []
            api.clock.now = datetime(2027, 1, 1, tzinfo=UTC).timestamp()
            assert (await api.get(following)).status == 400

    run(scenario())


def test_only_a_limit_and_a_place_of_a_list_are_taken(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            for limit in ("0", "-1", "10001", "99999", "100000", "1.5", "abc", "", "+5", "05", "5&limit=5", "٣"):
                reply = await api.get(f"{AGENTS}?limit={limit}")
                assert (reply.status, reply.code) == (400, "VALIDATION_ERROR"), limit
                assert reply.json()["details"] == {"parameter": "limit", "minimum": 1, "maximum": 10_000}, limit

            def place(value: object) -> str:
                return urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).decode().rstrip("=")

            good = place(["2026-11", 3, "a"])
            assert (await api.get(f"{AGENTS}?after={good}")).status == 200
            for after in (
                *("", "x", "%00", "٣", good + "=", good + " ", good[:-1], f"{good}&after={good}", "A" * 1_000),
                *(place(value) for value in (None, 5, (), "{}", "2026-11", ["2026-11", 3], ["2026-11", "3", "a"])),
                *(place(["2026-11", count, "a"]) for count in (0, -1, 2**64, 1.5, None, "3")),
                *(place([month, 3, "a"]) for month in ("2026-13", "2026-1", "", None, "2026-12", "2026-09", 5)),
                *(place(["2026-11", 3, agent]) for agent in (None, 5, (), 1.5, "\ud800")),
            ):
                reply = await api.get(f"{AGENTS}?after={after}")
                assert (reply.status, reply.code) == (400, "VALIDATION_ERROR"), after
                assert reply.json()["details"] == {"parameter": "after"}, after

    run(scenario())


def test_an_answered_event_is_in_the_next_answer(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            for number in range(1, 6):
                await api.send(event(number))
                reply = await api.get(f"{TOKENS}?days=1")
                assert reply.json()["data"][0]["count"] == number
                assert reply.headers["Cache-Control"] == "no-store"

    run(scenario())


BAD_DAYS = (
    *("0", "-1", "91", "1.5", "abc", "", "+5", "%2B5", " 5", "5 ", "5%0A", "%005", "05", "007", "1e1", "0x10", "1_0"),
    *("٣", "７", "²", "9" * 400, "30&days=30", "30&days=7", "7,8", "7;days=8", "null", "[7]", "٣0", "3٠"),
)


@pytest.mark.parametrize("path", [TOKENS, ACTIVITY])
def test_only_a_canonical_number_of_days_is_taken(embedded_store: Connection, tmp_path: Path, path: str) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            for days in BAD_DAYS:
                reply = await api.get(f"{path}?days={days}")
                assert (reply.status, reply.code) == (400, "VALIDATION_ERROR"), days
                assert reply.json()["details"] == {"parameter": "days", "minimum": 1, "maximum": 90}, days
            assert api.questions.calls == []
            for days in ("1", "9", "10", "30", "90", "%37"):
                assert (await api.get(f"{path}?days={days}")).status == 200, days
            assert (await api.get(f"{path}?days")).status == 400
            assert (await api.get(f"{path}?")).status == 200

    run(scenario())


def test_unknown_parameters_are_named_only_if_that_is_safe(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            for path in (TOKENS, ACTIVITY, AGENTS):
                for query, shown in {
                    "tenantId=org-2": "tenantId",
                    "Days=7": "Days",
                    "days[]=7": None,
                    "<script>=1": None,
                    "=1": None,
                    "x" * 65 + "=1": None,
                    "a%0d%0ab=1": None,
                }.items():
                    reply = await api.get(f"{path}?{query}")
                    assert (reply.status, reply.json()["details"]) == (400, {"parameter": shown}), (path, query)
                    assert b"script" not in reply.body
            assert (await api.get(f"{AGENTS}?days=7")).json()["details"] == {"parameter": "days"}

    run(scenario())


def test_credentials_are_looked_at_before_parameters(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            for path in (f"{TOKENS}?days=0", f"{ACTIVITY}?days=0", f"{AGENTS}?what=1"):
                anonymous = await api.request("GET", path)
                assert (anonymous.status, anonymous.code) == (401, "UNAUTHORIZED")
                assert anonymous.headers["WWW-Authenticate"] == 'Bearer realm="agentidp-analytics"'
                for claims in ({"scope": "other"}, {"organization_id": None}):
                    token = api.access_token(**claims)
                    denied = await api.request("GET", path, headers={"Authorization": f"Bearer {token}"})
                    assert (denied.status, denied.code) == (403, "FORBIDDEN")
                assert (await api.get(path)).status == 400

    run(scenario())


def test_the_attack_suite_gets_nowhere_through_the_real_api(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            await api.send([event(1), event(1, tenant_id="org-2", agent_id="secret-of-org-2")])
            for attack in [*controls(issuer(), api.clock.now), *attacks(issuer(), api.clock.now)]:
                api.timer.now += 1
                answer = await send("127.0.0.1", api.port, AGENTS, attack)
                assert complaints(attack, answer, "org-1") == [], attack.id
                assert b"secret-of-org-2" not in answer.body, attack.id
                assert "x-request-id" in answer.headers, attack.id
            assert {tenant for _, tenant in api.questions.calls} == {"org-1"}

    run(scenario())


def test_head_is_get_without_its_body(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            authorization = {"Authorization": f"Bearer {api.access_token()}"}
            for path in (TOKENS, ACTIVITY, AGENTS, "/healthz", "/readyz", "/openapi.json", f"{TOKENS}?days=0"):
                full = await api.request("GET", path, headers=authorization)
                head = await api.request("HEAD", path, headers=authorization)
                assert (head.status, head.body) == (full.status, b""), path
                assert head.headers["Content-Length"] == str(len(full.body)), path

    run(scenario())


def test_a_store_that_is_away_is_503_and_a_bug_is_500_without_internals(
    embedded_store: Connection, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            api.questions.error = StoreUnavailableError("the disk of db-7.internal is full", retry_after=7)
            for path in (TOKENS, ACTIVITY, AGENTS):
                reply = await api.get(path)
                assert (reply.status, reply.code) == (503, "UNAVAILABLE")
                assert reply.headers["Retry-After"] == "7"
                assert b"db-7" not in reply.body
            api.questions.error = RuntimeError("password=hunter2")
            for path in (TOKENS, ACTIVITY, AGENTS):
                reply = await api.get(path, headers={"X-Request-Id": "find-me"})
                assert (reply.status, reply.code) == (500, "INTERNAL_ERROR")
                assert reply.headers["X-Request-Id"] == "find-me"
                assert reply.json().keys() == {"code", "message"}
                assert b"hunter2" not in reply.body
            assert api.metric("http_requests_total", route=TOKENS, method="GET", code="500") == 1

    with logged() as lines:
        run(scenario())
    text = "\n".join(lines)
    assert "hunter2" not in text
    assert "RuntimeError at " in text
    assert "find-me" in text
