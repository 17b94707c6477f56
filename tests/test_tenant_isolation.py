"""Nobody sees another tenant: the fence in the engine, and a canary through every route and parameter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from clickhouse.agent_detail import AgentDetails
from clickhouse.alerts import Alerts
from clickhouse.connection import Connection
from clickhouse.event import Event
from clickhouse.marks import Segments
from clickhouse.queries import Queries, tenant_fence
from clickhouse.tenant import TenantId
from tests.support.rig import NOW, Rig
from tests.support.service import Service, request, wait_for
from tests.support.verdicts import Verdict, say

OURS, CANARY = "org-ours", "org-canary"
CANARY_AGENT = "canary-agent-3f9c"
CANARY_COUNT = 7919  # a number that turns up nowhere else
# A query that forgot its WHERE, over each table that holds a tenant's figures.
UNFENCED = {
    "events": "SELECT tenant_id, count() FROM events GROUP BY tenant_id",
    "marks": "SELECT tenant_id, count() FROM marks GROUP BY tenant_id",
    "agent_slot": "SELECT tenant_id, sum(issued) FROM agent_slot FINAL GROUP BY tenant_id",
    "tenant_slot": "SELECT tenant_id, sum(issued) FROM tenant_slot FINAL GROUP BY tenant_id",
    "agent_day": "SELECT tenant_id, sum(issued) FROM agent_day FINAL GROUP BY tenant_id",
    "tenant_day": "SELECT tenant_id, sum(issued) FROM tenant_day FINAL GROUP BY tenant_id",
    "verdicts": "SELECT tenant_id, max(score) FROM verdicts FINAL GROUP BY tenant_id",
    "join": "SELECT e.tenant_id, count() FROM events AS e JOIN tenant_slot AS s ON e.event_id != toString(s.slot) "
    "GROUP BY e.tenant_id",
    "or": "SELECT tenant_id, count() FROM events WHERE tenant_id = 'org-ours' OR 1 GROUP BY tenant_id",
    "cte": "WITH everyone AS (SELECT * FROM events) SELECT tenant_id, count() FROM everyone GROUP BY tenant_id",
    "union": "SELECT tenant_id, 1 FROM events UNION DISTINCT SELECT tenant_id, 1 FROM agent_day",
}


@pytest.fixture
def two_tenants(connection: Connection) -> Connection:
    rig = Rig(connection)
    at = int(NOW.timestamp() * 1000) - 3_600_000
    for name in (OURS, CANARY):
        rig.writer.write([Event(name, at, f"{name}-{number}", f"{name}-agent") for number in range(5)])
        say(connection, [Verdict(name, "spike", f"{name}-agent", at // 1000)])
    rig.upkeep.settle()
    rig.writer.write([Event(name, at - 86_400_000, f"{name}-dirty", f"{name}-agent") for name in (OURS, CANARY)])
    return connection


@pytest.mark.parametrize("statement", UNFENCED.values(), ids=UNFENCED.keys())
def test_a_query_without_its_where_gets_nothing_of_another_tenant(two_tenants: Connection, statement: str) -> None:
    everything = {row[0] for row in two_tenants.rows(statement)}
    assert everything == {OURS, CANARY}, "the control without the fence must see both"
    fence = {"additional_table_filters": tenant_fence(TenantId(OURS))}
    assert {row[0] for row in two_tenants.rows(statement, settings=fence)} == {OURS}


@pytest.mark.parametrize("tenant", [None, OURS, "", b"org-ours", 7])
def test_a_question_without_a_checked_tenant_does_not_run(two_tenants: Connection, tenant: object) -> None:
    queries = Queries(two_tenants, Segments())
    now = int(NOW.timestamp())
    for ask in (
        lambda: Alerts(two_tenants).of_tenant(tenant, now - 86_400, now),  # type: ignore[arg-type]
        lambda: AgentDetails(two_tenants).of(tenant, f"{OURS}-agent", NOW, 30),  # type: ignore[arg-type]
        lambda: queries.trend(tenant, NOW.date(), 30),  # type: ignore[arg-type]
        lambda: queries.activity(tenant, NOW.date(), 30),  # type: ignore[arg-type]
        lambda: queries.agents(tenant, NOW.date()),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match="TenantId"):
            ask()


def test_alerts_and_details_are_of_their_tenant_only(two_tenants: Connection) -> None:
    now = int(NOW.timestamp())
    alerts, details = Alerts(two_tenants), AgentDetails(two_tenants)
    assert {alert.tenant_id for alert in alerts.of_all(now - 86_400, now)} == {OURS, CANARY}
    for name, other in ((OURS, CANARY), (CANARY, OURS)):
        assert {alert.tenant_id for alert in alerts.of_tenant(TenantId(name), now - 86_400, now)} == {name}
        assert details.of(TenantId(name), f"{other}-agent", NOW, 90) is None
        detail = details.of(TenantId(name), f"{name}-agent", NOW, 90)
        assert detail is not None
        assert detail.issued == 6


@pytest.mark.parametrize("tenant", ["o'rg", "a b", "a\n", "-a", "", "a" * 129, "ü", "a/b", "a\\", '"', "a\0"])
def test_a_tenant_that_could_leave_its_literal_is_no_tenant(tenant: str) -> None:
    with pytest.raises(ValueError, match="tenant id"):
        TenantId(tenant)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("canary"), "--refresh-interval", "0.2s", "--zero-hold", "0s") as service:
        now = datetime.now(UTC).isoformat()
        for tenant, agent, count in ((OURS, "our-agent", 3), (CANARY, CANARY_AGENT, CANARY_COUNT)):
            rows = [
                {"event_id": f"{tenant}-{number}", "tenant_id": tenant, "agent_id": agent, "issued_at": now}
                for number in range(count)
            ]
            assert service.post(rows)[0] == 200
        wait_for(lambda: service.samples("agentidp_tenant_tokens_issued_total").get(CANARY) == CANARY_COUNT, 30)
        yield service


TAMPERING = [
    "", "?days=30", "?days=90", f"?tenantId={CANARY}", f"?organization_id={CANARY}", f"?tenant_id={CANARY}",
    f"?days=30&tenant={CANARY}", f"?agent={CANARY_AGENT}", "?days=1%20OR%201=1", "?days=30;days=90", f"/{CANARY}",
    f"/../{CANARY}", "?days=30&days=30", f"?days={CANARY}", "?agent=our-agent", f"?agent=our-agent&tenant={CANARY}",
    f"?agent=our-agent&agent={CANARY_AGENT}",
]  # fmt: skip
HEADERS = [
    {},
    {"X-Organization-Id": CANARY, "X-Tenant-Id": CANARY, "organization_id": CANARY},
    {"X-Forwarded-Host": CANARY, "Cookie": f"organization_id={CANARY}", "X-Original-URL": f"/{CANARY}"},
    {"If-None-Match": "*", "Range": "bytes=0-99999", "X-Request-Id": CANARY},
]


@pytest.mark.parametrize("route", ["tokens", "agents/activity", "agents", "agents/detail", "alerts"])
def test_no_route_parameter_or_header_shows_the_canary(service: Service, route: str) -> None:
    for suffix in TAMPERING:
        for extra in HEADERS:
            headers = {"Authorization": f"Bearer {service.token(OURS)}"} | extra
            status, answer, body = request("GET", f"{service.url}/api/v1/analytics/{route}{suffix}", headers)
            assert status in (200, 304, 400, 404)
            text = body.decode()
            if status == 200:
                assert json.loads(text)["tenantId"] == OURS
            shown = text + "".join(f"{name}:{value}" for name, value in answer.items() if name != "X-Request-Id")
            assert CANARY_AGENT not in shown
            assert str(CANARY_COUNT) not in shown
            # A parameter of the caller's may be named back to it, in an error about that very parameter.
            if status == 200:
                assert CANARY not in shown


def test_the_canary_is_in_its_own_answers_so_the_test_can_fail(service: Service) -> None:
    assert service.get("/api/v1/analytics/agents", CANARY)[1]["data"] == [
        {"agentId": CANARY_AGENT, "tokenCount": CANARY_COUNT}
    ]
    detail = service.get(f"/api/v1/analytics/agents/detail?agent={CANARY_AGENT}", CANARY)[1]
    assert (detail["tenantId"], detail["issued"]) == (CANARY, CANARY_COUNT)
    assert service.get("/api/v1/analytics/alerts", CANARY)[1]["tenantId"] == CANARY


def test_the_open_pages_and_the_log_hold_no_tenant_and_the_metrics_no_agent(service: Service) -> None:
    for path in ("/healthz", "/readyz", "/openapi.json", "/", "/api/v1/analytics/tokens"):
        _, _, body = request("GET", service.url + path, {})
        assert CANARY not in body.decode()
    _, _, metrics = request("GET", service.metrics_url + "/metrics", {})
    assert CANARY_AGENT not in metrics.decode()
    assert "our-agent" not in metrics.decode()
    log = service.log()
    assert "GET" in log
    # An access line names the tenant whose token was checked, for the operator; nothing else of a caller's.
    assert not re.search(rf"{CANARY_AGENT}|our-agent|Bearer|eyJ", log)


def test_an_unauthenticated_caller_makes_no_tenant_no_label_and_no_line(service: Service) -> None:
    before = request("GET", service.metrics_url + "/metrics", {})[2].decode()
    row = {"event_id": "x", "tenant_id": "org-intruder", "agent_id": "intruder", "issued_at": "2026-01-01T00:00:00Z"}
    for token in ("", "wrong", service.token("org-intruder")):
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        status, _, body = request("POST", f"{service.url}/api/v1/events", headers, json.dumps([row]).encode())
        assert status == 401
        assert b"intruder" not in body
    request("GET", f"{service.url}/org-intruder?x=intruder", {"X-Intruder": "intruder"})
    after = request("GET", service.metrics_url + "/metrics", {})[2].decode()
    names = [re.findall(r"^(agentidp_[^ ]+) ", text, re.MULTILINE) for text in (before, after)]
    assert {name for name in names[1] if "intruder" in name} == set()
    assert "intruder" not in service.log()
    assert service.get("/api/v1/analytics/agents", "org-intruder")[1]["data"] == []
