"""Made-up traces: the same for the same seed, in the format that is documented, and as their labels say."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter, defaultdict
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from bench.detection.events_file import Caches
from bench.detection.generate import EVENTS_FILE, Made, generate, parse_seeds
from bench.detection.identity import LIFETIMES
from bench.detection.label import AGENTS_FILE, LABELS_FILE, Label, read_agents, read_labels
from bench.detection.local_time import BINS, DAYS, START, ZONES, local_time
from bench.detection.traces import BIN_SECONDS, COLUMNS, COUNTS_FILE, open_events, read_counts
from clickhouse.event import parse_event

SEEDS = (16, 20, 25, 32, 34, 37)  # small tenants, all kinds of events; one of them sends no optional field
KINDS = {"retry", "leak", "weekend", "silence", "leak_network", "leak_inside", "failures"}
FILES = (COUNTS_FILE, LABELS_FILE, AGENTS_FILE, EVENTS_FILE)
Key = tuple[str, str, int]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace")
    generate(SEEDS, path, fields=True)
    return path


@pytest.fixture(scope="module")
def labels(directory: Path) -> list[Label]:
    return read_labels(directory / LABELS_FILE)


@pytest.fixture(scope="module")
def events(directory: Path) -> list[dict[str, Any]]:
    with open_events(directory / EVENTS_FILE) as file:
        return [json.loads(line) for line in file]


def counts_of(path: Path) -> dict[Key, int]:
    with gzip.open(path, "rt") as file:
        return {
            (row["tenant_id"], row["agent_id"], int(row["bin_start"])): int(row["count"])
            for row in csv.DictReader(file)
        }


def test_the_same_seeds_are_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    generate(SEEDS, tmp_path, fields=True)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (directory / name).read_bytes(), name


def test_a_seed_is_the_same_tenant_beside_others(directory: Path, tmp_path: Path) -> None:
    generate([SEEDS[2]], tmp_path, fields=True)
    tenant = f"org-{SEEDS[2]}"
    alone = counts_of(tmp_path / COUNTS_FILE)
    assert alone == {key: count for key, count in counts_of(directory / COUNTS_FILE).items() if key[0] == tenant}
    assert {tenant for tenant, _, _ in alone} == {tenant}


def test_the_files_have_their_columns(directory: Path) -> None:
    with gzip.open(directory / COUNTS_FILE, "rt") as file:
        assert file.readline() == f"{COLUMNS}\n"
    assert (directory / LABELS_FILE).read_text().partition("\n")[0] == (
        "tenant_id,agent_id,kind,start,end,multiplier,expected,extra,first10"
    )
    assert (directory / AGENTS_FILE).read_text().partition("\n")[0] == "tenant_id,agent_id,kind,network"
    trace = read_counts(directory / COUNTS_FILE)
    assert trace.count.min() >= 1
    assert not (trace.start % BIN_SECONDS).any()
    assert START <= trace.first <= trace.end <= START + BINS * BIN_SECONDS
    assert set(trace.agents) <= read_agents(directory / AGENTS_FILE).keys()


def test_labels_are_what_the_counts_have_more(directory: Path, labels: list[Label]) -> None:
    """The counts minus those of the same tenants without events are the labels', bin by bin where a label ends."""
    found = counts_of(directory / COUNTS_FILE)
    assert {label.kind for label in labels} == KINDS
    usual: dict[Key, int] = {}
    for seed in SEEDS:
        for agent in (tenant := Made(seed, fields=False, incidents=False).tenant).agents:
            for bin_number in np.flatnonzero(agent.counts).tolist():
                usual[tenant.name, agent.name, START + bin_number * BIN_SECONDS] = int(agent.counts[bin_number])
    more = {key: found.get(key, 0) - usual.get(key, 0) for key in found.keys() | usual.keys()}
    covered: set[Key] = set()
    for label in labels:
        if label.kind == "failures":
            continue
        within = {
            key
            for key in more
            if key[0] == label.tenant and label.agent in ("", key[1]) and label.start <= key[2] < label.end
        }
        assert sum(more[key] for key in within) == label.extra, label
        if label.agent:
            assert sum(more[key] for key in within if key[2] < label.start + 600) == label.first10, label
        covered |= within
    assert not any(more[key] for key in more.keys() - covered)


