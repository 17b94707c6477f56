"""The main job on real tokens: a real provider issues them, our service verifies, counts and publishes them."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.grafana_panels import evaluate_dashboards
from tests.support.identity_provider import IdentityProvider
from tests.support.prometheus_server import prometheus as prometheus_running
from tests.support.prometheus_server import quick_config
from tests.support.service import INGEST_TOKEN, Service, request, wait_for

TOKENS = 300


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as provider:
        yield provider


@pytest.fixture(scope="module")
def service(provider: IdentityProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    trust = ("--issuer", provider.issuer, "--audience", provider.audience, "--jwks-url", provider.jwks_url)
    options = ("--refresh-interval", "0.2s", "--zero-hold", "1s", "--required-scope", "analytics:read")
    with Service(tmp_path_factory.mktemp("service"), *options, issuer=trust) as service:
        provider.send_events_to(service.url + "/api/v1/events", INGEST_TOKEN)
        yield service


def test_what_the_provider_issued_is_what_the_service_answers(
    provider: IdentityProvider, service: Service, tmp_path: Path
) -> None:
    config = quick_config(tmp_path, f"127.0.0.1:{service.metrics_port}")
    with prometheus_running(config, tmp_path / "prometheus") as prometheus:
        tokens = provider.issue(TOKENS)
        provider.refuse(provider.agents[0].client_id)
        stats = provider.wait_delivered()
        assert len(set(tokens)) == TOKENS
        month = datetime.now(UTC).strftime("%Y-%m")
        issued = {
            tenant: {
                agent.client_id: stats["issued"][agent.client_id] for agent in provider.agents if agent.tenant == tenant
            }
            for tenant in {agent.tenant for agent in provider.agents}
        }
        assert len(issued) == 2
        for agent in provider.agents:
            token = provider.token(agent.client_id)
            stats = provider.wait_delivered()
            issued[agent.tenant][agent.client_id] = stats["issued"][agent.client_id]
            own = issued[agent.tenant]
            by_day: Counter[str] = Counter()
            by_hour: Counter[tuple[int, int]] = Counter()
            for client in own:
                by_day.update(stats["issued"][client])
                for hour, count in stats["issued_by_hour"][client].items():
                    moment = datetime.strptime(hour, "%Y-%m-%dT%H").replace(tzinfo=UTC)
                    by_hour[moment.isoweekday() % 7, moment.hour] += count

            status, trend = service.get("/api/v1/analytics/tokens?days=2", token=token)
            assert status == 200
            assert trend["tenantId"] == agent.tenant
            assert {day["date"]: day["count"] for day in trend["data"] if day["count"]} == dict(by_day)

            status, activity = service.get("/api/v1/analytics/agents/activity?days=2", token=token)
            assert status == 200
            assert {(cell["dow"], cell["hour"]): cell["count"] for cell in activity["data"]} == dict(by_hour)

            status, agents = service.get("/api/v1/analytics/agents", token=token)
            assert status == 200
            assert agents["tenantId"] == agent.tenant
            expected = {
                client: sum(count for day, count in days.items() if day.startswith(month))
                for client, days in own.items()
            }
            assert {row["agentId"]: row["tokenCount"] for row in agents["data"]} == {
                client: count for client, count in expected.items() if count
            }

        totals = {tenant: sum(sum(days.values()) for days in agents.values()) for tenant, agents in issued.items()}
        wait_for(
            lambda: service.samples("agentidp_tenant_tokens_issued_total") == totals,
            30,
            lambda: service.samples("agentidp_tenant_tokens_issued_total"),
        )
        refused = provider.agents[0].tenant
        assert service.samples("agentidp_tenant_token_failures_total")[refused] == 1

        def seen_by_prometheus() -> dict[str, float]:
            answer = prometheus.query("agentidp_tenant_tokens_issued_total")
            return {series["metric"]["tenant_id"]: float(series["value"][1]) for series in answer}

        wait_for(lambda: seen_by_prometheus() == totals, 30, seen_by_prometheus)
        evaluated = evaluate_dashboards(prometheus.base_url, time.time(), refused)
        # All of them run; those that need neither rates nor weeks of history show something after a few scrapes.
        answered = {entry.panel for entry in evaluated if entry.series}
        at_once = {"Active agents", "Dominated by one agent", "Exporter reads the store", "Largest agent's share"}
        assert at_once <= answered, sorted(answered)
        assert {rule["health"] for rule in prometheus.rules()} <= {"ok", "unknown"}, prometheus.rules()
        exposition = request("GET", service.metrics_url + "/metrics", {})[2]
        linted = subprocess.run(["promtool", "check", "metrics"], input=exposition, capture_output=True, check=False)
        assert (linted.returncode, linted.stdout, linted.stderr) == (0, b"", b"")

        increase = prometheus.query("sum by (tenant_id) (increase(agentidp_tenant_tokens_issued_total[5m]))")
        assert all(float(series["value"][1]) > 0 for series in increase), "the first burst must be visible"


def test_a_key_rotation_is_survived(provider: IdentityProvider, service: Service) -> None:
    client = provider.agents[0].client_id
    before = provider.token(client)
    assert service.get("/api/v1/analytics/tokens", token=before)[0] == 200
    provider.rotate()
    after = provider.token(client)
    # A key that is newer than the last fetch becomes usable after the minimum gap between two fetches.
    wait_for(lambda: service.get("/api/v1/analytics/tokens", token=after)[0] == 200, 30)
    assert service.get("/api/v1/analytics/tokens", token=before)[0] == 200


def test_a_token_without_the_scope_is_forbidden(provider: IdentityProvider, service: Service) -> None:
    token = provider.token(provider.agents[0].client_id, scope="agents:read")
    status, body = service.get("/api/v1/analytics/tokens", token=token)
    assert (status, body["code"]) == (403, "FORBIDDEN")
