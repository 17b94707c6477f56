"""The API's own metrics. Every label value is from a closed set: none can be made up by a caller."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from clickhouse.metrics import LateGauge
from query_api.auth.bearer_token import Reason
from query_api.http.errors import STATUS_OF_CODE

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# 499: the sender stopped within its body.
_STATUSES: Final = (200, 499, *sorted(set(STATUS_OF_CODE.values())))
_OTHER: Final = "other"
# Of access tokens, then of event sources.
_REFUSALS: Final = frozenset(Reason) | {
    "ingest_off",
    "source_token",
    "signature_missing",
    "signature_malformed",
    "signature_stale",
    "signature_mismatch",
}
_REJECTIONS: Final = frozenset(
    {
        "control_character",
        "depth",
        "encoding",
        "enum",
        "forbidden_tenant",
        "format",
        "future",
        "json",
        "length",
        "pattern",
        "range",
        "required",
        "too_old",
        "type",
    }
)


class ApiMetrics:
    """The metrics of the query API and the ingest endpoint, registered in the given registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests: Final = Counter(
            "agentidp_analytics_http_requests_total",
            "HTTP requests answered, by route template, method and status code.",
            ("route", "method", "code"),
            registry=registry,
        )
        self._duration: Final = Histogram(
            "agentidp_analytics_http_request_duration_seconds",
            "Time from the last header of a request to its answer, by route template.",
            ("route",),
            buckets=_BUCKETS,
            registry=registry,
        )
        self.in_flight: Final = Gauge(
            "agentidp_analytics_http_requests_in_flight",
            "HTTP requests being answered now.",
            registry=registry,
        )
        self.connections_refused: Final = Counter(
            "agentidp_analytics_http_connections_refused_total",
            "Connections closed, idle or new, because too many were open.",
            registry=registry,
        )
        self._auth_failures: Final = Counter(
            "agentidp_analytics_auth_failures_total",
            "Requests refused for their credentials, by reason.",
            ("reason",),
            registry=registry,
        )
        self.rate_limited: Final = Counter(
            "agentidp_analytics_rate_limited_total",
            "Requests answered 429, by whose limit it was.",
            ("scope",),
            registry=registry,
        )
        self.events_accepted: Final = Counter(
            "agentidp_analytics_ingest_events_accepted_total",
            "Events stored and acknowledged, duplicates included.",
            registry=registry,
        )
        self._events_rejected: Final = Counter(
            "agentidp_analytics_ingest_events_rejected_total",
            "Events refused, by the first reason.",
            ("reason",),
            registry=registry,
        )
        self.last_accepted: Final = LateGauge(
            "agentidp_analytics_ingest_last_accepted_timestamp_seconds",
            "When events were last acknowledged; absent if not since the start.",
            registry=registry,
        )
        # A series that begins with its first count has no increase for it.
        for scope in ("tenant", "source"):
            self.rate_limited.labels(scope)
        for reason in (*_REFUSALS, _OTHER):
            self._auth_failures.labels(reason)
        for code in (*_REJECTIONS, _OTHER):
            self._events_rejected.labels(code)

    def serves(self, routes: Mapping[str, Collection[str]]) -> None:
        """Begins the series of `routes` (template -> methods) at 0, with every status that they answer."""
        for route, methods in routes.items():
            self._duration.labels(route)
            for method in methods:
                for status in _STATUSES:
                    self._requests.labels(route, method, str(int(status)))

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts one answer. `route` is a template or "unmatched", never a path; `method` is from `known_method`."""
        self._requests.labels(route, method, str(status)).inc()
        self._duration.labels(route).observe(seconds)

    def refused(self, reason: str | None) -> None:
        """Counts a request refused for its credentials, under "other" if `reason` is not of the closed set."""
        self._auth_failures.labels(reason if reason in _REFUSALS else _OTHER).inc()

    def rejected(self, code: str, events: int) -> None:
        """Counts refused events under `code`, or under "other" if it is not of the closed set."""
        self._events_rejected.labels(code if code in _REJECTIONS else _OTHER).inc(events)


def known_method(method: str) -> str:
    """`method`, or "other" if it is not one that people use: the parser knows some forty."""
    return method if method in _METHODS else _OTHER
