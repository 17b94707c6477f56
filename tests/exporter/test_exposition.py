from __future__ import annotations

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter.counters import PublishedFleet
from exporter.exposition import EMPTY, Body, Exposition, escape_label, metadata
from exporter.families import Family
from exporter.negotiation import Format

TEXT = b"""\
# HELP agentidp_tenant_tokens_issued_total Tokens issued to the tenant's agents since its first event, as of the last refresh: up to one refresh interval old.
# TYPE agentidp_tenant_tokens_issued_total counter
agentidp_tenant_tokens_issued_total{tenant_id="acme"} 9007199254740993
agentidp_tenant_tokens_issued_total{tenant_id="b.c-d:e_f"} 0
# HELP agentidp_tenant_token_failures_total Token requests of the tenant's agents that failed since its first event, as of the last refresh: up to one refresh interval old.
# TYPE agentidp_tenant_token_failures_total counter
agentidp_tenant_token_failures_total{tenant_id="acme"} 7
agentidp_tenant_token_failures_total{tenant_id="b.c-d:e_f"} 3
# HELP agentidp_tenant_active_agents Agents that got a token in the current hour or the 23 hours before it (UTC), as of the last refresh: up to one refresh interval old.
# TYPE agentidp_tenant_active_agents gauge
agentidp_tenant_active_agents{tenant_id="acme"} 12
agentidp_tenant_active_agents{tenant_id="b.c-d:e_f"} 0
# HELP agentidp_tenant_top_agent_ratio Share (0 to 1) of the calendar month's tokens (UTC) that went to the tenant's largest agent, as of the last refresh: up to one refresh interval old.
# TYPE agentidp_tenant_top_agent_ratio gauge
agentidp_tenant_top_agent_ratio{tenant_id="acme"} 0.25
agentidp_tenant_top_agent_ratio{tenant_id="b.c-d:e_f"} 0
# HELP agentidp_tenant_last_issued_timestamp_seconds Unix time of the tenant's newest token; no sample before the first token; as of the last refresh: up to one refresh interval old.
# TYPE agentidp_tenant_last_issued_timestamp_seconds gauge
agentidp_tenant_last_issued_timestamp_seconds{tenant_id="acme"} 1763900000.125
# HELP agentidp_tenant_month_tokens Tokens issued in the current calendar month (UTC), as of the last refresh: up to one refresh interval old.
# TYPE agentidp_tenant_month_tokens gauge
agentidp_tenant_month_tokens{tenant_id="acme"} 1234
agentidp_tenant_month_tokens{tenant_id="b.c-d:e_f"} 0
"""  # noqa: E501

OPENMETRICS = (
    TEXT.replace(b" agentidp_tenant_tokens_issued_total counter", b" agentidp_tenant_tokens_issued counter")
    .replace(b"HELP agentidp_tenant_tokens_issued_total", b"HELP agentidp_tenant_tokens_issued")
    .replace(b" agentidp_tenant_token_failures_total counter", b" agentidp_tenant_token_failures counter")
    .replace(b"HELP agentidp_tenant_token_failures_total", b"HELP agentidp_tenant_token_failures")
)


def fleet(
    tenant_id: list[str], issued: list[int], last: list[float | None] | None = None, ratio: float | None = 0.5
) -> PublishedFleet:
    rows = len(tenant_id)
    return PublishedFleet(
        tenant_id=tenant_id,
        tokens_issued=issued,
        token_failures=[1] * rows,
        active_agents=[2] * rows,
        top_agent_ratio=[ratio] * rows,
        last_issued_seconds=last or [1.5] * rows,
        month_tokens=[3] * rows,
        held_at_zero=(),
        tenants=rows,
        dropped=0,
    )


ACME = PublishedFleet(
    tenant_id=["acme", "b.c-d:e_f"],
    tokens_issued=[2**53 + 1, 0],
    token_failures=[7, 3],
    active_agents=[12, 0],
    top_agent_ratio=[0.25, 0.0],
    last_issued_seconds=[1_763_900_000.125, None],
    month_tokens=[1234, 0],
    held_at_zero=(),
    tenants=2,
    dropped=0,
)


def plain(body: Body) -> bytes:
    return b"".join(body.plain(b""))


def unpacked(parts: list[bytes]) -> bytes:
    """Decompresses exactly one gzip member, as curl does, checking its CRC and size."""
    member = zlib.decompressobj(wbits=31)
    content = member.decompress(b"".join(parts))
    assert member.eof
    assert member.unused_data == b""
    return content


