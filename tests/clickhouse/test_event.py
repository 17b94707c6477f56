"""The event format, rule by rule, and whatever else anybody may send."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickhouse.event import (
    EARLIEST_MS,
    FUTURE_TOLERANCE_MS,
    MAX_TEXT_LENGTH,
    Event,
    EventRejectedError,
    FieldError,
    parse_event,
    parse_rfc3339,
)
from query_api.ingest.formats import MAX_LINE_BYTES, read_line

NOW_MS = int(datetime(2026, 11, 23, 9, 15, tzinfo=UTC).timestamp() * 1000)
VALID: dict[str, Any] = {
    "event_id": "e1",
    "tenant_id": "org-a",
    "agent_id": "agent-1",
    "issued_at": "2026-11-23T09:00:00Z",
}


def refused(**changes: Any) -> list[tuple[str, str]]:
    """(pointer, code) of every error of the valid event with `changes`."""
    with pytest.raises(EventRejectedError) as raised:
        parse_event(VALID | changes, NOW_MS)
    return [(error.pointer, error.code) for error in raised.value.errors]


def test_a_valid_event_with_everything() -> None:
    full = VALID | {
        "outcome": "failure", "grant_type": "client_credentials", "scope": "a b", "client_ip": "192.0.2.1",
        "user_agent": "x/1", "source": "idp", "expires_in": 3600, "unknown": {"deep": [1]},
    }  # fmt: skip
    issued = int(datetime(2026, 11, 23, 9, tzinfo=UTC).timestamp() * 1000)
    assert parse_event(full, NOW_MS) == Event(
        "org-a", issued, "e1", "agent-1", "failure", "client_credentials", "a b", "192.0.2.1", "x/1", "idp", 3600
    )


def test_null_means_absent() -> None:
    optional = dict.fromkeys(["outcome", "grant_type", "scope", "client_ip", "user_agent", "source", "expires_in"])
    assert parse_event(VALID | optional, NOW_MS) == parse_event(VALID, NOW_MS)
    assert refused(agent_id=None) == [("/agent_id", "required")]


def test_every_error_at_once() -> None:
    with pytest.raises(EventRejectedError) as raised:
        parse_event({"event_id": "", "tenant_id": 7, "issued_at": "soon", "outcome": "maybe", "scope": 1}, NOW_MS)
    assert {(error.pointer, error.code) for error in raised.value.errors} == {
        ("/event_id", "length"), ("/tenant_id", "type"), ("/agent_id", "required"), ("/issued_at", "format"),
        ("/outcome", "enum"), ("/scope", "type"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("event_id", "x" * 257, "length"), ("event_id", 5, "type"), ("event_id", "\ud800", "encoding"),
        ("tenant_id", "", "pattern"), ("tenant_id", "-a", "pattern"), ("tenant_id", "a\n", "pattern"),
        ("tenant_id", "a" * 129, "pattern"), ("tenant_id", "ü", "pattern"), ("tenant_id", "a b", "pattern"),
        ("tenant_id", "٣", "pattern"), ("agent_id", "", "length"), ("agent_id", "a" * 257, "length"),
        ("agent_id", "a\tb", "control_character"), ("agent_id", "a\x7f", "control_character"),
        ("agent_id", "a\x85", "control_character"), ("agent_id", ["a"], "type"),
        ("issued_at", "2026-11-23T09:00:00", "format"), ("issued_at", "2026-11-23", "format"),
        ("issued_at", "2026-02-29T00:00:00Z", "format"), ("issued_at", "2026-11-23T24:00:00Z", "format"),
        ("issued_at", "2026-11-23T09:60:00Z", "format"), ("issued_at", "2026-11-23T09:00:61Z", "format"),
        ("issued_at", "2026-11-23T09:00:00+24:00", "format"), ("issued_at", "2026-11-23T09:00:00.Z", "format"),
        ("issued_at", "２０２６-11-23T09:00:00Z", "format"), ("issued_at", True, "type"), ("issued_at", [], "type"),
        ("issued_at", float("nan"), "format"), ("issued_at", float("inf"), "format"),
        ("issued_at", "1999-12-31T23:59:59.999Z", "too_old"), ("issued_at", 0, "too_old"),
        ("issued_at", -1, "too_old"), ("issued_at", "2000-01-01T00:00:00+00:01", "too_old"),
        ("issued_at", NOW_MS + FUTURE_TOLERANCE_MS + 1, "future"), ("issued_at", 10**400, "future"),
        ("issued_at", 1e300, "future"), ("outcome", "Success", "enum"), ("outcome", 1, "type"),
        ("expires_in", "3600", "type"), ("expires_in", 1.5, "type"), ("expires_in", True, "type"),
        ("expires_in", -1, "range"), ("expires_in", 2**32, "range"), ("expires_in", float("inf"), "type"),
        ("scope", {}, "type"),
    ],
)  # fmt: skip
def test_a_bad_field_is_refused_with_its_pointer(field: str, value: Any, code: str) -> None:
    assert refused(**{field: value}) == [(f"/{field}", code)]


@pytest.mark.parametrize("value", [None, 5, "x", [], [VALID], True, 1.5])
def test_what_is_no_object_is_refused(value: object) -> None:
    with pytest.raises(EventRejectedError) as raised:
        parse_event(value, NOW_MS)
    assert [(error.pointer, error.code) for error in raised.value.errors] == [("", "type")]


@pytest.mark.parametrize(
    ("issued_at", "expected"),
    [
        ("2026-01-01T00:00:00+14:00", "2025-12-31T10:00:00.000"), ("2025-12-31T23:59:59.999-12:00", None),
        ("2024-02-29T23:59:59.9999999Z", "2024-02-29T23:59:59.999"),
        ("2024-02-29t23:59:59z", "2024-02-29T23:59:59.000"),
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999"), ("2026-01-01T00:00:00.5-00:00", "2026-01-01T00:00:00.500"),
        (1_700_000_000, "2023-11-14T22:13:20.000"), (1_700_000_000.123, "2023-11-14T22:13:20.123"),
        (1_700_000_000_123, "2023-11-14T22:13:20.123"), (1_700_000_000_123.9, "2023-11-14T22:13:20.123"),
        (946_684_800, "2000-01-01T00:00:00.000"), (1_700_000_000.9999, "2023-11-14T22:13:20.999"),
    ],
)  # fmt: skip
def test_moments(issued_at: Any, expected: str | None) -> None:
    parsed = parse_event(VALID | {"issued_at": issued_at}, NOW_MS).issued_at
    moment = datetime(1970, 1, 1) + timedelta(milliseconds=parsed)
    assert moment.isoformat(timespec="milliseconds") == (expected or "2026-01-01T11:59:59.999")


def test_the_future_is_bounded_to_the_millisecond() -> None:
    edge = NOW_MS + FUTURE_TOLERANCE_MS
    assert parse_event(VALID | {"issued_at": edge}, NOW_MS).issued_at == edge
    assert parse_event(VALID | {"issued_at": EARLIEST_MS}, NOW_MS).issued_at == EARLIEST_MS


def test_long_metadata_is_cut_and_never_costs_the_count() -> None:
    event = parse_event(VALID | {"user_agent": "x" * 100_000, "scope": "a\ud800b"}, NOW_MS)
    assert event.user_agent == "x" * MAX_TEXT_LENGTH
    assert event.scope == "a\ufffdb"


@given(
    st.datetimes(datetime(2000, 1, 3), datetime(2026, 11, 20)),
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
    st.integers(0, 999),
)
def test_rfc3339_agrees_with_datetime(moment: datetime, offset: int, milliseconds: int) -> None:
    zone = timezone(timedelta(minutes=offset))
    aware = moment.replace(microsecond=milliseconds * 1000, tzinfo=zone)
    wanted = (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert parse_rfc3339(aware.isoformat(timespec="milliseconds")) == wanted


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.from_regex(r"[0-9TZ:.+-]{1,30}"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*VALID, "outcome", "scope", "expires_in", "source"]), ANYTHING) | ANYTHING)
def test_no_value_raises_anything_but_a_rejection(value: Any) -> None:
    errors: list[FieldError] = []
    try:
        event = parse_event(value, NOW_MS)
    except EventRejectedError as error:
        errors = error.errors
    else:
        "".join(str(field) for field in event).encode()
        assert EARLIEST_MS <= event.issued_at <= NOW_MS + FUTURE_TOLERANCE_MS
        return
    assert errors
    assert all(message.isprintable() for _, _, message in errors)


@given(st.binary() | st.text().map(str.encode) | ANYTHING.map(lambda value: json.dumps(value).encode()))
def test_no_line_raises_anything_but_a_rejection(line: bytes) -> None:
    with contextlib.suppress(EventRejectedError):
        read_line(line, NOW_MS)


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"9" * 10_000,
        b"NaN",
        b"{",
        b"\xff",
        b'"' + b"x" * MAX_LINE_BYTES + b'"',
        b"\xef\xbb\xbf{}",
        b"{" + b"[]," * 300_000 + b"}",
        b'{"x": ' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"x": ' + b"9" * 2_000 + b"}",
    ],
)
def test_lines_made_to_hurt(line: bytes) -> None:
    with pytest.raises(EventRejectedError):
        read_line(line, NOW_MS)
