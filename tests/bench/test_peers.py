"""Others' rules on series whose answer can be told beforehand."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest

from bench.detection.peers import DAY, HOUR, WEEK, delayed, doubled_day, gitlab_z, grafana_bands, peers_alarms, rolling
from bench.detection.traces import BIN_SECONDS, Trace

MIDNIGHT = 20_000 * 86_400


def test_a_day_doubles_in_the_bin_that_passes_twice_the_day_before() -> None:
    counts = np.ones(3 * DAY, dtype=np.int64)
    counts[DAY + 100] += 2 * DAY  # 2 * DAY is passed there; the day after has less than it
    (alarm,) = doubled_day("a", counts, MIDNIGHT)
    assert (alarm.start, alarm.end) == (MIDNIGHT + (DAY + 100) * BIN_SECONDS, MIDNIGHT + 2 * 86_400)


def test_days_are_those_of_the_calendar() -> None:
    counts = np.ones(2 * DAY, dtype=np.int64)
    assert doubled_day("a", counts, MIDNIGHT) == []
    noon = MIDNIGHT + 86_400 // 2
    assert doubled_day("a", counts, noon) == []  # half a day, then exactly twice that
    counts[DAY] += 1
    (alarm,) = doubled_day("a", counts, noon)
    assert (alarm.start, alarm.end) == (MIDNIGHT + 2 * 86_400 - BIN_SECONDS, MIDNIGHT + 2 * 86_400)


def test_twice_is_not_more_than_twice_and_nothing_is_not_doubled() -> None:
    counts = np.ones(3 * DAY, dtype=np.int64)
    counts[DAY:] = 2
    assert doubled_day("a", counts, MIDNIGHT) == []
    counts[:DAY] = 0
    assert doubled_day("a", counts, MIDNIGHT) == []


def flat(bins: int, level: int = 300) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.full(bins, level, dtype=np.int64)


def test_bands_are_half_of_the_average_where_nothing_varies() -> None:
    counts = flat(2 * WEEK)
    at = WEEK + 1000
    counts[at : at + 3] = 2000
    alarms = grafana_bands("a", counts, 0)
    assert [(alarm.kind, alarm.start) for alarm in alarms] == [("spike", (at + 1) * BIN_SECONDS)]
    assert alarms[0].end <= (at + 3) * BIN_SECONDS
    counts = flat(2 * WEEK)
    counts[at] = 2000  # one bin alone is not `for: 5m`
    assert grafana_bands("a", counts, 0) == []


def test_bands_do_not_see_a_silence() -> None:
    counts = flat(2 * WEEK)
    counts[WEEK : WEEK + 2 * HOUR] = 0
    assert grafana_bands("a", counts, 0) == []
    counts[WEEK + 300 : WEEK + 303] = 10  # but a few tokens they do
    assert [alarm.kind for alarm in grafana_bands("a", counts, 0)] == ["silence"]


def naive_alarms(counts: list[int]) -> list[int]:
    """The bins that raise an alarm by Grafana's bands, window by window, as the file says it."""
    rates = [count / BIN_SECONDS for count in counts]
    hours = [[rate for rate in rates[max(0, at - HOUR + 1) : at + 1] if rate] for at in range(len(rates))]
    known = {at: (float(np.mean(hour)), float(np.std(hour))) for at, hour in enumerate(hours) if hour}
    raised, run = [], 0
    for at, rate in enumerate(rates):
        lower, upper = [], []
        if at in known:
            average = known[at][0]
            near = [known[one] for one in range(at - 26 * HOUR + 1, at + 1) if one in known]
            variable = [deviation for mean, deviation in near if deviation > 0.5 * mean]
            for width in [0.5 * average, *([2 * fmean(variable)] if variable else [])]:
                lower.append(average - width)
                upper.append(average + width)
        for back in (167 * HOUR + HOUR // 2, 23 * HOUR + HOUR // 2):
            if at - back in known:
                mean, deviation = known[at - back]
                lower.append(mean - 2 * deviation)
                upper.append(mean + 2 * deviation)
        outside = rate and (rate < max(0.0, min(lower)) or rate > max(upper))
        run = run + 1 if outside else 0
        if run == 2:
            raised.append(at)
    return raised


def test_bands_are_those_of_a_naive_reading() -> None:
    pick = np.random.default_rng(7)
    levels = np.repeat(40 * pick.lognormal(0, 1.5, 9 * 24), HOUR)  # every hour another one
    counts = pick.poisson(levels)
    counts[3 * DAY + 10 : 3 * DAY + 50] = 0
    raised = naive_alarms(counts.tolist())
    assert len(raised) > 10
    assert [alarm.start // BIN_SECONDS for alarm in grafana_bands("a", counts, 0)] == raised


def test_z_is_against_the_weeks_before() -> None:
    week = 300 + 100 * (np.arange(WEEK) % DAY > DAY // 2)
    counts = np.tile(week, 6)
    at = 5 * WEEK + 500
    counts[at : at + 4] += 1000
    alarms = gitlab_z("a", counts, 0)
    assert [(alarm.kind, alarm.start, alarm.end) for alarm in alarms] == [
        ("spike", (at + 1) * BIN_SECONDS, (at + 4) * BIN_SECONDS)
    ]


def test_z_expects_what_the_weeks_had_around_this_time() -> None:
    counts = np.tile(300 + 1000 * (np.arange(WEEK) < DAY // 2), 8)
    alarms = gitlab_z("a", counts, 0)
    assert [alarm for alarm in alarms if alarm.start > 4 * WEEK * BIN_SECONDS] == []
    counts[5 * WEEK : 5 * WEEK + DAY // 2] = 300  # and misses it when it does not come
    assert {alarm.kind for alarm in gitlab_z("a", counts, 0) if alarm.start < 6 * WEEK * BIN_SECONDS} == {"silence"}


def test_z_is_nothing_without_weeks_or_deviation() -> None:
    assert gitlab_z("a", flat(WEEK), 0) == []
    assert gitlab_z("a", flat(6 * WEEK), 0) == []
    assert gitlab_z("a", flat(10), 0) == []


def test_rolling_takes_the_samples_there_are() -> None:
    values = np.array([1.0, np.nan, 3.0, np.nan, np.nan, np.nan])
    average, deviation = rolling(values, 3)
    assert average.tolist()[:5] == [1.0, 1.0, 2.0, 3.0, 3.0]
    assert deviation.tolist()[:5] == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert np.isnan([average[5], deviation[5]]).all()


@pytest.mark.parametrize("bins", [0, 2, 3, 9])
def test_delayed_keeps_the_length(bins: int) -> None:
    values = delayed(np.array([1.0, 2.0, 3.0]), bins)
    assert len(values) == 3
    assert values[bins:].tolist() == [1.0, 2.0, 3.0][: max(0, 3 - bins)]


def test_every_rule_runs_on_every_tenant() -> None:
    bins = np.arange(2 * DAY, dtype=np.int64)
    count = np.ones(2 * DAY, dtype=np.int64)
    count[DAY] = 3 * DAY
    trace = Trace([("a", "x")], np.zeros(2 * DAY, dtype=np.int32), MIDNIGHT + bins * BIN_SECONDS, count)
    assert {name: len(alarms) for name, alarms in peers_alarms(trace).items()} == {
        "doubled day": 1,
        "Grafana bands": 0,
        "GitLab z": 0,
    }
