"""Token buckets: how much each tenant or source may take, in bounded memory."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from query_api.settings import Rate

# A bucket that has been full for a while is the same as none, so forgetting the least recently used one is harmless
# until more callers than this are active at once.
MAX_BUCKETS: Final = 10_000
# Sums of floating-point seconds come out a hair short; who waited as long as told must get through.
_ROUNDING: Final = 1e-6


class Verdict(NamedTuple):
    """What a bucket said: how much is left, and after how many seconds (rounded up) there is more (0: it is full)."""

    allowed: bool
    remaining: int
    more_in: int


class TokenBuckets:
    """One token bucket for each key. `timer` is a monotonic clock in seconds."""

    def __init__(self, rate: Rate, timer: Callable[[], float], capacity: int = MAX_BUCKETS) -> None:
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
        allowed = level > 1 - _ROUNDING
        if allowed:
            level -= cost
        self._buckets[key] = (level, now)
        if len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        remaining = max(0, math.floor(level))
        missing = 0.0 if remaining >= self._rate.burst else remaining + 1 - level
        return Verdict(allowed, remaining, math.ceil(missing / self._rate.per_second))


def rate_limit_headers(policy: str, rate: Rate, verdict: Verdict) -> dict[str, str]:
    """RateLimit-Policy (q requests in w seconds) and RateLimit (r left, more in t seconds).

    As in draft-ietf-httpapi-ratelimit-headers-10, sections 3 and 4.
    """
    return {
        "RateLimit-Policy": f'"{policy}";q={rate.burst};w={math.ceil(rate.burst / rate.per_second)}',
        "RateLimit": f'"{policy}";r={verdict.remaining};t={verdict.more_in}',
    }
