"""Parts of a classic Grafana dashboard (schemaVersion 39) as plain dictionaries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

Json = dict[str, Any]

DATASOURCE: Final[Json] = {"type": "prometheus", "uid": "${datasource}"}
FLEET_UID: Final = "agentidp-fleet"
TENANT_UID: Final = "agentidp-tenant"
# The variables and the time range go along, so that a click never changes what one looks at.
TENANT_LINK: Final = (
    f"/d/{TENANT_UID}?${{datasource:queryparam}}&${{job:queryparam}}&var-tenant=${{__value.raw}}&${{__url_time_range}}"
)
GRID_WIDTH: Final = 24

TOKENS_PER_SECOND: Final = "suffix:tokens/s"
_UNIT_NAMES: Final = {
    TOKENS_PER_SECOND: "tokens per second",
    "short": "a count",
    "s": "seconds",
    "percentunit": "share of 1, shown in per cent",
    "reqps": "requests per second",
    "cps": "events per second",
    "bool_yes_no": "yes or no",
    "string": "text",
}
# Which of Grafana's two ways to ask: at the end of the time range only, or along it.
INSTANT: Final = True
RANGE: Final = False


def target(expr: str, legend: str = "__auto", *, ref: str = "A", instant: bool = RANGE, table: bool = False) -> Json:
    """One query. With `table` the labels become columns."""
    return {
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": expr,
        "format": "table" if table else "time_series",
        "instant": instant,
        "legendFormat": legend,
        "range": not instant,
        "refId": ref,
    }


def targets(queries: Iterable[tuple[str, str]], *, instant: bool = RANGE, table: bool = False) -> list[Json]:
    """Queries from (expression, legend), with refIds A, B, …"""
    return [
        target(expr, legend, ref=chr(ord("A") + index), instant=instant, table=table)
        for index, (expr, legend) in enumerate(queries)
    ]


def thresholds(*steps: tuple[float, str]) -> Json:
    """Green below the first step; each step is (value from which on, colour)."""
    first: list[Json] = [{"color": "green", "value": None}]
    return {"mode": "absolute", "steps": first + [{"color": color, "value": value} for value, color in steps]}


def override(field: str, **properties: Any) -> Json:
    """Properties of one column or series; `__` in a key stands for the dot of Grafana's property id."""
    return {
        "matcher": {"id": "byName", "options": field},
        "properties": [{"id": key.replace("__", "."), "value": value} for key, value in properties.items()],
    }


def tenant_column() -> Json:
    """The column Tenant as a link to that tenant's dashboard."""
    return override("Tenant", links=[{"title": "Open the tenant", "url": TENANT_LINK}], custom__minWidth=140)


def _panel(kind: str, title: str, what: str, window: str, unit: str, queries: list[Json], options: Json) -> Json:
    return {
        "datasource": DATASOURCE,
        "description": f"{what} Unit: {_UNIT_NAMES[unit]}. Window: {window}. Times are UTC.",
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "options": options,
        "targets": queries,
        "title": title,
        "type": kind,
    }


def _reduce(calc: str = "lastNotNull") -> Json:
    return {"calcs": [calc], "fields": "", "values": False}


def stat(
    title: str,
    queries: Sequence[tuple[str, str]],
    *,
    unit: str,
    what: str,
    window: str,
    limits: Json | None = None,
    decimals: int | None = None,
    names: bool = False,
    mappings: list[Json] | None = None,
) -> Json:
    """A number at the end of the time range. With `names` the legends are shown instead of or beside the values."""
    panel = _panel("stat", title, what, window, unit, targets(queries, instant=INSTANT), {})
    panel["options"] = {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "percentChangeColorMode": "standard",
        "reduceOptions": _reduce(),
        "showPercentChange": False,
        "textMode": "name" if names else "auto",
        "wideLayout": True,
    }
    defaults = panel["fieldConfig"]["defaults"]
    defaults["color"] = {"mode": "thresholds"}
    defaults["thresholds"] = limits or thresholds()
    if decimals is not None:
        defaults["decimals"] = decimals
    if mappings:
        defaults["mappings"] = mappings
    return panel


