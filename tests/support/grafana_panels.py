"""Asks a Prometheus what the dashboards ask: variables and intervals filled in as Grafana does it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.support.prometheus_server import ROOT, get

DASHBOARDS: Final = ROOT / "grafana" / "dashboards"
SCRAPE_SECONDS: Final = 15
# What a panel of usual width asks for.
_POINTS: Final = 1000
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LABEL_VALUES: Final = re.compile(r"label_values\((.+), (\w+)\)")
_VARIABLE: Final = re.compile(r"\$\{?(\w+)\}?")

Json = dict[str, Any]


class Evaluation(NamedTuple):
    """What one query of one panel returned."""

    dashboard: str
    panel: str
    expr: str
    series: int  # with at least one value that is a number


class Query(NamedTuple):
    """One query of one panel, ready to be sent."""

    panel: str
    expr: str
    instant: bool
    seconds: int  # length of the time range
    step: int


def load(paths: Iterable[Path] | None = None) -> list[Json]:
    """The dashboards, those of the project unless others are given."""
    return [json.loads(path.read_text()) for path in (paths or sorted(DASHBOARDS.glob("*.json")))]


def evaluate_dashboards(base_url: str, time: float, tenant: str | None = None) -> list[Evaluation]:
    """Runs every query of every panel with time ranges that end at `time` (Unix seconds).

    `tenant` is chosen in the variable of that name, else its first value is. Raises PrometheusError when a query is
    refused, LookupError when a variable has no value.
    """
    found = []
    for dashboard in load():
        chosen = {} if tenant is None else {"tenant": tenant}
        values = variable_values(base_url, dashboard, time, chosen)
        for query in queries(dashboard, values):
            series = run(base_url, query, time)
            found.append(Evaluation(dashboard["title"], query.panel, query.expr, sum(map(_has_number, series))))
        for annotation in dashboard["annotations"]["list"]:
            # A quiet day has none: that Prometheus understands it is what is asked.
            get(base_url, "/api/v1/query", {"query": fill_in(annotation["expr"], values), "time": time})
    return found


def variable_values(base_url: str, dashboard: Json, time: float, chosen: dict[str, str]) -> dict[str, str]:
    """What each query variable stands for in an expression: the chosen or first value, or all for a multiple choice."""
    values: dict[str, str] = {}
    start = time - _duration(dashboard["time"]["from"].removeprefix("now-"))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] != "query":
            continue
        match = _LABEL_VALUES.fullmatch(variable["query"]["query"])
        assert match, f"not label_values(…): {variable['query']}"
        selector, label = fill_in(match[1], values), match[2]
        found = get(base_url, f"/api/v1/label/{label}/values", {"match[]": selector, "start": start, "end": time})
        if pattern := variable["regex"]:
            found = [value for value in found if re.search(pattern.strip("/"), value)]
        if not found:
            raise LookupError(f"${variable['name']} has no value: {selector}")
        if variable["multi"]:
            escaped = [re.escape(value).replace("\\", "\\\\") for value in found]
            values[variable["name"]] = escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"
        else:
            values[variable["name"]] = chosen.get(variable["name"], found[0])
    return values


def queries(dashboard: Json, values: dict[str, str]) -> Iterator[Query]:
    """Every query of every panel with variables and intervals filled in."""
    for panel in dashboard["panels"]:
        seconds = _duration(panel.get("timeFrom") or dashboard["time"]["from"].removeprefix("now-"))
        step = max(math.ceil(seconds / _POINTS), SCRAPE_SECONDS, _duration(panel.get("interval", "0s")))
        intervals = {
            "__interval": f"{step}s",
            "__range": f"{seconds}s",
            "__rate_interval": f"{max(step + SCRAPE_SECONDS, 4 * SCRAPE_SECONDS)}s",
        }
        for target in panel.get("targets", []):
            expr = fill_in(target["expr"], values | intervals)
            yield Query(panel["title"], expr, target["instant"], seconds, step)


def run(base_url: str, query: Query, time: float) -> list[Json]:
    """The series of one query, its range aligned to its step as Grafana does it."""
    if query.instant:
        return list(get(base_url, "/api/v1/query", {"query": query.expr, "time": time})["result"])
    end = time // query.step * query.step
    start = (time - query.seconds) // query.step * query.step
    parameters: dict[str, str | float] = {"query": query.expr, "start": start, "end": end, "step": query.step}
    return list(get(base_url, "/api/v1/query_range", parameters)["result"])


def fill_in(text: str, values: dict[str, str]) -> str:
    """`$name` and `${name}` by their values; an unknown one stays, since `$1` belongs to label_replace."""
    return _VARIABLE.sub(lambda match: values.get(match[1], match[0]), text)


def _duration(text: str) -> int:
    return int(text[:-1]) * _SECONDS[text[-1]]


def _has_number(series: Json) -> bool:
    points = series.get("values") or [series["value"]]
    return any(value != "NaN" for _, value in points)
