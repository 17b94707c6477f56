"""Decoding a body: every format, gzip within bounds, and nothing but an ApiError for the worst of bytes."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from query_api.http.errors import ApiError
from query_api.ingest.body import gunzip
from query_api.ingest.formats import FORMATS, Batch, decode_batch
from query_api.ingest.json_text import MAX_DEPTH
from tests.support.api_harness import NOW, event

NOW_MS = int(NOW * 1000)
LIMIT = 1_000_000

PLAIN = "application/json"
LINES = "application/x-ndjson"
ENVELOPE = "application/cloudevents+json"
ENVELOPES = "application/cloudevents-batch+json"


def decode(body: bytes | object, media_type: str = PLAIN, max_events: int = 1000) -> Batch:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode_batch(data, FORMATS[media_type], NOW_MS, max_events, lambda tenant: True)


def codes(batch: Batch) -> list[tuple[int, str, str]]:
    return [(entry["index"], entry["pointer"], entry["code"]) for entry in batch.rejected]


def refusal(body: bytes | object, media_type: str = PLAIN) -> ApiError:
    with pytest.raises(ApiError) as caught:
        decode(body, media_type, max_events=50_000)
    return caught.value


def attempt(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except ApiError as error:
        return error


def envelope(data: Any = None, **changes: Any) -> dict[str, Any]:
    value = {
        "specversion": "1.0",
        "id": "m-1",
        "source": "/idp",
        "type": "token.issued",
        "data": event() if data is None else data,
        **changes,
    }
    return {name: member for name, member in value.items() if member is not None}


def test_json_is_one_event_an_array_or_an_object_with_events() -> None:
    for body in (event(), [event()], {"events": [event()]}, {"events": [event()], "sent_by": "x"}):
        assert [found.event_id for found in decode(body).events] == ["e-1"]
    assert decode(b"\xef\xbb\xbf  [] \n").events == []
    assert decode({"events": []}) == Batch([], [], {})


def test_events_that_is_no_array_is_refused_with_its_pointer() -> None:
    for events in ({}, None, "x", 1, True, event()):
        error = refusal({"events": events})
        assert (error.status, error.details) == (400, {"pointer": "/events"})
    twice = b'{"events": [], "events": [' + json.dumps(event()).encode() + b"]}"
    assert refusal(twice).status == 400


@pytest.mark.parametrize("value", [b"5", b"null", b"true", b'"x"', b"[5]", b'[[{"events":[]}]]'])
def test_what_is_no_object_is_a_rejected_event(value: bytes) -> None:
    assert codes(decode(value)) == [(0, "", "type")]


def test_a_bad_event_never_spoils_its_neighbours() -> None:
    good = json.dumps(event()).encode()
    bad = {
        b"[]": ("", "type"),
        b'{"event_id": "x"}': ("/tenant_id", "required"),
        good[:-1] + b', "agent_id": "other"}': ("", "json"),
        good[:-1] + b', "x": {"a": 1, "a": 1}}': ("", "json"),
        good[:-1] + b', "x": [NaN]}': ("", "json"),
        good[:-1] + b', "x": -Infinity}': ("", "json"),
        good[:-1] + b', "x": ' + b"9" * 5000 + b"}": ("", "json"),
        good[:-1] + b', "expires_in": ' + b"9" * 999 + b"}": ("/expires_in", "range"),
        good[:-1] + b', "x": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}": ("", "depth"),
        good[:-1] + b', "issued_at2": 1, "issued_at": 1e400}': ("", "json"),
        json.dumps(event(issued_at=1e300)).encode(): ("/issued_at", "future"),
        json.dumps(event(event_id="\ud800")).encode(): ("/event_id", "encoding"),
    }
    for broken, (pointer, code) in bad.items():
        batch = decode(b"[" + b",".join([good, broken, good]) + b"]")
        assert len(batch.events) == 2, broken
        assert (1, pointer, code) in codes(batch), broken
        assert {entry["index"] for entry in batch.rejected} == {1}
        assert sum(batch.refused.values()) == 1
        lines = decode(b"\n".join([good, b"", broken, b" \r", good]), LINES)
        assert (len(lines.events), {entry["index"] for entry in lines.rejected}) == (2, {1}), broken


def test_nesting_up_to_the_limit_is_fine() -> None:
    inside: Any = 1
    for _ in range(MAX_DEPTH - 1):
        inside = [inside]
    assert len(decode(event(extra=inside)).events) == 1
    assert codes(decode(event(extra=[inside]))) == [(0, "", "depth")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b"[] []",
        b"{'a': 1}",
        b"\xff\xfe[\x00]\x00",
        b'["\xc3"]',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xef\xbb\xbf\xef\xbb\xbf[]",
        b'["\x01"]',
    ],
)
def test_what_is_no_json_is_400_and_not_repeated(body: bytes) -> None:
    error = refusal(body)
    assert (error.status, error.code) == (400, "VALIDATION_ERROR")
    assert error.details is None or error.details.keys() == {"position"}


def test_each_broken_line_is_one_rejected_entry() -> None:
    good = json.dumps(event()).encode()
    body = b"\r\n".join([good, b"{", b"\t ", b"\xff", b"[1", good, b"nope", b"[" * 5000])
    batch = decode(body, LINES)
    assert len(batch.events) == 2
    assert codes(batch) == [(1, "", "json"), (2, "", "json"), (3, "", "json"), (5, "", "json"), (6, "", "json")]
    assert decode(b"\n\n  \n", LINES) == Batch([], [], {})
    assert len(decode(b"\xef\xbb\xbf" + good, LINES).events) == 1


def test_the_number_of_events_is_bounded_in_every_format() -> None:
    four = [event(number) for number in range(4)]
    bodies = {
        PLAIN: json.dumps(four).encode(),
        LINES: b"\n".join(json.dumps(value).encode() for value in four),
        ENVELOPES: json.dumps([envelope(value) for value in four]).encode(),
    }
    for media_type, body in bodies.items():
        assert len(decode(body, media_type, max_events=4).events) == 4
        with pytest.raises(ApiError) as caught:
            decode(body, media_type, max_events=3)
        assert caught.value.status == 413


def test_the_data_of_a_cloud_event_is_the_event() -> None:
    assert decode(envelope(), ENVELOPE).events == decode(event()).events
    assert len(decode([envelope(), envelope(event(2), datacontenttype="application/json")], ENVELOPES).events) == 2
    assert refusal([envelope()], ENVELOPE).status == 400
    assert refusal(envelope(), ENVELOPES).status == 400


@pytest.mark.parametrize(
    ("changes", "pointer", "code"),
    [
        ({"specversion": None}, "/specversion", "required"),
        ({"specversion": "0.3"}, "/specversion", "enum"),
        ({"specversion": 1.0}, "/specversion", "type"),
        ({"id": ""}, "/id", "length"),
        ({"source": None}, "/source", "required"),
        ({"type": ["x"]}, "/type", "type"),
        ({"data": {}}, "/data/event_id", "required"),
        ({"data": event(event_id=None)}, "/data/event_id", "required"),
        ({"data": event(agent_id=7)}, "/data/agent_id", "type"),
        ({"data": "eyJ9"}, "/data", "type"),
        ({"data_base64": "e30="}, "/data_base64", "format"),
    ],
)
def test_faults_of_a_cloud_event_have_pointers_into_it(changes: dict[str, Any], pointer: str, code: str) -> None:
    batch = decode([envelope(), envelope(**changes)], ENVELOPES)
    assert len(batch.events) == 1
    assert (1, pointer, code) in codes(batch)


def test_a_cloud_event_without_data_is_told_so() -> None:
    without = envelope()
    del without["data"]
    assert codes(decode(without, ENVELOPE)) == [(0, "/data", "required")]
    assert codes(decode([5], ENVELOPES)) == [(0, "", "type")]


# --- gzip


def test_gzip_of_one_or_several_members_is_unpacked() -> None:
    for parts in ([b"abc"], [b"abc", b"", b"def"], [b"x" * 300_000, b"y" * 300_000], [b""]):
        assert gunzip(b"".join(gzip.compress(part) for part in parts), LIMIT) == b"".join(parts)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5), st.integers(-3, 3))
def test_the_limit_of_unpacked_bytes_is_exact(parts: list[bytes], slack: int) -> None:
    packed = b"".join(gzip.compress(part) for part in parts)
    size = sum(map(len, parts))
    if slack >= 0:
        assert len(gunzip(packed, size + slack)) == size
    elif size + slack >= 0:
        with pytest.raises(ApiError) as caught:
            gunzip(packed, size + slack)
        assert caught.value.status == 413


def test_a_bomb_is_stopped_at_the_limit() -> None:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(squeeze.compress(bytes(1_000_000)) for _ in range(100)) + squeeze.flush()
    assert len(bomb) < LIMIT
    tracemalloc.start()
    try:
        with pytest.raises(ApiError) as caught:
            gunzip(bomb, LIMIT)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.status == 413
    assert peak_bytes < 5 * LIMIT


def test_gzip_that_is_broken_is_400() -> None:
    packed = gzip.compress(b"abc" * 100)
    hostile = [
        b"",
        packed[:-1],
        packed[:10],
        packed + b"garbage",
        packed + b"\0",
        packed[:20] + b"\xff" * 8 + packed[28:],
        packed[:-8] + bytes(8),
        zlib.compress(b"abc"),
        b"[]",
        gzip.compress(b"") * 1_001,
    ]
    for body in hostile:
        with pytest.raises(ApiError) as caught:
            gunzip(body, LIMIT)
        assert caught.value.status == 400, body[:40]


# --- whatever bytes

SCRAPS = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just(event())),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(
                st.sampled_from([*event(), "events", "data", "specversion", "id", "type", "source", "expires_in"]),
                inner,
                max_size=5,
            ),
        ),
        max_leaves=20,
    ).map(lambda value: json.dumps(value).encode()),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(FORMATS)), st.lists(SCRAPS, max_size=4), st.sampled_from([b"", b"\n", b","]))
@example(PLAIN, [b'{"expires_in": 1e999, "issued_at": NaN}'], b"")
@example(LINES, [b"\xed\xa0\x80", b'{"a":' * 2000], b"\n")
def test_no_bytes_lead_to_anything_but_a_batch_or_an_api_error(media: str, scraps: list[bytes], glue: bytes) -> None:
    batch = attempt(lambda: decode(glue.join(scraps), media))
    if isinstance(batch, ApiError):
        assert batch.status in (400, 413)
    else:
        assert all(entry.keys() == {"index", "pointer", "code", "message"} for entry in batch.rejected)
        assert len({entry["index"] for entry in batch.rejected}) == sum(batch.refused.values())
        json.dumps(batch.rejected).encode("ascii")


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 40), st.binary(max_size=4))
def test_no_bytes_make_gunzip_fail_otherwise(data: bytes, cut: int, patch: bytes) -> None:
    packed = gzip.compress(data)
    for body in (data, packed[:cut] + patch + packed[cut + len(patch) :]):
        found = attempt(partial(gunzip, body, LIMIT))
        assert found.status in (400, 413) if isinstance(found, ApiError) else len(found) <= LIMIT


@settings(deadline=None)
@given(st.lists(st.sampled_from(["good", "bad", "broken"]), min_size=1, max_size=12))
def test_good_events_are_taken_in_order_whatever_stands_between(kinds: list[str]) -> None:
    texts = {"good": b"", "bad": b'{"event_id": 1}', "broken": b"{"}
    lines = [texts[kind] or json.dumps(event(number)).encode() for number, kind in enumerate(kinds)]
    batch = decode(b"\n".join(lines), LINES)
    good = [number for number, kind in enumerate(kinds) if kind == "good"]
    assert [found.event_id for found in batch.events] == [f"e-{number}" for number in good]
    assert {entry["index"] for entry in batch.rejected} == set(range(len(kinds))) - set(good)