def timeseries(
    title: str,
    queries: Sequence[tuple[str, str]],
    *,
    unit: str,
    what: str,
    window: str,
    limits: Json | None = None,
    overrides: Sequence[Json] = (),
) -> Json:
    """Lines over time. `limits` are drawn as lines."""
    panel = _panel("timeseries", title, what, window, unit, targets(queries), {})
    panel["options"] = {
        "legend": {"calcs": ["lastNotNull", "max"], "displayMode": "table", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    custom: Json = {"drawStyle": "line", "fillOpacity": 8, "lineWidth": 1, "showPoints": "never", "spanNulls": False}
    custom["thresholdsStyle"] = {"mode": "line" if limits else "off"}
    panel["fieldConfig"]["defaults"] |= {
        "color": {"mode": "palette-classic"},
        "custom": custom,
        "min": 0,
        "thresholds": limits or thresholds(),
    }
    panel["fieldConfig"]["overrides"] = list(overrides)
    return panel


def daily_bars(title: str, expr: str, legend: str, *, unit: str, what: str, window: str, days: int) -> Json:
    """One bar a calendar day for the last `days` days, whatever the dashboard's time range is."""
    panel = timeseries(title, [(expr, legend)], unit=unit, what=what, window=window)
    panel["fieldConfig"]["defaults"]["custom"] |= {"barAlignment": 1, "drawStyle": "bars", "fillOpacity": 60}
    panel["fieldConfig"]["defaults"]["decimals"] = 0
    panel["options"]["legend"]["calcs"] = ["sum", "mean", "max"]
    # Steps of a day are aligned to midnight of the dashboard's time zone, which is UTC.
    return panel | {"interval": "1d", "timeFrom": f"{days}d"}


def table(
    title: str,
    columns: Sequence[tuple[str, str]],
    *,
    unit: str,
    what: str,
    window: str,
    limits: Json | None = None,
    overrides: Sequence[Json] = (),
    sort_by: str,
) -> Json:
    """One row a tenant; `columns` are (name, expression by tenant_id). Sorted by one column, largest first."""
    queries = targets([(expr, "") for _, expr in columns], instant=INSTANT, table=True)
    # Grafana names the column "Value" when there is one query, "Value #A" when there are more.
    fields = ["Value"] if len(columns) == 1 else [f"Value #{query['refId']}" for query in queries]
    options = _table_options([{"desc": True, "displayName": sort_by}])
    panel = _panel("table", title, what, window, unit, queries, options)
    panel["transformations"] = [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {
                "excludeByName": {"Time": True},
                "indexByName": {name: index for index, name in enumerate(["tenant_id", *fields])},
                "renameByName": {"tenant_id": "Tenant"} | dict(zip(fields, (name for name, _ in columns), strict=True)),
            },
        },
    ]
    panel["fieldConfig"]["defaults"] |= {"color": {"mode": "thresholds"}, "thresholds": limits or thresholds()}
    panel["fieldConfig"]["overrides"] = [tenant_column(), *overrides]
    return panel


def _table_options(sort_by: list[Json]) -> Json:
    return {"cellHeight": "sm", "frameIndex": 0, "showHeader": True, "sortBy": sort_by}


def matrix(title: str, expr: str, *, row: str, column: str, row_names: Sequence[str], what: str, window: str) -> Json:
    """A coloured grid from a query by two labels; `row_names` replace the row label's values 0, 1, 2, …

    Grafana's own heatmap panel wants time on one axis. The matrix keeps the order in which rows and columns first
    arrive, and Prometheus gives none: sorted by `column` before it, by the row afterwards.
    """
    corner = f"{row}\\{column}"
    queries = [target(expr, instant=INSTANT, table=True)]
    panel = _panel("table", title, what, window, "short", queries, _table_options([]))
    panel["transformations"] = [
        {"id": "sortBy", "options": {"fields": {}, "sort": [{"desc": False, "field": column}]}},
        {
            "id": "groupingToMatrix",
            "options": {"columnField": column, "emptyValue": "null", "rowField": row, "valueField": "Value"},
        },
        {"id": "sortBy", "options": {"fields": {}, "sort": [{"desc": False, "field": corner}]}},
    ]
    panel["fieldConfig"]["defaults"] |= {
        "color": {"mode": "continuous-blues"},
        "custom": {"align": "center", "cellOptions": {"mode": "basic", "type": "color-background"}, "minWidth": 36},
        "decimals": 0,
        "min": 0,
        "thresholds": thresholds(),
    }
    names = {str(index): {"index": index, "text": name} for index, name in enumerate(row_names)}
    panel["fieldConfig"]["overrides"] = [
        override(
            corner,
            mappings=[{"options": names, "type": "value"}],
            displayName=" ",
            custom__cellOptions={"type": "auto"},
            custom__align="left",
            custom__width=100,
        )
    ]
    return panel


def bar_gauge(title: str, query: tuple[str, str], *, unit: str, what: str, window: str, limits: Json) -> Json:
    """Horizontal bars, one a series, coloured by the limits."""
    panel = _panel("bargauge", title, what, window, unit, targets([query], instant=INSTANT), {})
    panel["options"] = {
        "displayMode": "basic",
        "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": False},
        "maxVizHeight": 300,
        "minVizHeight": 16,
        "minVizWidth": 8,
        "namePlacement": "auto",
        "orientation": "horizontal",
        "reduceOptions": _reduce(),
        "showUnfilled": True,
        "sizing": "auto",
        "valueMode": "color",
    }
    panel["fieldConfig"]["defaults"] |= {"color": {"mode": "thresholds"}, "min": 0, "thresholds": limits}
    return panel


