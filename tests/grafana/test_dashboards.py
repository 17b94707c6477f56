"""The dashboard files: that Grafana's own types accept them, and what those types cannot say."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from tests.support.grafana_panels import load
from tests.support.prometheus_server import ROOT
from tests.support.promql_names import KNOWN_ELSEWHERE, metric_names, published_names

Json = dict[str, Any]

SCHEMA_SOURCES = ROOT / "tests" / "support" / "grafana_schema"
CACHE = ROOT / ".cache"
DASHBOARDS = load()
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# What the types leave out although Grafana reads it: the query of a Prometheus annotation, and a variable's old field.
UNTYPED_ANNOTATION = {"expr", "step", "tagKeys", "textFormat", "titleFormat"}
UNTYPED_VARIABLE = {"definition"}
# The types have no query of a Prometheus panel either.
TARGET = {
    "datasource": dict,
    "editorMode": str,
    "expr": str,
    "format": str,
    "instant": bool,
    "legendFormat": str,
    "range": bool,
    "refId": str,
}
# Ids of Grafana's value formats; `suffix:` takes any text.
UNITS = {"short", "s", "percentunit", "reqps", "cps", "bool_yes_no", "string"}

per_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard["uid"])


def panels(dashboard: Json) -> list[Json]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def targets(dashboard: Json) -> Iterator[tuple[str, Json]]:
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target


@pytest.fixture(scope="session")
def schema() -> Json:
    """JSON Schemas by part, made from npm's @grafana/schema; installed once for each state of tests/grafana_schema."""
    sources = sorted(path for path in SCHEMA_SOURCES.iterdir() if path.is_file())
    state = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    work = CACHE / f"grafana-schema-{state}"
    made = work / "schema.json"
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two workers of a test run must not install into one directory at once
        if not made.exists():
            npm = shutil.which("npm")
            assert npm, "npm is not on the PATH: the check of the dashboards needs Node.js 20 or newer with npm"
            for path in sources:
                shutil.copy(path, work)
            environment = os.environ | {"npm_config_cache": str(CACHE / "npm")}
            command([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], work, environment)
            text = command(["node", "generate.mjs"], work, environment)
            part = work / "schema.json.part"
            part.write_text(text)
            part.rename(made)  # whole or not at all: a killed run must not leave half a schema for the next
    return dict(json.loads(made.read_text())["definitions"]["Parts"]["properties"])


