"""The Prometheus rules: promtool's judgement, their unit tests, and that nothing in them or their docs has drifted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.prometheus_server import EXAMPLE_CONFIG, ROOT, RULES, promtool
from tests.support.promql_names import BUILT_IN, metric_names, published_names, recorded_names, rule_list

UNIT_TESTS = sorted((RULES / "tests").glob("*.yml"))
RUNBOOKS = ROOT / "docs" / "alerts.md"


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rule_list() if "alert" in rule]


def section(alert: str) -> str:
    """The alert's part of the runbooks, without its heading."""
    parts = re.split(r"^## (.+)$", RUNBOOKS.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[alert]


def test_promtool_accepts_the_rules() -> None:
    # Without this flag lint findings are printed and the status is 0 all the same.
    promtool("check", "rules", "--lint=all", "--lint-fatal", *sorted(RULES.glob("*.yml")))


def test_promtool_accepts_the_example_configuration_with_the_rules() -> None:
    said = promtool("check", "config", EXAMPLE_CONFIG)
    # A pattern that matches no file is no error to promtool.
    assert "2 rule files found" in said


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_unit_tests_pass(path: Path) -> None:
    promtool("test", "rules", path.name, cwd=path.parent)


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_is_shown_to_fire_and_to_stay_quiet(alert: dict[str, Any]) -> None:
    cases = [
        case
        for path in UNIT_TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == alert["alert"]
    ]
    assert any(case["exp_alerts"] for case in cases)
    assert any(not case["exp_alerts"] for case in cases)


def test_rules_ask_only_for_series_that_exist() -> None:
    asked = set()
    for rule in rule_list():
        asked |= metric_names(rule["expr"])
        for annotation in rule.get("annotations", {}).values():
            asked |= set(re.findall(r"[a-z_:]*agentidp_[\w:]+", annotation))
    assert asked - published_names() - recorded_names() - BUILT_IN == set()


def test_every_recorded_series_is_used() -> None:
    dashboards = "".join(path.read_text() for path in (ROOT / "grafana" / "dashboards").glob("*.json"))
    used = set[str]().union(*(metric_names(rule["expr"]) for rule in rule_list()))
    assert {name for name in recorded_names() - used if name not in dashboards} == set()


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_says_how_bad_it_is_and_where_to_read_on(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert {"summary", "description", "runbook_url", "dashboard_url"} == set(alert["annotations"])
    assert alert["annotations"]["runbook_url"] == f"docs/alerts.md#{alert['alert'].lower()}"
    uid = re.match(r"/d/([\w-]+)", alert["annotations"]["dashboard_url"])
    assert uid
    assert (ROOT / "grafana" / "dashboards" / f"{uid[1].removeprefix('agentidp-')}.json").exists()
    runbook = section(alert["alert"])
    assert f"Severity `{alert['labels']['severity']}`, after {alert['for'].removesuffix('m')} minutes." in runbook


def test_every_runbook_is_of_an_alert() -> None:
    headings = set(re.findall(r"^## (Agentidp\w+)$", RUNBOOKS.read_text(), flags=re.MULTILINE))
    assert headings == {alert["alert"] for alert in alerts()}


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("a_total", {"a_total"}),
        ('sum by (x) (rate(a_total{b="c"}[5m] offset 1w)) > 3e5', {"a_total"}),
        ("a:b:rate5m / on (job) group_left (d) b unless c == bool 1", {"a:b:rate5m", "b", "c"}),
        ('label_replace(a, "d", "$1", "e", "(.)") or vector(0)', {"a"}),
        ("topk(10, sum by (t) (increase(a_total[1h] @ end()))) - -b offset -1d", {"a_total", "b"}),
    ],
)
def test_metric_names_are_found(expression: str, names: set[str]) -> None:
    assert metric_names(expression) == names
