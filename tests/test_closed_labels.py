"""Labels whose values are known beforehand: every series is there at 0, and no other value comes."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from exporter.negotiation import Format
from query_api.auth.bearer_token import Reason
from query_api.auth.jwks import FetchResult
from query_api.http.errors import STATUS_OF_CODE
from query_api.metrics import ApiMetrics
from query_api.openapi import openapi_document
from tests.support.service import ROOT, Service, request

SOURCE_REASONS = {"ingest_off", "source_token"} | {
    f"signature_{fault}" for fault in ("missing", "malformed", "stale", "mismatch")
}


def documented_codes() -> set[str]:
    """Of refused events."""
    table = (ROOT / "docs" / "events.md").read_text().partition("## What is refused")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    return {code for cell in cells for code in re.findall(r"`(\w+)`", cell)} - {"code"}  # the heading


def operations() -> dict[str, set[str]]:
    """Route -> methods."""
    methods = ("get", "head", "post")
    paths = openapi_document()["paths"]
    return {path: {method.upper() for method in methods if method in item} for path, item in paths.items()}


def test_every_labelled_metric_of_a_fresh_service_is_there_with_all_its_values(tmp_path: Path) -> None:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    with Service(tmp_path) as service:
        _, _, body = request("GET", service.metrics_url + "/metrics", {})
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "le"}
            if sample.name.startswith("agentidp_analytics_") and labels:
                name = sample.name.removeprefix("agentidp_analytics_").removesuffix("_bucket")
                found.setdefault(name, {})[tuple(labels.values())] = sample.value
    statuses = {"200", "499"} | {str(int(status)) for status in STATUS_OF_CODE.values()}
    expected = {
        "auth_failures_total": {(reason,) for reason in {*Reason, "other"} | SOURCE_REASONS},
        "ingest_events_rejected_total": {(code,) for code in documented_codes() | {"other"}},
        "rate_limited_total": {("tenant",), ("source",)},
        "jwks_fetches_total": {(result.value,) for result in FetchResult},
        "scrapes_total": {(format_.name.lower(),) for format_ in Format},
        "scrapes_refused_total": {("credentials",), ("busy",)},
        "http_requests_total": {
            (status, method, route)
            for route, methods in operations().items()
            for method in methods
            for status in statuses
        },
    }
    routes = {(route,) for route in operations()}
    expected |= {f"http_request_duration_seconds{part}": routes for part in ("", "_count", "_sum")}
    # Of the files that this service was given; all of the set are in tests/agentidp_analytics/test_files.py.
    expected |= {
        f"reload_{what}": {("ingest_token_file",)} for what in ("successful", "last_success_timestamp_seconds")
    }
    build = found.pop("build_info")
    assert list(build.values()) == [1]
    assert {name: set(values) for name, values in found.items()} == expected
    for name in ("auth_failures_total", "ingest_events_rejected_total", "scrapes_refused_total", "rate_limited_total"):
        assert set(found[name].values()) == {0}, name


def test_what_is_not_of_the_set_is_counted_as_other() -> None:
    registry = CollectorRegistry()
    metrics = ApiMetrics(registry)
    metrics.refused("made up")
    metrics.refused(None)
    metrics.rejected("made up", 3)
    for name, counted in (("auth_failures", 2), ("ingest_events_rejected", 3)):
        assert registry.get_sample_value(f"agentidp_analytics_{name}_total", {"reason": "other"}) == counted
        assert registry.get_sample_value(f"agentidp_analytics_{name}_total", {"reason": "made up"}) is None
