"""From the exporter's gauges to who hears of them: a real Prometheus, a real Alertmanager, a webhook."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Gauge, MetricsHandler

from tests.support.alertmanager_server import (
    EXAMPLE_CONFIG,
    Receiver,
    alertmanager,
    amtool,
    quick_alertmanager_config,
)
from tests.support.prometheus_server import ROOT, prometheus, promtool, quick_config

DOCS = (ROOT / "docs" / "alerts.md").read_text()
JOB = "agentidp-analytics"


def documented_setup() -> dict[str, Any]:
    """What docs/alerts.md adds to the example configuration of Prometheus."""
    (block,) = (
        part for part in re.findall(r"^ *```yaml\n(.*?)```", DOCS, re.DOTALL | re.MULTILINE) if "global" in part
    )
    return dict(yaml.safe_load(block))


def test_amtool_accepts_the_example() -> None:
    amtool("check-config", EXAMPLE_CONFIG)


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (("alertname=AgentidpTokenSpike", "severity=page", "tenant_id=t"), "pager"),
        (("alertname=AgentidpTokenSpike", "severity=ticket", "tenant_id=t"), "tickets"),
        (("alertname=AgentidpTokenWaste", "severity=info", "tenant_id=t"), "chat"),
        (("alertname=AgentidpExporterDown", "severity=page"), "pager"),
        (("alertname=AgentidpVerifyOverdue", "severity=ticket"), "tickets"),
        (("alertname=AgentidpWatchdog", "severity=info"), "watchdog"),
        (("alertname=SomebodyElses", "severity=warning"), "tickets"),  # nothing is lost
    ],
)
def test_each_severity_has_its_receiver(labels: tuple[str, ...], receiver: str) -> None:
    amtool("config", "routes", "test", f"--config.file={EXAMPLE_CONFIG}", f"--verify.receivers={receiver}", *labels)


def test_groups_and_repetitions() -> None:
    route = yaml.safe_load(EXAMPLE_CONFIG.read_text())["route"]
    (page,) = (child for child in route["routes"] if child["receiver"] == "pager")
    assert route["group_by"] == ["alertname", "tenant_id"]
    assert (route["group_wait"], route["group_interval"]) == ("30s", "5m")
    assert (page["repeat_interval"], route["repeat_interval"]) == ("4h", "24h")


def test_promtool_accepts_what_the_documentation_adds(tmp_path: Path) -> None:
    said = promtool("check", "config", quick_config(tmp_path, "127.0.0.1:1", more=documented_setup()))
    assert "1 rule files found" in said


@pytest.fixture(scope="module")
def inhibited(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], bool]:
    """(alertname, severity, tenant_id, job) -> whether Alertmanager mutes it, of everything that is posted at once."""
    directory = tmp_path_factory.mktemp("alertmanager")
    posted = [
        ("AgentidpIngestStalled", "page", "", "stalled"),
        ("AgentidpTenantSilent", "ticket", "t", "stalled"),
        ("AgentidpAgentDominates", "info", "t", "stalled"),
        ("AgentidpTokenSpike", "ticket", "t", "stalled"),
        ("AgentidpExporterDown", "page", "", "down"),
        ("AgentidpExporterDown", "ticket", "", "down"),
        ("AgentidpTenantSilent", "page", "t", "down"),
        ("AgentidpTokenSpike", "page", "t", "down"),
        ("AgentidpExporterDown", "ticket", "", "half"),
        ("AgentidpTenantSilent", "ticket", "t", "half"),
        ("AgentidpTokenSpike", "page", "t", "spiking"),
        ("AgentidpTokenSpike", "ticket", "t", "spiking"),
        ("AgentidpTokenFailures", "ticket", "t", "spiking"),
        ("AgentidpTokenWaste", "info", "t", "spiking"),
        ("AgentidpTokenFailures", "ticket", "u", "spiking"),
        ("AgentidpVerifyOverdue", "ticket", "", "spiking"),
        ("AgentidpTokenFailures", "ticket", "t", "calm"),
        ("AgentidpDiskNearlyFull", "page", "", "full"),
        ("AgentidpDiskNearlyFull", "ticket", "", "full"),
        ("AgentidpRetentionOverdue", "ticket", "", "full"),
        ("AgentidpDiskNearlyFull", "ticket", "", "calm"),
    ]
    names = ("alertname", "severity", "tenant_id", "job")
    with (
        Receiver() as receiver,
        alertmanager(quick_alertmanager_config(directory, receiver.address), directory / "data") as server,
    ):
        server.post([{name: value for name, value in zip(names, alert, strict=True) if value} for alert in posted])
        # One that is not muted; when it was sent, all that arrived with it were judged.
        receiver.wait_for("/page", "AgentidpIngestStalled", 1)
        found = {
            tuple(alert["labels"].get(name, "") for name in names): bool(alert["status"]["inhibitedBy"])
            for alert in server.alerts()
        }
    assert set(found) == set(posted)
    return found


def test_what_is_muted_beside_something_worse(inhibited: dict[tuple[str, ...], bool]) -> None:
    assert {alert for alert, muted in inhibited.items() if muted} == {
        ("AgentidpTenantSilent", "ticket", "t", "stalled"),
        ("AgentidpAgentDominates", "info", "t", "stalled"),
        ("AgentidpTenantSilent", "page", "t", "down"),
        ("AgentidpExporterDown", "ticket", "", "down"),
        ("AgentidpTokenSpike", "ticket", "t", "spiking"),
        ("AgentidpTokenFailures", "ticket", "t", "spiking"),
        ("AgentidpDiskNearlyFull", "ticket", "", "full"),
    }


class Exporter:
    """Publishes the gauges of a detector that a test plays."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        Gauge("agentidp_analytics_up", "Up.", registry=registry).set(1)
        labels = ("tenant_id", "kind", "severity")
        self._alerts = Gauge("agentidp_tenant_alerts", "Alerts that last.", labels, registry=registry)
        self._score = Gauge("agentidp_tenant_spike_score", "Score.", ("tenant_id",), registry=registry)
        self._handler = MetricsHandler.factory(registry)
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listens, again on the same port."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Is gone, for everybody who asks."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def show(self, tenant_id: str, kind: str, severity: str, count: int, score: float = 0) -> None:
        self._alerts.labels(tenant_id, kind, severity).set(count)
        self._score.labels(tenant_id).set(score)


