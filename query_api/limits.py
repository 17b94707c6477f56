"""Token buckets: how much each tenant or source may take, in bounded memory."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from query_api.settings import Rate

# A bucket that has been full for a while is the same as none, so forgetting the least recently used one is harmless
# until more callers than this are active at once.
MAX_BUCKETS: Final = 10_000


class Verdict(NamedTuple):
    """What a bucket said. `retry_after` is 0 if allowed; the seconds are whole, rounded up."""

    policy: str
    rate: Rate
    allowed: bool
    remaining: int
    full_in: int
    retry_after: int


class TokenBuckets:
    """One token bucket for each key. `timer` is a monotonic clock in seconds."""

    def __init__(self, policy: str, rate: Rate, timer: Callable[[], float], capacity: int = MAX_BUCKETS) -> None:
        self._policy = policy
        self._rate = rate
        self._timer = timer
        self._capacity = capacity
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, cost: int = 1) -> Verdict:
        """Takes `cost` from the bucket of `key` if there is anything in it.

        The level may fall below zero: a batch larger than the burst would otherwise never get through. The debt is
        paid back before the next one is allowed.
        """
        now = self._timer()
        level, then = self._buckets.pop(key, (float(self._rate.burst), now))
        level = min(float(self._rate.burst), level + (now - then) * self._rate.per_second)
        allowed = level >= 1
        if allowed:
            level -= cost
        self._buckets[key] = (level, now)
        if len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        return Verdict(
            self._policy,
            self._rate,
            allowed,
            max(0, math.floor(level)),
            self._seconds(self._rate.burst - level),
            0 if allowed else max(1, self._seconds(1 - level)),
        )

    def _seconds(self, tokens: float) -> int:
        return math.ceil(tokens / self._rate.per_second)


def rate_limit_headers(verdicts: Iterable[Verdict]) -> dict[str, str]:
    """RateLimit-Policy (quota q, refilled in w seconds) and RateLimit (r remaining, full again in t seconds).

    As in draft-ietf-httpapi-ratelimit-headers-10; empty without a verdict.
    """
    found = list(verdicts)
    if not found:
        return {}
    return {
        "RateLimit-Policy": ", ".join(
            f'"{verdict.policy}";q={verdict.rate.burst};w={math.ceil(verdict.rate.burst / verdict.rate.per_second)}'
            for verdict in found
        ),
        "RateLimit": ", ".join(f'"{verdict.policy}";r={verdict.remaining};t={verdict.full_in}' for verdict in found),
    }