def command(arguments: list[str], directory: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(arguments, cwd=directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments} in {directory}: {done.stderr[-3000:]}"
    return done.stdout


def violations(schema: Json, dashboard: Json) -> list[str]:
    """What Grafana's types have against the dashboard."""
    typed = deepcopy(dashboard)
    for annotation in typed["annotations"]["list"]:
        for key in UNTYPED_ANNOTATION:
            annotation.pop(key, None)
    for variable in typed["templating"]["list"]:
        for key in UNTYPED_VARIABLE:
            variable.pop(key, None)
    parts = [("dashboard", typed, "dashboard")]
    for panel in typed["panels"]:
        where = f"panel {panel['id']}"
        parts.append((where, panel, "row" if panel["type"] == "row" else "panel"))
        if panel["type"] != "row":
            parts.append((f"{where} options", panel["options"], f"options of {panel['type']}"))
        if custom := panel.get("fieldConfig", {}).get("defaults", {}).get("custom"):
            parts.append((f"{where} custom", custom, f"custom of {panel['type']}"))
    return [
        f"{where}: {error.json_path}: {error.message[:200]}"
        for where, value, part in parts
        for error in Draft7Validator(schema[part]).iter_errors(value)
    ]


def test_files_are_what_the_generator_makes() -> None:
    done = subprocess.run([sys.executable, "-m", "grafana.build", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@per_dashboard
def test_grafanas_types_accept_it(schema: Json, dashboard: Json) -> None:
    assert violations(schema, dashboard) == []


def _first(dashboard: Json, kind: str) -> Json:
    return next(panel for panel in dashboard["panels"] if panel["type"] == kind)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.update(schemaVersion="39"),
        lambda d: d.update(autor="nobody"),
        lambda d: d["templating"]["list"][0].update(type="guess"),
        lambda d: _first(d, "stat")["options"].update(colorMode="colour"),
        lambda d: _first(d, "timeseries")["options"]["legend"].pop("calcs"),
        lambda d: _first(d, "timeseries")["fieldConfig"]["defaults"]["custom"].update(drawStyle="crayon"),
        lambda d: _first(d, "stat")["gridPos"].pop("h"),
    ],
)
def test_grafanas_types_refuse_a_spoilt_file(schema: Json, spoil: Callable[[Json], None]) -> None:
    spoilt = deepcopy(DASHBOARDS[0])
    spoil(spoilt)
    assert violations(schema, spoilt)


@per_dashboard
def test_it_can_be_provisioned(dashboard: Json) -> None:
    # `__inputs` is for the import dialogue; file provisioning leaves such variables as they are and every panel empty.
    assert not {"id", "version", "__inputs", "__requires", "__elements"} & set(dashboard)
    assert dashboard["schemaVersion"] == 39
    assert dashboard["editable"] is False
    assert dashboard["timezone"] == "utc"
    assert re.fullmatch(r"[a-z0-9-]{1,40}", dashboard["uid"])


def test_uids_are_unique() -> None:
    assert len({dashboard["uid"] for dashboard in DASHBOARDS}) == len(DASHBOARDS)


@per_dashboard
def test_ids_are_unique(dashboard: Json) -> None:
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels(dashboard):
        refs = [target["refId"] for target in panel["targets"]]
        assert refs, panel["title"]
        assert len(set(refs)) == len(refs), panel["title"]
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(set(titles)) == len(titles)


@per_dashboard
def test_panels_fill_the_grid_without_overlap(dashboard: Json) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        for y in range(place["y"], place["y"] + place["h"]):
            for x in range(place["x"], place["x"] + place["w"]):
                assert 0 <= x < 24, panel["title"]
                assert (x, y) not in taken, f"{panel['title']} on {taken[x, y]}"
                taken[x, y] = panel["title"]
    height = max(y for _, y in taken) + 1
    assert len(taken) == 24 * height


@per_dashboard
def test_everything_asks_the_chosen_datasource(dashboard: Json) -> None:
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    asking = [*panels(dashboard), *dashboard["annotations"]["list"]]
    asking += [variable for variable in variables.values() if variable["type"] == "query"]
    asking += [target for _, target in targets(dashboard)]
    assert all(part["datasource"] == DATASOURCE for part in asking)


@per_dashboard
def test_queries_have_the_known_form(dashboard: Json) -> None:
    for where, target in targets(dashboard):
        assert set(target) == set(TARGET), where
        for key, kind in TARGET.items():
            assert isinstance(target[key], kind), f"{where}: {key}"
        assert target["instant"] is not target["range"], where
        assert target["format"] in {"time_series", "table"}, where


@per_dashboard
def test_queries_ask_only_for_series_that_exist(dashboard: Json) -> None:
    known = published_names() | KNOWN_ELSEWHERE
    expressions = [(where, target["expr"]) for where, target in targets(dashboard)]
    expressions += [(annotation["name"], annotation["expr"]) for annotation in dashboard["annotations"]["list"]]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            expressions.append((variable["name"], re.sub(r"label_values\((.+), \w+\)", r"\1", variable["definition"])))
    for where, expression in expressions:
        names = metric_names(expression)
        assert names, where
        assert names <= known, f"{where}: {names - known}"


@per_dashboard
def test_queries_keep_to_the_chosen_job_and_window(dashboard: Json) -> None:
    for where, target in targets(dashboard):
        selectors = re.findall(r"[\w:]*agentidp_[\w:]*(\{[^}]*\})?", target["expr"])
        selectors += re.findall(r"ALERTS(\{[^}]*\})?", target["expr"])
        assert all('job=~"$job"' in selector for selector in selectors), where
        # A fixed window is shorter than the step on a long time range, and skips what lies between.
        for window in re.findall(r"\brate\([^\[]+\[([^\]]+)\]", target["expr"]):
            assert window == "$__rate_interval", where
        if dashboard["uid"] == "agentidp-tenant":
            assert all('tenant_id="$tenant"' in selector for selector in selectors), where


@per_dashboard
def test_counters_of_a_tenant_are_never_added_up_over_exporters(dashboard: Json) -> None:
    for where, target in targets(dashboard):
        for match in re.finditer(r"(?:rate|increase)\(agentidp_tenant_", target["expr"]):
            assert target["expr"][: match.start()].endswith("max without (instance, pod) ("), where


@per_dashboard
def test_every_panel_says_what_it_shows(dashboard: Json) -> None:
    assert dashboard["description"]
    for panel in panels(dashboard):
        assert re.fullmatch(r".+\. Unit: .+\. Window: .+\. Times are UTC\.", panel["description"]), panel["title"]


@per_dashboard
def test_units_are_grafanas(dashboard: Json) -> None:
    for panel in panels(dashboard):
        units = [panel["fieldConfig"]["defaults"]["unit"]]
        for override in panel["fieldConfig"]["overrides"]:
            units += [item["value"] for item in override["properties"] if item["id"] == "unit"]
        assert all(unit in UNITS or unit.startswith("suffix:") for unit in units), panel["title"]


@per_dashboard
def test_thresholds_rise_from_the_bottom(dashboard: Json) -> None:
    for panel in panels(dashboard):
        found = [panel["fieldConfig"]["defaults"]["thresholds"]]
        for override in panel["fieldConfig"]["overrides"]:
            found += [item["value"] for item in override["properties"] if item["id"] == "thresholds"]
        for thresholds in found:
            values = [step["value"] for step in thresholds["steps"]]
            assert values[0] is None, panel["title"]
            assert values[1:] == sorted(set(values[1:])), panel["title"]


@per_dashboard
def test_overrides_match_a_field(dashboard: Json) -> None:
    for panel in panels(dashboard):
        fields = {target["legendFormat"] for target in panel["targets"]}
        for transformation in panel.get("transformations", []):
            options = transformation["options"]
            fields |= set(options.get("renameByName", {}).values())
            if transformation["id"] == "groupingToMatrix":
                fields.add(f"{options['rowField']}\\{options['columnField']}")
        for override in panel["fieldConfig"]["overrides"]:
            assert override["matcher"]["options"] in fields, panel["title"]
        for column in panel["options"].get("sortBy", []):
            assert column["displayName"] in fields, panel["title"]


def test_links_lead_to_dashboards_that_exist() -> None:
    uids = {dashboard["uid"] for dashboard in DASHBOARDS}
    for dashboard in DASHBOARDS:
        linked = set(re.findall(r'"/d/([\w-]+)', json.dumps(dashboard)))
        assert linked == uids - {dashboard["uid"]}, dashboard["uid"]
