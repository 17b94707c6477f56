"""The 90 days of a trace, and what the clocks on the wall of a tenant say in them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from bench.detection.traces import BIN_SECONDS

START: Final = 1_787_616_000  # 2026-08-25 00:00 UTC, a Tuesday
FIRST_DAY: Final = date(2026, 8, 25)
DAYS: Final = 90  # the clocks change on 25 October in the EU and on 1 November in the US
BINS_AN_HOUR: Final = 3600 // BIN_SECONDS
BINS_A_DAY: Final = 24 * BINS_AN_HOUR
BINS: Final = DAYS * BINS_A_DAY
ZONES: Final = (
    "America/Los_Angeles",
    "America/Chicago",
    "America/New_York",
    "America/New_York",
    "America/Sao_Paulo",
    "Europe/London",
    "Europe/Berlin",
    "Europe/Berlin",
    "Europe/Helsinki",
    "Asia/Kolkata",
    "Asia/Singapore",
    "Asia/Tokyo",
)

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LocalTime:
    """For each bin: hour of the day (0 to 24), day (0 is FIRST_DAY, -1 the one before), weekday (Monday 0) and day of
    the month.
    """

    hour: Floats
    day: Integers
    weekday: Integers
    month_day: Integers

    @property
    def weekend(self) -> Booleans:
        """Saturday or Sunday."""
        return self.weekday >= 5


def local_time(zone: str) -> LocalTime:
    """The clock of an IANA zone, its changes to and from summer time included."""
    clock = ZoneInfo(zone)
    offsets = [
        datetime.fromtimestamp(START + hour * 3600, UTC).astimezone(clock).utcoffset() or timedelta()
        for hour in range(BINS // BINS_AN_HOUR)
    ]
    seconds = np.repeat([int(offset.total_seconds()) for offset in offsets], BINS_AN_HOUR)
    local = np.arange(BINS, dtype=np.int64) * BIN_SECONDS + seconds
    day = local // 86_400
    month_days = np.array([(FIRST_DAY + timedelta(days=int(number))).day for number in range(-1, DAYS + 1)])
    return LocalTime(
        hour=(local % 86_400) / 3600.0,
        day=day,
        weekday=(day + FIRST_DAY.weekday()) % 7,
        month_day=month_days[day + 1],
    )
