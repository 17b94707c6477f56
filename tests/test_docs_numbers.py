"""Numbers that the documentation repeats, each tied to the constant or the default that it is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import pytest

from agentidp_analytics.demo_events import DAYS, demo_fleet
from clickhouse.audit import MAX_CONFLICTS
from clickhouse.commit import LINGER_SECONDS, GroupCommit
from clickhouse.connection import INSERT_SECONDS
from clickhouse.daily import HOUR_OF_DAY
from clickhouse.event import _MILLISECONDS_FROM, EARLIEST_MS, FUTURE_TOLERANCE_MS, MAX_ID_LENGTH, MAX_TEXT_LENGTH
from clickhouse.failover import FOLLOW_SECONDS, GRACE_SECONDS
from clickhouse.marks import MAX_OPEN_SECONDS, ORPHAN_AFTER_SECONDS, REMARK_AFTER_SECONDS, SLOT_MS
from clickhouse.removal import _FOREIGN_SECONDS
from clickhouse.statement_settings import SETTINGS
from clickhouse.tenant import _TENANT_ID
from clickhouse.topology import CLOCK_SECONDS
from clickhouse.upkeep import _DUTY, _STUCK_SECONDS, PAUSE_SECONDS
from exporter.refresher import Refresher
from exporter.server import _MAX_SCRAPES
from query_api.app import _MAX_HEADER_BYTES
from query_api.auth.bearer_token import MAX_TOKEN_LENGTH
from query_api.auth.jwks import KeySet
from query_api.http.parameters import AGENTS_MAX, DAYS_DEFAULT, DAYS_MAX
from query_api.http.request_ids import _SAFE
from query_api.http.server import _MAX_LINE_BYTES
from query_api.ingest.formats import MAX_LINE_BYTES, MAX_REASONS
from query_api.ingest.json_text import _MAX_DIGITS, _VALUES_A_CONTAINER, MAX_DEPTH, MAX_VALUES_A_LINE, VALUES_AN_EVENT
from query_api.ingest.signatures import _FORM, WINDOW_SECONDS
from query_api.ingest.sources import MIN_SECRET_LENGTH
from query_api.settings import ApiSettings, Limits
from tests.support.service import ROOT

WORDS: Final = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class Row(NamedTuple):
    """Every place of `page` that reads as `sentence` has these values for its `{}`, in order.

    In a sentence any white space is one blank. A value is a number, or a text such as "fifth".
    """

    page: str
    sentence: str
    values: tuple[float | str, ...]


def row(page: str, sentence: str, *values: float | str) -> Row:
    return Row(page, sentence, values)


def default(function: Callable[..., Any], parameter: str) -> float:
    return float(inspect.signature(function).parameters[parameter].default)


def repeats(pattern: re.Pattern[str]) -> int:
    """The last upper bound in a regular expression."""
    return int(re.findall(r"\{\d+,(\d+)\}", pattern.pattern)[-1])


def written(value: float | str) -> str:
    """As the documentation writes a value: 10,000 and 8 and 0.5."""
    return value if isinstance(value, str) else f"{value:,.6f}".rstrip("0").rstrip(".")


def stated(text: str, sentence: str) -> set[tuple[str, ...]]:
    """What stands for each `{}` at every place of the text that reads like the sentence."""
    # `# ` is stripped from lines: a sentence in a comment of the unit may go on in the next one.
    pattern = re.escape(" ".join(sentence.split())).replace(r"\{\}", r"(\w+(?:[.,]\w+)*)")
    flat = " ".join(line.strip("# ") for line in text.splitlines())
    return {match.groups() for match in re.finditer(pattern, " ".join(flat.split()))}


LIMITS: Final = Limits()
SETTINGS_OF_API: Final = ApiSettings()
RATE: Final = LIMITS.tenant_requests
assert RATE is not None
SLOT_MINUTES: Final = SLOT_MS / 60_000
SLOTS_OF_ALL_DAYS: Final = DAYS_MAX * 86_400_000 / SLOT_MS
FUTURE_MINUTES: Final = FUTURE_TOLERANCE_MS / 60_000
FIRST_YEAR: Final = str(datetime.fromtimestamp(EARLIEST_MS / 1000, UTC).year)
HOUR: Final = f"{HOUR_OF_DAY:02}"
COMMIT_SECONDS: Final = default(GroupCommit, "timeout")
KEYS_HELD_HOURS: Final = default(KeySet, "stale_limit") / 3600
SNAPSHOT_SECONDS: Final = default(Refresher, "max_age")
BODY_VALUES: Final = LIMITS.events_per_request * VALUES_AN_EVENT
FLEET: Final = demo_fleet()
TENANTS: Final = {agent.tenant_id for agent in FLEET.agents}

COUNTING: Final = "docs/counting.md"
OPERATIONS: Final = "docs/operations.md"
UNIT: Final = "docs/agentidp-analytics.service"
EVENTS: Final = "docs/events.md"
CONFIGURATION: Final = "docs/configuration.md"
ATTACKS: Final = "docs/attacks.md"

ROWS: Final = [
    row(COUNTING, "issued and failed for each {}-minute slot", SLOT_MINUTES),
    row(COUNTING, "a stretch of writing of up to {} s;", MAX_OPEN_SECONDS),
    row(COUNTING, "recount, {} s after its segment began", PAUSE_SECONDS),
    row(COUNTING, "what its slots cost, {} in {} days", SLOTS_OF_ALL_DAYS, DAYS_MAX),
    row(COUNTING, "for at least the {} s in which it may still land", INSERT_SECONDS),
    row(COUNTING, "under load for {} ms more", LINGER_SECONDS * 1000),
    row(COUNTING, "are taken over when they are {} s old", ORPHAN_AFTER_SECONDS),
    row(COUNTING, "It waits, for {} minutes at most", _FOREIGN_SECONDS / 60),
    row(COUNTING, "An insert that ends {} s or more after its segment opened", REMARK_AFTER_SECONDS),
    row(UNIT, "A drain takes {} s, the last commit up to {} s.", SETTINGS_OF_API.drain_seconds, COMMIT_SECONDS),
    row(OPERATIONS, "lets bodies of {} MB through", LIMITS.body_bytes / 1e6),
    row(OPERATIONS, "(a commit may take {})", COMMIT_SECONDS),
    row(OPERATIONS, "the service itself refuses more than {} bytes", LIMITS.body_bytes),
    row(OPERATIONS, "closes idle upstream connections before {} s", SETTINGS_OF_API.keepalive_seconds),
    row(OPERATIONS, "One statement may take {} GiB", int(SETTINGS["max_memory_usage"]) / 1024**3),
    row(OPERATIONS, "a clock more than {} s from this machine's", CLOCK_SECONDS),
    row(OPERATIONS, "waits {} s until every process has followed (they look every {} s", GRACE_SECONDS, FOLLOW_SECONDS),
    row(OPERATIONS, "Recounts take at most a {} of the time", {5: "fifth"}[round(1 / _DUTY)]),
    row(OPERATIONS, "Events from {} minutes ahead on are refused", FUTURE_MINUTES),
    row(OPERATIONS, "every night at {}:00 UTC", HOUR),
    row(OPERATIONS, "by itself at {}:00 UTC", HOUR),
    row(OPERATIONS, "With fewer than {}, `days={}` shows zeros", DAYS_MAX, DAYS_MAX),
    row(OPERATIONS, "its keys are used for up to {} hours", KEYS_HELD_HOURS),
    row(OPERATIONS, "After {} minutes `/readyz` says 503", _STUCK_SECONDS / 60),
    row(OPERATIONS, "shows the last snapshot for {} s", SNAPSHOT_SECONDS),
    row(EVENTS, "one below {} characters is warned of", MIN_SECRET_LENGTH),
    row(EVENTS, "A secret has at least {},", MIN_SECRET_LENGTH),
    row(EVENTS, "string, 1 to {} characters", MAX_ID_LENGTH),
    row(EVENTS, "1 to {} of `A-Za-z0-9._:-`", repeats(_TENANT_ID) + 1),
    row(EVENTS, "milliseconds (from {} on)", _MILLISECONDS_FROM),
    row(EVENTS, "at most {} minutes in the future, not before {}.", FUTURE_MINUTES, FIRST_YEAR),
    row(EVENTS, "cut after {} characters", MAX_TEXT_LENGTH),
    row(EVENTS, "`t` may be {} minutes off", WINDOW_SECONDS / 60),
    row(EVENTS, "Up to {} `v1=` are compared", WORDS[repeats(_FORM)]),
    row(EVENTS, "The list ends after {} entries", MAX_REASONS),
    row(EVENTS, "a number of more than {} digits, a line with more than {} values", _MAX_DIGITS, MAX_VALUES_A_LINE),
    row(EVENTS, "nested deeper than {} levels", MAX_DEPTH),
    row(CONFIGURATION, "{} seconds' worth may come at once", WORDS[round(RATE.burst / RATE.per_second)]),
    row(CONFIGURATION, "at {}:00 UTC, remove", HOUR),
    row(
        CONFIGURATION,
        "events in a request; values (commas), objects and arrays in its JSON | {}; {}, {} |",
        LIMITS.events_per_request,
        BODY_VALUES,
        BODY_VALUES // _VALUES_A_CONTAINER,
    ),
    row(
        CONFIGURATION,
        "a line of NDJSON; values, objects and arrays in it | {} bytes; {}, {} |",
        MAX_LINE_BYTES,
        MAX_VALUES_A_LINE,
        MAX_VALUES_A_LINE // _VALUES_A_CONTAINER,
    ),
    row(CONFIGURATION, "reasons in an answer to ingest; agents in one answer | {}; {} |", MAX_REASONS, AGENTS_MAX),
    row(
        CONFIGURATION,
        "time to send a body; for the store to take it | {} s; {} s, then 503 |",
        SETTINGS_OF_API.body_seconds,
        COMMIT_SECONDS,
    ),
    row(
        CONFIGURATION,
        "all bodies in memory; events waiting for the store | {} bytes; {} |",
        LIMITS.body_bytes_in_flight,
        default(GroupCommit, "max_waiting"),
    ),
    row(
        CONFIGURATION,
        "request line, one header; all headers | {} KiB; {} KiB |",
        _MAX_LINE_BYTES / 1024,
        _MAX_HEADER_BYTES / 1024,
    ),
    row(CONFIGURATION, "waiting beyond that | half of the processors; {} |", LIMITS.tenant_queries_waiting),
    row(CONFIGURATION, "scrapes at once | {} |", _MAX_SCRAPES),
    row(CONFIGURATION, "snapshot served by the exporter | at most {} s old", SNAPSHOT_SECONDS),
    row(CONFIGURATION, "tokens of the last N days ({}; 1 to {})", DAYS_DEFAULT, DAYS_MAX),
    row(CONFIGURATION, "N at most ({}; 1 to {})", AGENTS_MAX, AGENTS_MAX),
    row(CONFIGURATION, "the caller's own if it is 1 to {} of `A-Za-z0-9._-`", repeats(_SAFE)),
    row(CONFIGURATION, "with two times, agents or outcomes, at most {} |", MAX_CONFLICTS),
    row(ATTACKS, "a token of more than {} KiB", MAX_TOKEN_LENGTH / 1024),
    row(ATTACKS, "the keys held stay in use for up to {} hours", KEYS_HELD_HOURS),
    row("SECURITY.md", "at any time since {}, for any agent", FIRST_YEAR),
    row("SECURITY.md", "replay a signed request within {} minutes", WINDOW_SECONDS / 60),
    row("SECURITY.md", "kept only if it is 1 to {} of `A-Za-z0-9._-`", repeats(_SAFE)),
    row("SECURITY.md", "when it is first seen, at most every {} s;", default(KeySet, "min_gap")),
    row(
        "SECURITY.md",
        "a withdrawn key is gone within {} minutes, or {} hours while the issuer cannot be reached",
        default(KeySet, "ttl") / 60,
        KEYS_HELD_HOURS,
    ),
    row("docs/alerts.md", "its figures are older than {} minutes", SNAPSHOT_SECONDS / 60),
    row("README.md", "It serves {} days of made-up events of {} tenants", DAYS, WORDS[len(TENANTS)]),
    row("README.md", "`org-umbrella` has been silent for {} days", WORDS[FLEET.silent_for_days]),
    row("README.md", "for each (tenant, {} minutes)", SLOT_MINUTES),
    row("README.md", "costs what {} days of slots cost", DAYS_MAX),
    row("README.md", "reads the rollups every {} s", default(Refresher, "interval")),
    row("README.md", "answers reach back {} days", DAYS_MAX),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.page}: {row.sentence[:50]}")
def test_a_number_in_the_documentation_is_that_of_the_program(row: Row) -> None:
    expected = tuple(map(written, row.values))
    assert stated((ROOT / row.page).read_text(), row.sentence) == {expected}


def test_what_the_unit_waits_for_a_stop_is_enough() -> None:
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", (ROOT / UNIT).read_text(), re.MULTILINE)
    assert int(seconds) > SETTINGS_OF_API.drain_seconds + COMMIT_SECONDS
