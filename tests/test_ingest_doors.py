"""Both doors read events by one rule: a line in a file and the same line over HTTP give the same event or reasons."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentidp_analytics.backfill import Reject, backfill
from clickhouse.event import Event
from query_api.ingest.formats import FORMATS, decode_batch

NOW_MS = 1_795_425_300_000  # 2026-11-23T09:15:00Z
GOOD: dict[str, Any] = {"event_id": "e", "tenant_id": "t", "agent_id": "a", "issued_at": 1_795_425_000}

LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=20)
    | st.sampled_from(["t", "2026-11-23T09:00:00Z", "9" * 300])
)
VALUE = st.recursive(LEAF, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside))
EVENT = st.builds(
    lambda changes: {**GOOD, **changes},
    st.dictionaries(st.sampled_from([*GOOD, "outcome", "scope", "expires_in", "x"]), VALUE, max_size=3),
)
JSON_LINE = st.builds(
    lambda value, ascii_only: json.dumps(value, ensure_ascii=ascii_only), EVENT | VALUE, st.booleans()
)
LINE = st.one_of(
    JSON_LINE.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=60),
    JSON_LINE.map(lambda text: b"\xef\xbb\xbf" + text.encode("utf-8", "replace")),
    st.builds(lambda text, cut: text.encode("utf-8", "replace")[:cut], JSON_LINE, st.integers(0, 80)),
)

Outcome = tuple[list[Event], list[tuple[str, str]]]


def by_file(line: bytes) -> Outcome:
    written: list[Event] = []
    reasons: list[tuple[str, str]] = []

    def write(events: Sequence[Event]) -> None:
        written.extend(events)

    def on_reject(reject: Reject) -> None:
        reasons.extend((error.pointer, error.code) for error in reject.errors)

    with tempfile.NamedTemporaryFile(suffix=".ndjson") as file:
        Path(file.name).write_bytes(line)
        backfill([file.name], write, now_ms=lambda: NOW_MS, on_reject=on_reject)
    return written, reasons


def by_http(line: bytes) -> Outcome:
    batch = decode_batch(line, FORMATS["application/x-ndjson"], NOW_MS, 1_000, lambda tenant: True)
    return batch.events, [(entry["pointer"], entry["code"]) for entry in batch.rejected]


@given(LINE)
def test_any_line_gives_the_same_through_both_doors(line: bytes) -> None:
    assume(not line.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")))  # a file that begins so is packed
    assert by_file(line) == by_http(line)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (json.dumps({**GOOD, "x": "?"}).replace('"?"', "[" * 40 + "]" * 40).encode(), "depth"),
        (json.dumps(GOOD).replace("1795425000", "9" * 2_000).encode(), "json"),
        (json.dumps(GOOD).replace("1795425000", "1e400").encode(), "format"),
        (b'{"event_id": "e", "event_id": "f", "tenant_id": "t", "agent_id": "a", "issued_at": 1795425000}', "json"),
        (json.dumps({**GOOD, "expires_in": float("nan")}).encode(), "json"),
        (json.dumps({**GOOD, "x": [[]] * 10_001}).encode(), "json"),
        (json.dumps({**GOOD, "x": "x" * 1_000_000}).encode(), "length"),
        (b"[" * 100_000, "json"),
    ],
)
def test_lines_that_readers_have_differed_about(line: bytes, code: str) -> None:
    assert by_file(line) == by_http(line)
    assert [found for _, found in by_http(line)[1]] == [code]
