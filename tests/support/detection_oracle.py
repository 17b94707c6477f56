"""The detector's history in plain Python, from the events alone: what each of its tables has to hold."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final, NamedTuple

from clickhouse.event import Event

BIN: Final = 300
HOUR: Final = 3600
DAY: Final = 86_400

Agent = tuple[str, str]


class HourOf(NamedTuple):
    """The measured columns of agent_hour."""

    issued: int = 0
    failed: int = 0
    bins: int = 0
    top_1: int = 0
    second_3: int = 0
    sum_3: int = 0
    rest_6: int = 0
    rest_12: int = 0


class Silence(NamedTuple):
    """The measured columns of tenant_hour."""

    issued: int
    filled: int
    silent: int


class Counted:
    """Every identity once, under the smallest content, in five-minute bins."""

    def __init__(self, events: Iterable[Event]) -> None:
        contents: dict[tuple[str, int, str], Any] = {}
        for event in events:
            identity = (event.tenant_id, event.issued_at, event.event_id)
            is_failure = event.outcome == "failure"
            content = (is_failure, event.agent_id, event.scope, event.client_ip, event.expires_in)
            contents[identity] = min(contents.get(identity, content), content)
        self.bins: dict[Agent, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self.failed: dict[Agent, dict[int, int]] = defaultdict(lambda: defaultdict(int))  # by quarter of an hour
        self._chains: dict[tuple[str, str, str, str], list[tuple[int, int]]] = defaultdict(list)
        for (tenant, at, _), (is_failure, agent, scope, address, lifetime) in contents.items():
            if is_failure:
                self.failed[tenant, agent][at // 900_000 * 900] += 1
                continue
            self.bins[tenant, agent][at // 300_000 * 300] += 1
            if lifetime:
                self._chains[tenant, agent, scope, address].append((at, lifetime))

    def slots(self) -> dict[tuple[str, str, int], tuple[int, int, int, int]]:
        """(tenant, agent, slot) -> issued, failed, of the minutes 5 to 9, of 10 to 14."""
        found: dict[tuple[str, str, int], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        for (tenant, agent), bins in self.bins.items():
            for start, count in bins.items():
                row = found[tenant, agent, start // 900 * 900]
                row[0] += count
                if place := start % 900 // 300:
                    row[1 + place] += count
        for (tenant, agent), quarters in self.failed.items():
            for start, count in quarters.items():
                found[tenant, agent, start][1] += count
        return {key: (a, b, c, d) for key, (a, b, c, d) in found.items()}

    def agent_hours(self, until: int) -> dict[tuple[str, str, int], HourOf]:
        """Of every hour before `until` in which there is anything to tell."""
        found = {}
        for tenant, agent in {*self.bins, *self.failed}:
            bins, failed = self.bins[tenant, agent], self.failed[tenant, agent]
            touched = {start // HOUR * HOUR + later for start in (*bins, *failed) for later in (0, HOUR)}
            for hour in touched:
                line = [bins.get(hour + BIN * place, 0) for place in range(-11, 12)]
                row = HourOf(
                    issued=sum(line[11:]),
                    failed=sum(failed.get(hour + 900 * quarter, 0) for quarter in range(4)),
                    bins=sum(1 for count in line[11:] if count),
                    top_1=max(line[11:]),
                    second_3=max(sorted(line[end - 2 : end + 1])[1] for end in range(11, 23)),
                    sum_3=max(sum(line[end - 2 : end + 1]) for end in range(11, 23)),
                    rest_6=max(_rest(line[end - 5 : end + 1]) for end in range(11, 23)),
                    rest_12=max(_rest(line[end - 11 : end + 1]) for end in range(11, 23)),
                )
                if hour < until and any(row):
                    found[tenant, agent, hour] = row
        return found

    def tenant_hours(self, since: int, until: int) -> dict[tuple[str, int], Silence]:
        """Of every hour in [since, until) from the tenant's first day on, empty ones too."""
        found = {}
        for tenant in {tenant for tenant, _ in (*self.bins, *self.failed)}:
            bins: dict[int, int] = defaultdict(int)
            for (owner, _), counts in self.bins.items():
                for start, count in counts.items():
                    bins[start] += count if owner == tenant else 0
            used = sorted(start for start, count in bins.items() if count)
            failed = [start for (owner, _), quarters in self.failed.items() if owner == tenant for start in quarters]
            first = min([*used, *failed]) // DAY * DAY
            for hour in range(max(since, first), until, HOUR):
                places = [hour + BIN * place for place in range(12)]
                silences = [
                    start + BIN - (max(before) + BIN)
                    for start in places
                    if not bins.get(start, 0) and (before := [one for one in used if one < start])
                ]
                filled = sum(1 << place for place, start in enumerate(places) if bins.get(start, 0))
                found[tenant, hour] = Silence(
                    sum(bins.get(start, 0) for start in places), filled, max(silences, default=0)
                )
        return found

    def agent_wastes(self, until: int) -> dict[tuple[str, str, int], tuple[int, int, int]]:
        """(tenant, agent, hour) -> wasted, most in a bin, most in a bin at one address."""
        at_once: dict[tuple[str, str, int], dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for (tenant, agent, _, address), chain in self._chains.items():
            chain.sort()
            for (before, lifetime), (at, _) in pairwise(chain):
                if at - before < min(500 * lifetime, HOUR * 1000):
                    at_once[tenant, agent, at // 300_000 * 300][address] += 1
        found: dict[tuple[str, str, int], tuple[int, int, int]] = {}
        for (tenant, agent, start), addresses in at_once.items():
            if start < until:
                key = (tenant, agent, start // HOUR * HOUR)
                wasted, most, most_at_once = found.get(key, (0, 0, 0))
                here = sum(addresses.values())
                found[key] = (wasted + here, max(most, here), max(most_at_once, *addresses.values()))
        return found


def spreads(hours: Mapping[tuple[str, str, int], HourOf], since: int, until: int) -> dict[Any, tuple[int, ...]]:
    """agent_spread of every hour in [since, until) in which there is anything to tell."""
    found: dict[Any, tuple[int, ...]] = {}
    for tenant, agent in {(tenant, agent) for tenant, agent, _ in hours}:
        for hour in range(since, until, HOUR):
            line = [hours.get((tenant, agent, hour - HOUR * ago), HourOf()) for ago in range(60)]
            nights = [row for ago, row in enumerate(line) if ago % 24 < 12]
            row = (
                sum(row.bins for row in line[:6]),
                sum(row.bins for row in nights),
                sum(row.issued for row in nights),
                sum(1 for row in nights if row.bins),
            )
            if any(row):
                found[tenant, agent, hour] = row
    return found


def habit(hours: Mapping[int, HourOf], wastes: Mapping[int, tuple[int, int, int]], day: int, age: int) -> list[float]:
    """agent_habit of an agent, from `days` on, as of the start of `day`."""
    days = [[row for hour, row in hours.items() if 0 < day - hour - ago * DAY <= DAY] for ago in range(60)]
    month = [row for of_day in days[:28] for row in of_day]
    mean = sum(row.issued for row in month) / (288 * min(28, age))
    failed = sum(row.failed for row in month)
    records: list[float] = []
    for window in ("top_1", "sum_3", "rest_12"):
        records += _best(max((getattr(row, window) for row in of_day), default=0) for of_day in days)
    for column in (1, 2):
        records += _best(
            max((row[column] for hour, row in wastes.items() if 0 < day - hour - ago * DAY <= DAY), default=0)
            for ago in range(60)
        )
    return [
        age,
        mean,
        sum(1 for of_day in days[:28] if any(row.issued for row in of_day)),
        1 - sum(1 for row in month if row.bins) / 672,
        records[5] / (11 * mean + 1),
        failed / max(1, sum(row.issued for row in month) + failed),
        *records,
    ]


def agent_norm(hours: Mapping[int, HourOf], hour: int, age: int) -> list[float]:
    """agent_norm of an agent in `hour`, from `mean` on."""
    date, of_day = hour // DAY * DAY, hour % DAY
    near = [(of_day + shift) % DAY for shift in (-HOUR, 0, HOUR)]
    days = [[hours.get(date - ago * DAY + at, HourOf()) for at in near] for ago in range(1, 61)]
    busiest = max(sum(of_day[place].issued for of_day in days[:28]) for place in range(3))
    found = [busiest / (12 * min(28, age))]
    for window in ("top_1", "second_3", "sum_3", "rest_6", "rest_12"):
        best = sorted((max(getattr(row, window) for row in of_day) for of_day in days), reverse=True)
        lived = best[: min(60, age)]
        found += [best[0], best[1], median(lived)]
    return found


def tenant_norm(hours: Mapping[int, Silence], days: Mapping[int, int], hour: int) -> list[float]:
    """tenant_norm of a tenant in `hour`, from `days` on. `days`: tokens by day (its start), without those of later."""
    date = hour // DAY * DAY
    age = (date - min(days)) // DAY
    drift = (sum(days.get(date - ago * DAY, 0) for ago in range(1, 8)) / 7 + 1) / (
        sum(days.get(date - ago * DAY, 0) for ago in range(1, 29)) / 28 + 1
    )
    drift = max(0.5, min(1.3, drift))
    alike, weeks, silences = 0, [], []
    used, tokens = [0, 0, 0], [0, 0, 0]
    for ago in range(1, 61):
        rows = [hours.get(hour - ago * DAY + near) for near in (-HOUR, 0, HOUR)]
        if not any(rows):
            continue
        if ago in (7, 14, 21, 28):
            weeks.append(sum(row.issued for row in rows if row) / 36)
        if is_weekend(hour - ago * DAY) == is_weekend(hour):
            silences.append(max(row.silent for row in rows if row))
            if ago <= 28:
                alike += 1
                used = [sum_ + (row.filled.bit_count() if row else 0) for sum_, row in zip(used, rows, strict=True)]
                tokens = [sum_ + (row.issued if row else 0) for sum_, row in zip(tokens, rows, strict=True)]
    alike = max(1, alike)
    ranked = sorted([*weeks, 0, 0, 0, 0][: max(4, len(weeks))], reverse=True)
    longest = sorted([*silences, 0, 0], reverse=True)
    surprise = min(*(-math.log(1 - each / (12 * alike + 1)) for each in used), drift * min(tokens) / (12 * alike))
    return [age, surprise, min(drift, 1.2) * ranked[2], drift * (ranked[1] + ranked[2]) / 2, longest[0], longest[1]]


def is_weekend(at: int) -> bool:
    return datetime.fromtimestamp(at, UTC).isoweekday() > 5


def median(values: Sequence[float]) -> float:
    """Of values in falling order."""
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def _rest(line: Sequence[int]) -> int:
    return sum(line) - max(line)


def _best(values: Iterable[float]) -> list[float]:
    return sorted(values, reverse=True)[:2]
