"""The Prometheus rules: promtool's judgement, their unit tests, and that nothing in them or their docs has drifted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.prometheus_server import EXAMPLE_CONFIG, ROOT, RULES, promtool
from tests.support.promql_names import KNOWN_ELSEWHERE, metric_names, published_names, rule_list

UNIT_TESTS = sorted((RULES / "tests").glob("*.yml"))
OVERVIEW = (ROOT / "docs" / "alerts.md").read_text()
RUNBOOKS = ROOT / "docs" / "runbooks"
KINDS = {"spike", "silence", "unusual_hours", "dominance", "new_network", "failures", "waste", "budget"}
SEVERITIES = {"page", "ticket", "info"}
ANNOTATIONS = {"summary", "description", "runbook_url", "dashboard_url"}
ALERTS = rule_list()
NAMES = sorted({rule["alert"] for rule in ALERTS})


def kind_of(rule: dict[str, Any]) -> str | None:
    """The kind of tenant alerts that the rule passes on; None for an alert about the service."""
    kinds = set(re.findall(r'agentidp_tenant_alerts\{kind="(\w+)", tenant_id!="_other"\}', rule["expr"]))
    assert len(kinds) < 2
    return kinds.pop() if kinds else None


per_rule = pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule['alert']}-{rule.get('labels')}")
per_name = pytest.mark.parametrize("name", NAMES)


def test_promtool_accepts_the_rules() -> None:
    # Without this flag lint findings are printed and the status is 0 all the same.
    promtool("check", "rules", "--lint=all", "--lint-fatal", *sorted(RULES.glob("*.yml")))


def test_promtool_accepts_the_example_configuration_with_the_rules() -> None:
    said = promtool("check", "config", EXAMPLE_CONFIG)
    # A pattern that matches no file is no error to promtool.
    assert "1 rule files found" in said


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_unit_tests_pass(path: Path) -> None:
    promtool("test", "rules", path.name, cwd=path.parent)


@per_name
def test_every_alert_is_shown_to_fire_with_its_texts_and_to_stay_quiet(name: str) -> None:
    cases = [
        case
        for path in UNIT_TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case["alertname"] == name
    ]
    assert any(case["exp_alerts"] for case in cases)
    assert any(not case["exp_alerts"] for case in cases) or name == "AgentidpWatchdog"


def test_the_rules_keep_no_history() -> None:
    """Thresholds only: nothing recorded, nothing over more than an hour, no look at another time."""
    for rule in ALERTS:
        assert "record" not in rule
        assert "offset" not in rule["expr"]
        assert {int(minutes) for minutes in re.findall(r"\[(\d+)m\]", rule["expr"])} <= {5, 15}, rule["alert"]
        assert set(re.findall(r"\[(\d+[^m\d].*?)\]", rule["expr"])) <= {"1h"}, rule["alert"]


@per_rule
def test_rules_ask_only_for_series_that_exist(rule: dict[str, Any]) -> None:
    asked = metric_names(rule["expr"])
    for annotation in rule["annotations"].values():
        asked |= set(re.findall(r"agentidp_(?:tenant|analytics)_\w+", annotation))
    assert asked - published_names() - KNOWN_ELSEWHERE == set()


def test_every_kind_has_one_alert_that_takes_its_severity_from_the_service() -> None:
    tenants = [(kind, rule) for rule in ALERTS if (kind := kind_of(rule))]
    assert sorted(kind for kind, _ in tenants) == sorted(KINDS)
    for kind, rule in tenants:
        assert "labels" not in rule
        # One expression but for the kind.
        assert rule["expr"].replace(f'"{kind}"', '"spike"') == tenants[0][1]["expr"]


@per_rule
def test_every_alert_says_how_bad_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert kind_of(rule) or rule["labels"]["severity"] in SEVERITIES
    assert set(rule["annotations"]) == ANNOTATIONS
    runbook = "{{ with $externalLabels.agentidp_runbooks }}{{ . }}{{ else }}docs/runbooks{{ end }}"
    assert rule["annotations"]["runbook_url"] == f"{runbook}/{rule['alert']}.md"
    url = re.match(r"{{ \$externalLabels\.agentidp_grafana }}/d/agentidp-(\w+)", rule["annotations"]["dashboard_url"])
    assert url
    assert (ROOT / "grafana" / "dashboards" / f"{url[1]}.json").exists()
    # What changes with each evaluation would be a new alert each time.
    assert "$value" not in str(rule.get("labels"))


@per_name
def test_the_runbook_is_of_the_alert(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    (first,) = re.findall(r"\*\*First\.\*\*\n\n```sh\n(.*?)```", text, re.DOTALL)
    assert len(first.splitlines()) == 3
    assert f"amtool silence add alertname={name} " in text or name == "AgentidpWatchdog"
    rules = [rule for rule in ALERTS if rule["alert"] == name]
    if kind := kind_of(rules[0]):
        assert f"Kind `{kind}` of the service's own alerts" in text
        return
    for rule in rules:
        waits = rule["for"].removesuffix("m") if "for" in rule else ""
        after = f"after {waits} minute{'' if waits == '1' else 's'}" if waits else "at once"
        assert f"`{rule['labels']['severity']}` {after}" in text.partition("**Means.**")[0]


def test_every_runbook_is_of_an_alert() -> None:
    assert sorted(path.stem for path in RUNBOOKS.iterdir()) == NAMES


@per_name
def test_the_overview_has_the_alert(name: str) -> None:
    (row,) = re.findall(rf"^\| \[{name}\]\(runbooks/{name}\.md\) \| (.+) \|$", OVERVIEW, flags=re.MULTILINE)
    cells = row.split(" | ")
    rules = [rule for rule in ALERTS if rule["alert"] == name]
    if kind := kind_of(rules[0]):
        assert cells[0] == f"`{kind}`"
        return
    severities = [rule["labels"]["severity"] for rule in rules]
    assert set(cells[0].split(", ")) == set(severities)
    waits = {rule["labels"]["severity"]: rule.get("for", "at once") for rule in rules}
    # One time is of all severities.
    told = cells[1].split(", ")
    assert [waits[severity] for severity in cells[0].split(", ")] == told * (len(rules) // len(told))


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
