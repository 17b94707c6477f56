"""How often something happened, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

_TAIL: Final = 0.025
_STEPS: Final = 100


def poisson_interval(count: int) -> tuple[float, float]:
    """The exact two-sided 95 % interval of a Poisson mean of which `count` was seen."""
    high = _solve(count, _TAIL, count, count + 10 * math.sqrt(count + 1) + 10)
    return (_solve(count - 1, 1 - _TAIL, 0, count) if count else 0.0), high


def _solve(count: int, share: float, low: float, high: float) -> float:
    """The mean at which `count` or fewer have this probability; it falls as the mean rises."""
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(count, middle) > share else (low, middle)
    return (low + high) / 2


def _at_most(count: int, mean: float) -> float:
    if mean <= 0:
        return 1.0
    return math.fsum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1))


class Rate(NamedTuple):
    """Episodes in so many tenant-weeks; `folds`: (episodes, weeks) of each fold of tenants."""

    episodes: int
    weeks: float
    folds: Sequence[tuple[int, float]] = ()

    @property
    def per_week(self) -> float:
        """Episodes a tenant-week; NaN without a week."""
        return self.episodes / self.weeks if self.weeks else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Its Poisson 95 % interval."""
        low, high = poisson_interval(self.episodes)
        return (low / self.weeks, high / self.weeks) if self.weeks else (math.nan, math.nan)

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest fold."""
        return _spread([episodes / weeks for episodes, weeks in self.folds if weeks])


class Share(NamedTuple):
    """`found` out of `total`; `folds`: the same of each fold of tenants; `seconds`: how long each one found took."""

    found: int
    total: int
    folds: Sequence[tuple[int, int]] = ()
    seconds: Sequence[int] = ()

    @property
    def share(self) -> float:
        """0 to 1; NaN of nothing."""
        return self.found / self.total if self.total else math.nan

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest fold."""
        return _spread([found / total for found, total in self.folds if total])


def _spread(values: list[float]) -> tuple[float, float]:
    return (min(values), max(values)) if values else (math.nan, math.nan)
