"""The events behind the counts: one line of NDJSON a token or refused request, in order of time, packed by Zstandard.

Identities and misuse say what is assumed. A bin of the counts is exactly the successes of its five minutes.
"""

from __future__ import annotations

import heapq
import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from bench.detection.identity import USED_BEFORE_RENEWAL, Identity
from bench.detection.local_time import BINS_A_DAY, DAYS, START
from bench.detection.misuse import Misuse
from bench.detection.network import Network
from bench.detection.tenant import Tenant
from bench.detection.traces import BIN_SECONDS

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Integers = npt.NDArray[np.int64]

_BIN_MS: Final = BIN_SECONDS * 1000
_STREAM: Final = 3  # the last random stream of a seed
_IDLE_LIFETIMES: Final = 3


class Caches:
    """Which replica asks for a token: the one whose token is the oldest, if it is due; else one more."""

    def __init__(self, identity: Identity) -> None:
        self._lifetime_ms = identity.lifetime * 1000
        self._free = list(range(identity.replicas))
        self._held: deque[tuple[int, int]] = deque()  # (ms of the last token, replica), oldest first

    def askers(self, moments: Iterable[int], used: Iterable[float]) -> list[int]:
        """For tokens at rising `moments` (ms), asked for when so much of the lifetime was used."""
        free, held, asked = self._free, self._held, []
        for now, share in zip(moments, used, strict=True):
            while held and now - held[0][0] > _IDLE_LIFETIMES * self._lifetime_ms:
                heapq.heappush(free, held.popleft()[1])
            due = bool(held) and now - held[0][0] >= share * self._lifetime_ms
            replica = held.popleft()[1] if due or not free else heapq.heappop(free)
            held.append((now, replica))
            asked.append(replica)
        return asked


class _Source:
    """The lines of an agent, day by day."""

    def __init__(self, tenant: Tenant, identity: Identity, misuse: list[Misuse]) -> None:
        self._identity, self._misuse = identity, misuse
        self._usual = identity.agent.counts.astype(np.int64)
        for one in misuse:
            if not one.refused:
                self._usual[one.start : one.end] -= one.added
        self._caches = Caches(identity)
        self._head = f'"tenant_id":"{tenant.name}","agent_id":"{identity.agent.name}","issued_at":'
        self._grant = f',"grant_type":"{identity.grant_type}"' if "grant_type" in identity.fields else ""
        self._lifetime = f',"expires_in":{identity.lifetime}' if "expires_in" in identity.fields else ""

    def day(self, day: int, pick: np.random.Generator) -> tuple[list[int], list[str]]:
        """(moments, lines without their event ids)."""
        identity, begins = self._identity, day * BINS_A_DAY
        moments: list[int] = []
        lines: list[str] = []
        usual = self._usual[begins : begins + BINS_A_DAY]
        at = _moments(usual, begins, pick)
        if len(at):
            network, user_agent = identity.network(day), identity.user_agent(day)
            if identity.caching:
                used = pick.uniform(USED_BEFORE_RENEWAL - 0.1, USED_BEFORE_RENEWAL + 0.1, size=len(at))
                replicas = np.array(self._caches.askers(at.tolist(), used.tolist()))
            else:
                replicas = pick.integers(identity.replicas, size=len(at))
            moments += at.tolist()
            lines += self._lines(at, replicas, network, user_agent, day, pick)
            again = pick.random(len(at)) < identity.failure_share
            if again.any():
                # Refused, and asked again a moment later.
                refused = at[again]
                refused = np.maximum(
                    refused - pick.integers(1, 2_000, size=len(refused)), START * 1000 + begins * _BIN_MS
                )
                moments += refused.tolist()
                lines += self._lines(refused, replicas[again], network, user_agent, day, pick, refused=True)
        for one in self._misuse:
            if one.start >= begins + BINS_A_DAY or one.end <= begins:
                continue
            first = max(begins, one.start)
            at = _moments(one.added[first - one.start : begins + BINS_A_DAY - one.start], first, pick)
            replicas = np.zeros(len(at), dtype=np.int64)
            if not one.one_replica:
                replicas = pick.integers(min(identity.replicas, identity.agent.instances), size=len(at))
            moments += at.tolist()
            lines += self._lines(
                at,
                replicas,
                one.network or identity.network(day),
                one.user_agent or identity.user_agent(day),
                day,
                pick,
                refused=one.refused,
                one_scope=one.kind == "retry",
            )
        return moments, lines

    def _lines(
        self,
        moments: Integers,
        replicas: Integers,
        network: Network,
        user_agent: str,
        day: int,
        pick: np.random.Generator,
        *,
        refused: bool = False,
        one_scope: bool = False,
    ) -> list[str]:
        identity, count = self._identity, len(moments)
        start = f'"outcome":"{"failure" if refused else "success"}"{self._grant}'
        end = f',"user_agent":"{user_agent}"' if "user_agent" in identity.fields else ""
        end += "" if refused else self._lifetime  # what was refused does not expire
        tails = [start + (f',"scope":"{scope}"' if "scope" in identity.fields else "") for scope in identity.scopes]
        scopes = pick.integers(1 if one_scope else len(tails), size=count).tolist()
        if "client_ip" not in identity.fields:
            return [
                f"{self._head}{at},{tails[tail]}{end}}}\n" for at, tail in zip(moments.tolist(), scopes, strict=True)
            ]
        addresses = network.addresses(replicas, day, pick)
        return [
            f'{self._head}{at},{tails[tail]},"client_ip":"{address}"{end}}}\n'
            for at, tail, address in zip(moments.tolist(), scopes, addresses, strict=True)
        ]


def _moments(counts: npt.NDArray[np.integer], first_bin: int, pick: np.random.Generator) -> Integers:
    """Rising Unix milliseconds, as many within each bin as it counts."""
    bins = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    moments = START * 1000 + (first_bin + bins) * _BIN_MS + pick.integers(_BIN_MS, size=len(bins))
    return np.sort(moments)


class EventStream:
    """A tenant's events, day by day."""

    def __init__(self, seed: int, tenant: Tenant, identities: list[Identity], misuse: list[Misuse]) -> None:
        self._seed, self._serial = seed, 0
        self._pick = np.random.default_rng([seed, _STREAM])
        self._sources = [
            _Source(tenant, identity, [one for one in misuse if one.identity is identity]) for identity in identities
        ]

    def day(self, day: int) -> tuple[list[int], list[str]]:
        """(moments, lines), in no order."""
        moments: list[int] = []
        lines: list[str] = []
        for source in self._sources:
            at, text = source.day(day, self._pick)
            moments += at
            lines += [f'{{"event_id":"{self._seed:x}-{self._serial + n:x}",{line}' for n, line in enumerate(text)]
            self._serial += len(text)
        return moments, lines


def write_events(path: Path, streams: list[EventStream]) -> None:
    """All events of all streams, in order of time."""
    with zstd.open(path, "wb", level=3) as file:
        for day in range(DAYS):
            file.write(_in_order([stream.day(day) for stream in streams]))


def _in_order(parts: list[tuple[list[int], list[str]]]) -> bytes:
    moments = np.array([moment for at, _ in parts for moment in at], dtype=np.int64)
    lines = [line for _, text in parts for line in text]
    return "".join(lines[number] for number in np.argsort(moments, kind="stable").tolist()).encode()
