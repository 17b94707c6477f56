"""Which metric names a PromQL expression asks for, and which ones there are."""

from __future__ import annotations

import re
from typing import Any, Final

import yaml
from prometheus_client import CollectorRegistry

from agentidp_analytics.files import FileMetrics, Files
from clickhouse.metrics import StoreMetrics
from exporter.families import FAMILIES
from exporter.metrics import ExporterMetrics
from exporter.watch_lines import WATCH_FAMILIES
from query_api.auth.jwks import count_fetches
from query_api.metrics import ApiMetrics
from tests.support.prometheus_server import RULES

# Made by Prometheus itself.
BUILT_IN: Final = frozenset({"up", "ALERTS"})
# By prometheus-client in every process.
OF_THE_PROCESS: Final = frozenset({"process_start_time_seconds"})
# What rules and dashboards ask for and no code publishes yet. A test fails for each that has come: take it out then.
COMING: Final[frozenset[str]] = frozenset()
KNOWN_ELSEWHERE: Final = BUILT_IN | OF_THE_PROCESS | COMING
_STRINGS: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_LABEL_LISTS: Final = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)")
_RANGES: Final = re.compile(r"\[[^\]]*\]")
_DURATIONS: Final = re.compile(r"\boffset\s+-?[0-9a-z]+")
_NAMES: Final = re.compile(r"(?<![0-9.])\b[a-zA-Z_:][a-zA-Z0-9_:]*")
_KEYWORDS: Final = frozenset({"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring", "inf", "nan"})
_SUFFIXES: Final = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
    "gauge": ("",),
}


def metric_names(expression: str) -> set[str]:
    """Every metric in the expression, also in arms that return nothing today."""
    bare = _STRINGS.sub('""', expression)
    bare = re.sub(r"\{[^{}]*\}", " ", bare)
    for pattern in (_LABEL_LISTS, _RANGES, _DURATIONS):
        bare = pattern.sub(" ", bare)
    return {
        match.group()
        for match in _NAMES.finditer(bare)
        if match.group() not in _KEYWORDS and not bare[match.end() :].lstrip().startswith("(")
    }


def published_names() -> set[str]:
    """Every sample name that the exporter can show: the tenants' families and the service's own metrics."""
    registry = CollectorRegistry()
    StoreMetrics(registry)
    ApiMetrics(registry)
    ExporterMetrics(registry, "0")
    count_fetches(registry)
    registry.register(FileMetrics(Files()))
    own = {family.name + suffix for family in registry.collect() for suffix in _SUFFIXES[family.type]}
    return own | {family.sample_name for family in (*FAMILIES, *WATCH_FAMILIES)}


def rule_list() -> list[dict[str, Any]]:
    """Every rule in exporter/rules."""
    files = sorted(RULES.glob("*.yml"))
    return [rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]