@contextmanager
def two_exporters() -> Iterator[tuple[Exporter, Exporter]]:
    pair = Exporter(), Exporter()
    try:
        yield pair
    finally:
        for exporter in pair:
            exporter.stop()


def test_a_spike_is_one_page_and_one_end_whatever_happens_to_the_exporters(tmp_path: Path) -> None:
    with (
        Receiver() as receiver,
        alertmanager(quick_alertmanager_config(tmp_path, receiver.address), tmp_path / "am") as manager,
        two_exporters() as pair,
    ):
        setup = documented_setup()
        setup["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [manager.address]}]}]
        config = quick_config(tmp_path, *(exporter.address for exporter in pair), more=setup)
        for exporter in pair:
            exporter.show("acme", "spike", "page", 0)
            exporter.show("calm", "spike", "page", 0)
            exporter.show("_other", "spike", "page", 1)
        # It knows its Alertmanagers after some seconds only, and by default tries again after a minute.
        with prometheus(config, tmp_path / "prometheus", "--rules.alert.resend-delay=5s") as server:
            receiver.wait_for("/watchdog", "AgentidpWatchdog", 1)
            for exporter in pair:
                exporter.show("acme", "spike", "page", 1, score=7.5)
                exporter.show("acme", "spike", "ticket", 2, score=7.5)  # muted by the page
            (page,) = receiver.wait_for("/page", "AgentidpTokenSpike", 1)
            assert page["status"] == "firing"
            assert page["groupLabels"] == {"alertname": "AgentidpTokenSpike", "tenant_id": "acme"}
            (alert,) = page["alerts"]
            assert alert["labels"] == {
                "alertname": "AgentidpTokenSpike",
                "job": JOB,
                "kind": "spike",
                "severity": "page",
                "tenant_id": "acme",
            }
            assert "Highest score of an agent 7.5" in alert["annotations"]["description"]
            assert alert["annotations"]["runbook_url"] == "https://wiki.example.org/agentidp/AgentidpTokenSpike.md"
            dashboard = "https://grafana.example.org/d/agentidp-tenant?var-tenant=acme"
            assert alert["annotations"]["dashboard_url"] == dashboard

            # Nobody can see any more. What fired goes on, and what can be said about that is said.
            pair[0].stop()
            receiver.wait_for("/ticket", "AgentidpExporterDown", 1)
            pair[1].stop()
            receiver.wait_for("/page", "AgentidpExporterDown", 1)
            firing = [alert["labels"]["tenant_id"] for alert in server.alerts() if "tenant_id" in alert["labels"]]
            assert set(firing) == {"acme"}

            for exporter in pair:
                exporter.show("acme", "spike", "page", 0)
                exporter.show("acme", "spike", "ticket", 0)
                exporter.start()
            _, end = receiver.wait_for("/page", "AgentidpTokenSpike", 2)
            assert end["status"] == "resolved"
            server.wait_for(
                "no tenant alert is left",
                lambda now: not any("tenant_id" in alert["labels"] for alert in now.alerts()),
            )
            assert len(receiver.of("/page", "AgentidpTokenSpike")) == 2
            assert receiver.of("/ticket", "AgentidpTokenSpike") == []