def test_without_fields_the_counts_are_the_same_but_for_misuse(
    directory: Path, labels: list[Label], tmp_path: Path
) -> None:
    generate(SEEDS, tmp_path, fields=False)
    assert not (tmp_path / EVENTS_FILE).exists()
    plain = read_labels(tmp_path / LABELS_FILE)
    assert {label.kind for label in plain} <= {"retry", "leak", "weekend", "silence"}
    assert [label for label in labels if label.kind in {"retry", "leak", "weekend", "silence"}] == plain
    more = counts_of(directory / COUNTS_FILE).items() - counts_of(tmp_path / COUNTS_FILE).items()
    misused = [label for label in labels if label.kind in {"leak_network", "leak_inside"}]
    for (tenant, agent, start), _ in more:
        assert any((one.tenant, one.agent) == (tenant, agent) and one.start <= start < one.end for one in misused)


def test_events_of_a_tenant_lie_a_day_apart(labels: list[Label]) -> None:
    for seed in SEEDS:
        mine = sorted((label for label in labels if label.tenant == f"org-{seed}"), key=lambda label: label.start)
        for first, second in pairwise(mine):
            assert second.start - first.end >= 86_400 - BIN_SECONDS


def test_the_events_are_in_order_and_are_the_counts(directory: Path, events: list[dict[str, Any]]) -> None:
    moments = [event["issued_at"] for event in events]
    assert moments == sorted(moments)
    assert len({(event["tenant_id"], event["event_id"]) for event in events}) == len(events)
    counted = Counter(
        (event["tenant_id"], event["agent_id"], event["issued_at"] // 1000 // BIN_SECONDS * BIN_SECONDS)
        for event in events
        if event["outcome"] == "success"
    )
    assert counted == counts_of(directory / COUNTS_FILE)


def test_the_events_are_events(events: list[dict[str, Any]]) -> None:
    for event in events[:: len(events) // 500]:
        parse_event(event, (START + DAYS * 86_400) * 1000)
    optional = {"grant_type", "scope", "client_ip", "user_agent", "expires_in"}
    of_tenant: dict[str, set[str]] = defaultdict(set)
    for event in events:
        of_tenant[event["tenant_id"]] |= event.keys() & optional
    assert sorted(map(len, of_tenant.values())) == [0, 5, 5, 5, 5, 5]
    assert {event["expires_in"] for event in events if "expires_in" in event} <= set(LIFETIMES)
    assert not any("expires_in" in event for event in events if event["outcome"] == "failure")


def test_storms_are_in_the_events(events: list[dict[str, Any]], labels: list[Label]) -> None:
    storms = [label for label in labels if label.kind == "failures"]
    refused = [event for event in events if event["outcome"] == "failure"]
    for storm in storms:
        mine = [
            event
            for event in refused
            if (event["tenant_id"], event["agent_id"]) == (storm.tenant, storm.agent)
            and storm.start * 1000 <= event["issued_at"] < storm.end * 1000
        ]
        assert storm.extra <= len(mine) <= storm.extra + 5  # a few are refused at any time
    assert storms
    assert len(refused) > sum(storm.extra for storm in storms)


def test_leaks_come_from_a_network_that_the_agent_never_had(events: list[dict[str, Any]], labels: list[Label]) -> None:
    leaks = [label for label in labels if label.kind == "leak_network"]
    compared = 0
    for leak in leaks:
        mine = [event for event in events if event["agent_id"] == leak.agent and "client_ip" in event]
        during = {e["client_ip"] for e in mine if leak.start * 1000 <= e["issued_at"] < leak.end * 1000}
        before = {e["client_ip"].rpartition(".")[0] for e in mine if e["issued_at"] < leak.start * 1000}
        if mine:
            assert any(address.rpartition(".")[0] not in before for address in during), leak
            compared += 1
    assert compared


def test_clocks_change_with_summer_time() -> None:
    for zone in ZONES:
        clock = local_time(zone)
        for number in range(0, BINS, 997):
            local = datetime.fromtimestamp(START + number * BIN_SECONDS, ZoneInfo(zone))
            assert clock.hour[number] == pytest.approx(local.hour + local.minute / 60)
            assert (clock.weekday[number], clock.month_day[number]) == (local.weekday(), local.day)


def test_a_cache_asks_again_when_its_token_is_due() -> None:
    identity = next(one for one in Made(SEEDS[1], fields=True).identities if one.caching)
    identity.lifetime, identity.replicas = 100, 3
    asked = {
        0: 0,
        1_000: 1,  # the first one's token is young: one more
        79_000: 2,
        80_000: 0,  # due
        80_500: 1,  # not due, but there is no other one
        600_000: 0,  # all have gone, and come back
        601_000: 1,
    }
    assert Caches(identity).askers(asked, [0.8] * len(asked)) == list(asked.values())


def test_seeds_are_a_range() -> None:
    assert list(parse_seeds("3-5")) == [3, 4, 5]
    assert list(parse_seeds("7")) == [7]
