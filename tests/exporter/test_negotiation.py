from __future__ import annotations

import pytest

from exporter.negotiation import Format, accepts_gzip, choose_format

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3_PROTOBUF = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7," + PROMETHEUS_3
)


@pytest.mark.parametrize(
    "accept",
    [
        PROMETHEUS_2,
        PROMETHEUS_3,
        PROMETHEUS_3_PROTOBUF,
        "application/openmetrics-text",
        "Application/OpenMetrics-Text; Version=1.0.0",
        'application/openmetrics-text; version="1.0.0"; charset=utf-8',
        "text/plain, application/openmetrics-text",
        "application/*",
        "text/plain;q=0.4, application/openmetrics-text;q=0.5",
    ],
)
def test_openmetrics_is_chosen(accept: str) -> None:
    assert choose_format(accept) is Format.OPENMETRICS


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "text/plain",
        "text/plain;version=0.0.4",
        "application/json",
        "application/openmetrics-text;q=0.5, text/plain;q=0.6",
        "application/openmetrics-text;q=0.5, text/*",
        "application/openmetrics-text;q=0.5, */*",
        "application/openmetrics-text;q=0, */*",
        "application/openmetrics-text;q=0",
        "application/*, application/openmetrics-text;q=0",
        "application/openmetrics-text;version=0.0.1",
        "application/openmetrics-text;version=2.0.0",
        "application/openmetrics-text;q=high",
        "application/openmetrics-text;q=7",
        "application/openmetrics-text;q=nan",
        ",;,=;q,",
    ],
)
def test_text_is_chosen(accept: str) -> None:
    assert choose_format(accept) is Format.TEXT


@pytest.mark.parametrize("header", ["gzip", "GZIP", "deflate, gzip, br", "*", "gzip;q=0.5", "identity;q=0.5, gzip"])
def test_gzip_is_accepted(header: str) -> None:
    assert accepts_gzip(header)


@pytest.mark.parametrize("header", ["", "br", "gzip;q=0", "gzip;q=0, *", "gzip;q=0.5, identity", "gzip;q=x", "*;q=0"])
def test_gzip_is_not_accepted(header: str) -> None:
    assert not accepts_gzip(header)
