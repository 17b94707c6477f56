"""The tenant's alerts over HTTP: exact members, what lasts, whose they are."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from clickhouse.alert import KINDS
from clickhouse.connection import Connection
from tests.query_api.test_analytics import BAD_DAYS
from tests.support.api_harness import NOW, run, serving
from tests.support.verdicts import BIN, Verdict, bins, say

ALERTS = "/api/v1/analytics/alerts"
KEYS = [
    *("id", "kind", "severity", "agentId", "since", "until"),
    *("score", "threshold", "observed", "expected", "message"),
]
NOW_BIN = int(NOW) // BIN * BIN
HOUR, DAY = 3_600, 86_400


def moment(unix_seconds: int) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_an_alert_has_exactly_the_contract_members(connection: Connection, tmp_path: Path) -> None:
    ended = NOW_BIN - 2 * DAY
    say(connection, [Verdict("org-1", "silence", "", at) for at in bins(NOW_BIN - 2 * BIN, 2)])
    # The worst of an episode gives its figures, by severity first.
    say(
        connection,
        [
            Verdict("org-1", "spike", "a", ended, "ticket", 9.0, 900.0, 10.0, "5 minutes"),
            Verdict("org-1", "spike", "a", ended + BIN, "page", 3.14159, 310.5, 12.25, "15 minutes"),
        ],
    )

    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            reply = await api.get(ALERTS)
            assert reply.status == 200
            assert reply.headers["Cache-Control"] == "no-store"
            body = reply.json()
            assert list(body) == ["tenantId", "days", "data"]
            assert (body["tenantId"], body["days"]) == ("org-1", 7)
            assert [list(entry) for entry in body["data"]] == [KEYS, KEYS]
            silence, spike = body["data"]
            assert (silence["kind"], silence["agentId"], silence["until"]) == ("silence", None, None)
            assert silence["since"] == moment(NOW_BIN - 2 * BIN)
            assert spike["id"] != silence["id"]
            del spike["id"]
            assert spike == {
                "kind": "spike",
                "severity": "page",
                "agentId": "a",
                "since": moment(ended),
                "until": moment(ended + 2 * BIN),
                "score": 3.142,
                "threshold": 1.0,
                "observed": 310.5,
                "expected": 12.25,
                "message": "Agent a was issued 310 tokens in 15 minutes, where about 12 are usual "
                f"(since {datetime.fromtimestamp(ended, UTC):%Y-%m-%d %H:%M} UTC).",
            }

    run(scenario())


def test_until_is_null_while_it_lasts_and_the_id_stays(connection: Connection, tmp_path: Path) -> None:
    say(connection, [Verdict("org-1", "spike", "a", NOW_BIN - BIN)])

    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            (first,) = (await api.get(ALERTS)).json()["data"]
            assert first["until"] is None
            api.clock.now = NOW_BIN + HOUR - 1  # an hour without a verdict ends a spike
            (second,) = (await api.get(ALERTS)).json()["data"]
            assert second == first
            api.clock.now = NOW_BIN + HOUR
            (third,) = (await api.get(ALERTS)).json()["data"]
            assert third == {**first, "until": moment(NOW_BIN)}

    run(scenario())


def test_what_pauses_shortly_is_one_alert_and_what_was_taken_back_is_none(
    connection: Connection, tmp_path: Path
) -> None:
    start = NOW_BIN - DAY
    say(connection, [Verdict("org-1", "spike", "a", at) for at in (start, start + HOUR, start + 2 * HOUR + BIN)])
    say(connection, [Verdict("org-1", "spike", "b", start)])
    say(connection, [Verdict("org-1", "spike", "b", start, score=0.0, generation=2)])
    say(connection, [Verdict("org-1", "failures", "c", start, score=1.0)])  # at the limit is not over it

    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            found = [(entry["since"], entry["until"]) for entry in (await api.get(ALERTS)).json()["data"]]
            assert found == [
                (moment(start + 2 * HOUR + BIN), moment(start + 2 * HOUR + 2 * BIN)),
                (moment(start), moment(start + HOUR + BIN)),
            ]

    run(scenario())


def test_newest_first_of_the_days_asked_for_only(connection: Connection, tmp_path: Path) -> None:
    ages = {"a": 1, "b": 6, "c": 8, "d": 89, "e": 92}
    say(connection, [Verdict("org-1", "spike", agent, NOW_BIN - days * DAY) for agent, days in ages.items()])

    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            for query, agents in {"": "ab", "?days=1": "a", "?days=8": "abc", "?days=90": "abcd"}.items():
                body = (await api.get(ALERTS + query)).json()
                assert "".join(entry["agentId"] for entry in body["data"]) == agents, query

    run(scenario())


def test_every_kind_has_its_sentence(connection: Connection, tmp_path: Path) -> None:
    say(connection, [Verdict("org-1", kind, "the-agent", NOW_BIN - BIN, detail="x") for kind in KINDS])

    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            found = (await api.get(ALERTS)).json()["data"]
            assert {entry["kind"] for entry in found} == set(KINDS)
            assert len({entry["message"] for entry in found}) == len(KINDS)

    run(scenario())


def test_another_tenants_alerts_are_never_told(connection: Connection, tmp_path: Path) -> None:
    say(connection, [Verdict("org-2", kind, "secret-agent", NOW_BIN - BIN, detail="secret") for kind in KINDS])
    say(connection, [Verdict("org-1", "spike", "ours", NOW_BIN - BIN)])

    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            reply = await api.get(ALERTS)
            assert [entry["agentId"] for entry in reply.json()["data"]] == ["ours"]
            assert b"secret" not in reply.body
            assert (await api.get(ALERTS, tenant="org-3")).json() == {"tenantId": "org-3", "days": 7, "data": []}
            assert len((await api.get(ALERTS, tenant="org-2")).json()["data"]) == len(KINDS)

    run(scenario())


def test_only_a_canonical_number_of_days_is_taken(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            for days in BAD_DAYS:
                reply = await api.get(f"{ALERTS}?days={days}")
                assert (reply.status, reply.code) == (400, "VALIDATION_ERROR"), days
                assert reply.json()["details"] == {"parameter": "days", "minimum": 1, "maximum": 90}, days
            for query in ("tenant=org-2", "tenantId=org-2", "agent=a", "to=2026-11-01", "Days=7"):
                reply = await api.get(f"{ALERTS}?{query}")
                assert (reply.status, reply.code) == (400, "VALIDATION_ERROR"), query
            assert api.questions.calls == []

    run(scenario())


@pytest.mark.parametrize("query", ["", "?days=0"])
def test_credentials_are_looked_at_first(embedded_store: Connection, tmp_path: Path, query: str) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            anonymous = await api.request("GET", ALERTS + query)
            assert (anonymous.status, anonymous.code) == (401, "UNAUTHORIZED")
            assert anonymous.headers["WWW-Authenticate"].startswith("Bearer ")
            for claims in ({"scope": "other"}, {"organization_id": None}, {"organization_id": "a b"}):
                headers = {"Authorization": f"Bearer {api.access_token(**claims)}"}
                denied = await api.request("GET", ALERTS + query, headers=headers)
                assert (denied.status, denied.code) == (403, "FORBIDDEN"), claims
            assert api.questions.calls == []

    run(scenario())
