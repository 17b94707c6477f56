"""Log lines and metrics: what operators need, and nothing that a caller or a secret could have put there."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path
from typing import Literal

import pytest

from agentidp_analytics.logs import JsonFormatter, TextFormatter, configure_logging
from clickhouse.connection import Connection
from tests.support.api_harness import SOURCE_TOKEN, event, logged, run, serving


def record(message: str, *arguments: object, exc_info: object = None, **values: str | float) -> logging.LogRecord:
    made = logging.LogRecord("room.noun", logging.WARNING, "x.py", 1, message, arguments, exc_info)  # type: ignore[arg-type]
    made.created = 1_700_000_000.1236
    if values:
        made.__dict__["fields"] = values
    return made


def failure() -> tuple[type[BaseException], BaseException, object]:
    try:
        try:
            int("password=hunter2")
        except ValueError as error:
            raise RuntimeError("hunter2 again") from error
    except RuntimeError as error:
        return type(error), error, error.__traceback__
    raise AssertionError("int() took it")


def test_json_lines_have_the_fields_and_cannot_be_split_or_overwritten() -> None:
    line = JsonFormatter().format(record("took %d\n{", 3, status=200, level="fake", text='"\n\u2028'))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.123Z",
        "level": "warning",
        "logger": "room.noun",
        "message": "took 3\n{",
        "status": 200,
        "text": '"\n\u2028',
    }


def test_text_lines_stay_one_line() -> None:
    line = TextFormatter().format(record("a\nb\x1b[31m", status=200))
    assert line == "2023-11-14T22:13:20.123Z WARNING a\\nb\\x1b[31m status=200"


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_what_asyncio_says_of_a_lost_failure_is_cut_to_its_own_words(formatter: logging.Formatter) -> None:
    lost = record("Task exception was never retrieved\nfuture: <Task exception=ValueError('hunter2')>")
    lost.name = "asyncio"
    line = formatter.format(lost)
    assert "Task exception was never retrieved" in line
    assert "hunter2" not in line


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_an_exception_is_its_types_and_places_without_its_messages(formatter: logging.Formatter) -> None:
    line = formatter.format(record("failed", exc_info=failure()))
    assert "builtins.RuntimeError at " in line
    assert "because of builtins.ValueError at " in line
    assert "test_logs.py" in line
    assert "hunter2" not in line
    assert "\n" not in line


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_configuring_replaces_what_was_there(log_format: Literal["json", "text"]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        stream = io.StringIO()
        configure_logging("text", io.StringIO())
        configure_logging(log_format, stream)
        logging.getLogger("any.where").info("hello", extra={"fields": {"n": 1}})
        logging.getLogger("any.where").debug("not this")
        lines = stream.getvalue().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("{") == (log_format == "json")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def test_each_request_is_one_line_with_its_route_and_not_its_path(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path, sources=f"{SOURCE_TOKEN} name=hook") as api:
            await api.get("/api/v1/analytics/tokens?days=7", headers={"X-Request-Id": "q-1"})
            await api.send([event(1), event(2, agent_id=None)])
            await api.request("GET", "/api/v1/analytics/tokens", headers={"X-Request-Id": "q-3"})
            await api.request("BREW", "/pot", headers={"X-Request-Id": "q-4"})
            await api.request("GET", "/healthz")

    with logged() as lines:
        run(scenario())
    requests = [json.loads(line) for line in lines if '"logger": "query_api.access"' in line]
    shown = [{name: line.get(name) for name in ("level", "method", "route", "status")} for line in requests]
    tokens, events = "/api/v1/analytics/tokens", "/api/v1/events"
    assert shown == [
        {"level": "info", "method": "GET", "route": tokens, "status": 200},
        {"level": "info", "method": "POST", "route": events, "status": 200},
        {"level": "info", "method": "GET", "route": tokens, "status": 401},
        {"level": "info", "method": "other", "route": "unmatched", "status": 400},
        {"level": "debug", "method": "GET", "route": "/healthz", "status": 200},
    ]
    assert (requests[0]["request_id"], requests[0]["tenant"]) == ("q-1", "org-1")
    assert (requests[1]["source"], requests[1]["accepted"], requests[1]["rejected"]) == ("hook", 1, 1)
    assert (requests[2]["request_id"], requests[2]["reason"]) == ("q-3", "no_credentials")
    assert all(line["duration_ms"] >= 0 for line in requests)


MARK = "zqMARKqz"


def test_nothing_that_a_caller_sends_reaches_the_log_or_a_label(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> str:
        async with serving(embedded_store, tmp_path) as api:
            secrets = [api.access_token(), SOURCE_TOKEN]
            for header in ("User-Agent", "Referer", "Cookie", "X-Forwarded-For", "X-Organization-Id", "Accept"):
                await api.get("/api/v1/analytics/tokens", headers={header: MARK})
            for path in (f"/{MARK}", f"/api/v1/analytics/tokens?{MARK}=1", f"/api/v1/analytics/tokens?days={MARK}"):
                await api.get(path)
            for token in (MARK, f"{MARK}.{MARK}.{MARK}", api.access_token(organization_id=f"{MARK}\n")):
                await api.request("GET", "/api/v1/analytics/agents", headers={"Authorization": f"Bearer {token}"})
                await api.send(event(agent_id=MARK), token=token)
            bodies = [MARK.encode(), event(tenant_id=f"{MARK}/"), event(event_id=f"{MARK}\x00" * 99), {MARK: MARK}]
            for body in [*bodies, [event(event_id=MARK, agent_id=MARK, scope=MARK, source=MARK), {"x": MARK}]]:
                await api.send(body)
            await api.send(event(), Content_Type=f"text/{MARK}", Content_Encoding=MARK)
            api.questions.error = RuntimeError(MARK)
            await api.get("/api/v1/analytics/agents")
            return api.exposition() + "".join(secret for secret in secrets if secret in "\n".join(lines))

    with logged() as lines:
        text = run(scenario())
    assert len(lines) > 20
    assert [line for line in lines if MARK in line and "aiohttp.access" not in line] == []
    assert MARK not in text
    assert SOURCE_TOKEN not in text


def test_metric_labels_are_from_closed_sets(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            await api.send([event(1), event(2, issued_at="1999-01-01T00:00:00Z"), {}])
            await api.get("/api/v1/analytics/tokens")
            await api.request("GET", "/nothing")
            await api.request("PROPFIND", "/healthz")
            ours = [line for line in api.exposition().splitlines() if line.startswith("agentidp_analytics_")]
            names = {re.split("[ {]", line)[0] for line in ours}
            assert {
                "agentidp_analytics_http_requests_total",
                "agentidp_analytics_http_request_duration_seconds_bucket",
                "agentidp_analytics_auth_failures_total",
                "agentidp_analytics_ingest_events_accepted_total",
                "agentidp_analytics_ingest_events_rejected_total",
                "agentidp_analytics_ingest_last_accepted_timestamp_seconds",
                "agentidp_analytics_http_requests_in_flight",
                "agentidp_analytics_rate_limited_total",
            } <= names
            label = {"route": "/healthz", "method": "other", "code": "405"}
            assert api.metric("http_requests_total", **label) == 1
            assert api.metric("http_requests_total", route="unmatched", method="GET", code="404") == 1
            assert api.metric("ingest_events_rejected_total", reason="too_old") == 1
            assert api.metric("ingest_events_rejected_total", reason="other") == 0
            assert api.metric("http_request_duration_seconds_count", route="unmatched") == 1
            assert api.metric("rate_limited_total", scope="tenant") == 0
            for line in ours:
                assert " " in line

    run(scenario())
