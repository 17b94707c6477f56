"""When agents ask for tokens: for each kind, the share of its tokens that falls into each bin of a trace."""

from __future__ import annotations

from typing import Final

import numpy as np

from bench.detection.local_time import BINS, BINS_A_DAY, BINS_AN_HOUR, Booleans, Floats, LocalTime

KINDS: Final = ("office", "service", "ci", "daily", "weekly", "monthly")
SHARES: Final = (0.36, 0.32, 0.12, 0.11, 0.07, 0.02)
_JOB_BINS: Final = 6  # a build, and the noise's grid: half an hour


def shape(kind: str, clock: LocalTime, off: Booleans, opens: float, pick: np.random.Generator) -> Floats:
    """Expected tokens of each bin, 1 on average. `off`: weekends and holidays; `opens`: the hour people come to work.

    0 everywhere for a batch that has no run within the trace.
    """
    form = {"office": _office, "service": _service, "ci": _builds}.get(kind)
    bins: Floats = form(clock, off, opens, pick) if form else _batch(kind, clock, off, pick)
    mean = float(bins.mean())
    return bins / (mean or 1.0)


def _office(clock: LocalTime, off: Booleans, opens: float, pick: np.random.Generator) -> Floats:
    """Full while people work, less at lunch, nearly nothing at night."""
    closes, slope = opens + pick.normal(8.5, 0.5), pick.uniform(0.4, 0.8)
    present: Floats = 1 / (1 + np.exp(-(clock.hour - opens) / slope)) / (1 + np.exp((clock.hour - closes) / slope))
    lunch: Floats = 1 - pick.uniform(0.1, 0.4) * np.exp(-0.5 * ((clock.hour - opens - 3.5) / 0.7) ** 2)
    return (present * lunch + pick.uniform(0.005, 0.05)) * np.where(off, pick.uniform(0.02, 0.25), 1.0)


def _service(clock: LocalTime, off: Booleans, opens: float, pick: np.random.Generator) -> Floats:
    """All day and all week, a wave that follows its users."""
    wave = 1 + pick.uniform(0, 0.35) * np.cos((clock.hour - opens - 5) / 24 * 2 * np.pi)
    return wave * np.where(off, pick.uniform(0.7, 1.0), 1.0)


def _builds(clock: LocalTime, off: Booleans, opens: float, pick: np.random.Generator) -> Floats:
    """Builds of half an hour, of very different sizes, mostly in working hours."""
    slots = BINS // _JOB_BINS
    running = pick.random(slots) < pick.uniform(0.08, 0.3)
    sizes = np.repeat(np.where(running, pick.exponential(1.0, slots), 0.0), _JOB_BINS)
    working = np.exp(-0.5 * ((clock.hour - opens - 4) / 3.2) ** 2) + 0.01
    return sizes * working * np.where(off, 0.08, 1.0)


def _batch(kind: str, clock: LocalTime, off: Booleans, pick: np.random.Generator) -> Floats:
    """A run of 5 to 40 minutes at its time of the day, in a third of the runs one bin early or late."""
    at, length = int(pick.integers(BINS_A_DAY - BINS_AN_HOUR)), int(pick.integers(1, 9))
    weekday, month_day = int(pick.integers(7)), int(pick.choice([1, 1, 1, 15, 28]))
    rests = pick.random() < 0.4
    bin_of_day = np.floor(clock.hour * BINS_AN_HOUR).astype(int)
    bins = np.zeros(BINS)
    for day in np.unique(clock.day).tolist():
        today = np.flatnonzero(clock.day == day)
        late = int(pick.integers(-1, 2)) if pick.random() < 0.3 else 0
        size = float(pick.lognormal(0, 0.25))
        if (
            (kind == "daily" and rests and off[today].all())
            or (kind == "weekly" and int(clock.weekday[today[0]]) != weekday)
            or (kind == "monthly" and int(clock.month_day[today[0]]) != month_day)
        ):
            continue
        begins = at + late
        bins[today[(bin_of_day[today] >= begins) & (bin_of_day[today] < begins + length)]] = size
    return bins


def drift(pick: np.random.Generator) -> Floats:
    """A factor around 1 that wanders: log-AR(1) with a memory of one to five hours."""
    memory, spread = pick.uniform(12, 60), pick.uniform(0.05, 0.3)
    points = BINS // _JOB_BINS + 2
    keeps = float(np.exp(-_JOB_BINS / memory))
    level, levels = 0.0, []
    for shock in (pick.standard_normal(points) * spread * np.sqrt(1 - keeps * keeps)).tolist():
        level = keeps * level + shock
        levels.append(level)
    wandering: Floats = np.exp(np.interp(np.arange(BINS), np.arange(points) * _JOB_BINS, levels))
    return wandering
