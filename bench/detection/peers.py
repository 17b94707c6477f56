"""Rules that others publish, as they publish them, on the totals of tenants: what ours are compared to.

- A day with more than twice the tokens of the day before (UTC), raised as soon as the day's total has passed that.
- Grafana's promql-anomaly-detection, rules/adaptive.yml: tokens outside of bands around the last hour's average, for 5
  minutes. Bands: 2 standard deviations of an hour, of those above half of its average, averaged over 26 hours; half of
  the average; and average and deviations of an hour around this time a day and a week ago.
- GitLab's runbooks, service_ops_anomaly_detection.yml: more than 3 standard deviations of a week from the median of
  what the last three weeks had in the four hours around this time, plus growth, for 5 minutes.

Grafana's file means to leave out sparse series, but its last selector takes them in again: here they are in, as they
are when it runs. A sample is a bin, and two bins in a row are `for: 5m`. Both rules look at both sides: above is
`spike`, below is `silence`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from bench.detection.alarm import Alarm
from bench.detection.traces import BIN_SECONDS, Trace

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

HOUR: Final = 3600 // BIN_SECONDS
DAY: Final = 24 * HOUR
WEEK: Final = 7 * DAY
SEVERITY: Final = "page"
_MULTIPLIER: Final = 2.0
_MARGIN: Final = 0.5
_VARIABLE_ABOVE: Final = 0.5
_LOOK_AHEAD: Final = HOUR // 2
_Z: Final = 3.0

Rule = Callable[[str, Integers, int], list[Alarm]]


def peers_alarms(trace: Trace) -> dict[str, list[Alarm]]:
    """What each rule raises on a trace, by its name."""
    found: dict[str, list[Alarm]] = {name: [] for name in RULES}
    for tenant, counts in trace.totals():
        for name, rule in RULES.items():
            found[name] += rule(tenant, counts, trace.first)
    return found


def doubled_day(tenant: str, counts: Integers, first: int) -> list[Alarm]:
    """From the bin in which the day's total passes twice the day before, to the end of the day."""
    before = first % 86_400 // BIN_SECONDS
    padded = np.concatenate([np.zeros(before, dtype=np.int64), counts])
    padded = np.concatenate([padded, np.zeros(-len(padded) % DAY, dtype=np.int64)])
    so_far = padded.reshape(-1, DAY).cumsum(axis=1)
    midnight = first - before * BIN_SECONDS
    alarms = []
    for day in range(1, len(so_far)):
        yesterday = so_far[day - 1, -1]
        if yesterday > 0 and so_far[day, -1] > 2 * yesterday:
            passed = int(np.argmax(so_far[day] > 2 * yesterday))
            start = midnight + (day * DAY + passed) * BIN_SECONDS
            alarms.append(Alarm(tenant, "", "spike", SEVERITY, start, midnight + (day + 1) * 86_400))
    return alarms


def grafana_bands(tenant: str, counts: Integers, first: int) -> list[Alarm]:
    """Adaptive bands, with the defaults of the file. Only what is above 0 is a sample."""
    level = np.where(counts > 0, counts, np.nan) / BIN_SECONDS
    average, deviation = rolling(level, HOUR)
    variable = np.where(deviation > _VARIABLE_ABOVE * average, deviation, np.nan)
    short, _ = rolling(variable, 26 * HOUR)
    above, below = average + _MULTIPLIER * deviation, average - _MULTIPLIER * deviation
    back = (WEEK - _LOOK_AHEAD, DAY - _LOOK_AHEAD)
    upper = _highest(
        average + _MULTIPLIER * short, average * (1 + _MARGIN), *(delayed(above, offset) for offset in back)
    )
    lower = -_highest(
        _MULTIPLIER * short - average, average * (_MARGIN - 1), *(-delayed(below, offset) for offset in back)
    )
    with np.errstate(invalid="ignore"):
        return _raised(tenant, first, level > upper, level < np.maximum(lower, 0.0))


def gitlab_z(tenant: str, counts: Integers, first: int) -> list[Alarm]:
    """|z| > 3 against three weeks; silent until there is a week's deviation and one of the weeks to look back at."""
    level = counts / BIN_SECONDS
    week, deviation = rolling(level, WEEK)
    around, _ = rolling(level, 4 * HOUR)
    # A window that has not been filled yet is no week and no four hours.
    week[: WEEK - 1] = deviation[: WEEK - 1] = around[: 4 * HOUR - 1] = np.nan
    guesses = [delayed(around, weeks * WEEK - 2 * HOUR) + week - delayed(week, weeks * WEEK) for weeks in (1, 2, 3)]
    known = ~np.isnan(guesses).all(axis=0)
    predicted = np.full(len(level), np.nan)
    predicted[known] = np.nanmedian(np.array(guesses)[:, known], axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (level - predicted) / deviation
        return _raised(tenant, first, (z > _Z) & (deviation > 0), (z < -_Z) & (deviation > 0))


RULES: Final[dict[str, Rule]] = {"doubled day": doubled_day, "Grafana bands": grafana_bands, "GitLab z": gitlab_z}


def rolling(values: Floats, window: int) -> tuple[Floats, Floats]:
    """(average, standard deviation) of the samples among the last `window` values; NaN is no sample."""
    present = ~np.isnan(values)
    filled = np.where(present, values, 0.0)
    samples, total, squares = (_sums(part, window) for part in (present.astype(float), filled, filled * filled))
    with np.errstate(invalid="ignore", divide="ignore"):
        average = total / samples
        deviation = np.sqrt(np.maximum(squares / samples - average * average, 0.0))
    average[samples == 0] = deviation[samples == 0] = np.nan
    return average, deviation


def _sums(values: Floats, window: int) -> Floats:
    total = np.concatenate([[0.0], values.cumsum()])
    ends = np.arange(1, len(total))
    sums: Floats = total[ends] - total[np.maximum(ends - window, 0)]
    return sums


def delayed(values: Floats, bins: int) -> Floats:
    """What it was so many bins before; NaN where that is before the trace."""
    return np.concatenate([np.full(min(bins, len(values)), np.nan), values[: max(len(values) - bins, 0)]])


def _highest(*bands: Floats) -> Floats:
    highest: Floats = np.fmax.reduce(bands)
    return highest


def _raised(tenant: str, first: int, above: Booleans, below: Booleans) -> list[Alarm]:
    """One alarm for each run of two or more bins outside, whichever the side; raised by the second one."""
    outside = np.concatenate([[False], above | below, [False]])
    turns = np.flatnonzero(outside[1:] != outside[:-1])
    return [
        Alarm(
            tenant,
            "",
            "spike" if above[begins + 1] else "silence",
            SEVERITY,
            first + (begins + 1) * BIN_SECONDS,
            first + ends * BIN_SECONDS,
        )
        for begins, ends in zip(turns[::2].tolist(), turns[1::2].tolist(), strict=True)
        if ends - begins >= 2
    ]