def lay_out(sections: Sequence[tuple[str, Sequence[tuple[int, Sequence[Json]]]]]) -> list[Json]:
    """Panels with ids and places, from sections of (title, lines of (height, panels)); a line's panels share it."""
    placed: list[Json] = []
    y = 0
    for title, lines in sections:
        row = {"collapsed": False, "gridPos": {"h": 1, "w": GRID_WIDTH, "x": 0, "y": y}, "panels": [], "title": title}
        placed.append(row | {"type": "row"})
        y += 1
        for height, panels in lines:
            edges = [GRID_WIDTH * index // len(panels) for index in range(len(panels) + 1)]
            for left, right, panel in zip(edges[:-1], edges[1:], panels, strict=True):
                placed.append(panel | {"gridPos": {"h": height, "w": right - left, "x": left, "y": y}})
            y += height
    return [{"id": number} | panel for number, panel in enumerate(placed, start=1)]


def variable(name: str, label: str, query: str, *, multi: bool = False, regex: str = "") -> Json:
    """A variable filled from Prometheus, refreshed with the time range. With `multi` all values are chosen at first."""
    everything: Json = {"current": {"selected": True, "text": ["All"], "value": ["$__all"]}} if multi else {}
    return everything | {
        "datasource": DATASOURCE,
        "definition": query,
        "hide": 0,
        "includeAll": multi,
        "label": label,
        "multi": multi,
        "name": name,
        "options": [],
        "query": {"query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "regex": regex,
        "skipUrlSync": False,
        "sort": 1,
        "type": "query",
    }


def datasource_variable(uid: str, name: str) -> Json:
    """The variable that every panel's datasource is; the provisioned one is chosen at first."""
    return {
        "current": {"selected": True, "text": name, "value": uid},
        "hide": 0,
        "includeAll": False,
        "label": "Prometheus",
        "multi": False,
        "name": "datasource",
        "options": [],
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
        "type": "datasource",
    }


def alert_annotation(selector: str, text: str) -> Json:
    """Marks where an alert of ours fired."""
    return {
        "datasource": DATASOURCE,
        "enable": True,
        "expr": f'ALERTS{{alertname=~"Agentidp.+", alertstate="firing", {selector}}}',
        "hide": False,
        "iconColor": "red",
        "name": "Alerts",
        "step": "60s",
        "tagKeys": "severity",
        "textFormat": text,
        "titleFormat": "{{alertname}}",
    }


def dashboard_link(title: str, uid: str) -> Json:
    """A link at the top that keeps the time range and the variables."""
    return {
        "asDropdown": False,
        "icon": "dashboard",
        "includeVars": True,
        "keepTime": True,
        "tags": [],
        "targetBlank": False,
        "title": title,
        "tooltip": "",
        "type": "link",
        "url": f"/d/{uid}",
    }


def dashboard(
    uid: str,
    title: str,
    description: str,
    *,
    time_from: str,
    variables: list[Json],
    annotations: list[Json],
    links: list[Json],
    panels: list[Json],
) -> Json:
    """A whole dashboard: read-only, in UTC, refreshed every minute. No `id` and no `version`: Grafana gives them."""
    return {
        "annotations": {"list": annotations},
        "description": description,
        "editable": False,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "links": links,
        "panels": panels,
        "refresh": "1m",
        "schemaVersion": 39,
        "tags": ["agentidp-analytics"],
        "templating": {"list": variables},
        "time": {"from": time_from, "to": "now"},
        "timepicker": {},
        "timezone": "utc",
        "title": title,
        "uid": uid,
        "weekStart": "",
    }