@pytest.mark.parametrize(("format_", "golden"), [(Format.TEXT, TEXT), (Format.OPENMETRICS, OPENMETRICS)])
def test_golden_bytes(format_: Format, golden: bytes) -> None:
    body = Exposition().render(ACME)[format_]
    assert plain(body) == golden
    assert unpacked(body.gzipped(b"more 1\n")) == golden + b"more 1\n"


def test_a_fleet_without_tenants_still_names_its_families() -> None:
    bodies = Exposition().render(fleet([], []))
    lines = plain(bodies[Format.TEXT]).decode().splitlines()
    assert len(lines) == 12
    assert all(line.startswith("# ") for line in lines)


def test_nothing_but_the_last_part_is_still_one_member() -> None:
    assert EMPTY.plain(b"x 1\n") == [b"x 1\n"]
    assert unpacked(EMPTY.gzipped(b"x 1\n")) == b"x 1\n"


HOSTILE = st.text(st.sampled_from('a"\\\n%{}d s\t\u20ac'), min_size=1, max_size=8)


@settings(deadline=None)
@given(st.lists(HOSTILE, min_size=1, max_size=5, unique=True))
def test_any_label_value_is_read_back_by_both_parsers(tenant_ids: list[str]) -> None:
    bodies = Exposition().render(fleet(tenant_ids, list(range(len(tenant_ids)))))
    expected = {tenant_id: float(number) for number, tenant_id in enumerate(tenant_ids)}
    for families in (
        parse_text(plain(bodies[Format.TEXT]).decode()),
        parse_openmetrics(plain(bodies[Format.OPENMETRICS]).decode() + "# EOF\n"),
    ):
        issued = next(family for family in families if family.name == "agentidp_tenant_tokens_issued")
        assert {sample.labels["tenant_id"]: sample.value for sample in issued.samples} == expected


def test_help_text_is_escaped_by_the_rules_of_each_format() -> None:
    family = Family("x", "counter", 'a "quoted" back\\slash\nand a new line', "tokens_issued", "%d")
    assert metadata(family, Format.TEXT) == (
        b'# HELP x_total a "quoted" back\\\\slash\\nand a new line\n# TYPE x_total counter\n'
    )
    assert metadata(family, Format.OPENMETRICS) == (
        b'# HELP x a \\"quoted\\" back\\\\slash\\nand a new line\n# TYPE x counter\n'
    )


def test_escape_label() -> None:
    assert escape_label('a"b\\c\nd') == 'a\\"b\\\\c\\nd'


many = st.integers(min_value=0, max_value=2_300)
FLEETS = st.lists(st.tuples(many, st.integers(0, 3), st.booleans(), st.booleans()), min_size=2, max_size=4)


@settings(max_examples=50, deadline=None)
@given(FLEETS)
def test_what_is_kept_from_the_last_fleet_never_shows(shapes: list[tuple[int, int, bool, bool]]) -> None:
    """Fleets that grow, shrink, shift by a tenant, change one value or lose samples: as if rendered afresh."""
    kept = Exposition()
    for count, first, sparse, bumped in shapes:
        issued = list(range(count))
        if bumped and issued:
            issued[-1] += 1
        last: list[float | None] = [None if sparse and n % 3 == 0 else n / 4 for n in range(count)]
        shape = fleet([f"tenant-{first + n}" for n in range(count)], issued, last or None)
        bodies, fresh = kept.render(shape), Exposition().render(shape)
        for format_ in Format:
            assert plain(bodies[format_]) == plain(fresh[format_])
            assert unpacked(bodies[format_].gzipped(b"# EOF\n")) == plain(fresh[format_]) + b"# EOF\n"


def test_unchanged_thousands_are_not_rendered_again() -> None:
    exposition = Exposition()
    tenant_ids = [f"tenant-{n}" for n in range(2_500)]
    before = exposition.render(fleet(tenant_ids, [0] * 2_500))[Format.TEXT].plain(b"")
    after = exposition.render(fleet(list(tenant_ids), [0] * 2_499 + [1]))[Format.TEXT].plain(b"")
    changed = [number for number, (a, b) in enumerate(zip(before, after, strict=True)) if a is not b]
    assert changed == [3]  # of the first family: the metadata, then the third thousand
