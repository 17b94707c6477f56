"""Where requests come from: what a server sees as `client_ip`. All numbers are made up; none is looked up anywhere."""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

PROVIDERS: Final = tuple(first << 24 | second << 16 for first in (18, 34, 52, 104) for second in (8, 64, 160))
_HOSTING: Final = tuple(first << 24 | second << 16 for first in (45, 91, 146, 185) for second in range(16, 80, 8))


class Network(Protocol):
    """Addresses of an agent's replicas."""

    kind: str

    def addresses(self, replicas: Integers, day: int, pick: np.random.Generator) -> list[str]:
        """One address for each request of a day; `replicas` says who asks."""


def dotted(address: int) -> str:
    """Of 32 bits."""
    return f"{address >> 24}.{address >> 16 & 255}.{address >> 8 & 255}.{address & 255}"


def _mixed(salt: int, replicas: Integers, period: int) -> Integers:
    """A number below 2**31 for each replica in a period: the same one whenever it is asked for."""
    mixed = replicas.astype(np.uint64) + np.uint64((salt * 1_000_003 + period) % 2**63)
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(factor)
    return (mixed >> np.uint64(33)).astype(np.int64)


def _blocks(base: int, span: int, blocks: int, pick: np.random.Generator) -> Integers:
    """So many /24s out of the first `span` of them after `base`."""
    return (base + pick.choice(span, size=blocks, replace=False) * 256).astype(np.int64)


class Nat:
    """All replicas behind one to four addresses of a /24."""

    kind = "nat"

    def __init__(self, pick: np.random.Generator) -> None:
        base = int(pick.integers(62, 90)) << 24 | int(pick.integers(256)) << 16 | int(pick.integers(256)) << 8
        hosts = pick.choice(np.arange(2, 250), size=int(pick.integers(1, 5)), replace=False)
        self._pool = [dotted(base + int(host)) for host in hosts]

    def addresses(self, replicas: Integers, day: int, pick: np.random.Generator) -> list[str]:
        return [self._pool[number] for number in pick.integers(len(self._pool), size=len(replicas)).tolist()]


class Cloud:
    """Each replica has an address of its own out of two to eight /24s of a provider, another one after some days."""

    kind = "cloud"

    def __init__(self, pick: np.random.Generator) -> None:
        self._blocks = _blocks(int(pick.choice(PROVIDERS)), 1024, int(pick.integers(2, 9)), pick)
        self._salt, self._days = int(pick.integers(2**40)), int(pick.integers(1, 15))

    def addresses(self, replicas: Integers, day: int, pick: np.random.Generator) -> list[str]:
        mixed = _mixed(self._salt, replicas, day // self._days)
        found = self._blocks[mixed % len(self._blocks)] + 2 + (mixed >> 12) % 250
        return [dotted(address) for address in found.tolist()]


class Rotating:
    """One or two addresses for all replicas, others every day, out of 20 to 200 /24s of a provider."""

    kind = "rotating"

    def __init__(self, pick: np.random.Generator) -> None:
        self._blocks = _blocks(int(pick.choice(PROVIDERS)), 2048, int(pick.integers(20, 201)), pick)
        self._salt, self._exits = int(pick.integers(2**40)), int(pick.integers(1, 3))

    def addresses(self, replicas: Integers, day: int, pick: np.random.Generator) -> list[str]:
        mixed = _mixed(self._salt, replicas % self._exits, day)
        found = self._blocks[mixed % len(self._blocks)] + 2 + (mixed >> 12) % 250
        return [dotted(address) for address in found.tolist()]


class Runners:
    """A new machine for each request, anywhere within 256 to 2,048 /24s of a provider."""

    kind = "runners"

    def __init__(self, pick: np.random.Generator) -> None:
        self._base, self._span = int(pick.choice(PROVIDERS)), int(pick.choice([256, 1024, 2048]))

    def addresses(self, replicas: Integers, day: int, pick: np.random.Generator) -> list[str]:
        return [dotted(self._base + number) for number in pick.integers(self._span * 256, size=len(replicas)).tolist()]


class Ipv6:
    """Each replica has an address of its own in one to four /64s of a /48, another one after some days."""

    kind = "ipv6"

    def __init__(self, pick: np.random.Generator) -> None:
        prefix = f"2a0{int(pick.integers(1, 10))}:{int(pick.integers(1, 65536)):x}:{int(pick.integers(1, 65536)):x}"
        subnets = pick.choice(65536, size=int(pick.integers(1, 5)), replace=False)
        self._subnets = [f"{prefix}:{int(subnet):x}" for subnet in subnets]
        self._salt, self._days = int(pick.integers(2**40)), int(pick.integers(1, 15))

    def addresses(self, replicas: Integers, day: int, pick: np.random.Generator) -> list[str]:
        mixed = _mixed(self._salt, replicas, day // self._days).tolist()
        return [
            f"{self._subnets[number % len(self._subnets)]}::{number >> 16 & 0xFFFF:x}:{number & 0xFFFF:x}"
            for number in mixed
        ]


class Elsewhere:
    """Where a leaked credential is used: one or two machines at a host, or in four of ten cases one of a provider, that
    none of the networks above has, unless by chance that of a provider.
    """

    kind = "elsewhere"

    def __init__(self, pick: np.random.Generator) -> None:
        at_a_provider = pick.random() < 0.4
        base = int(pick.choice(PROVIDERS if at_a_provider else _HOSTING))
        # Above the first 2,048 /24s, which are all that the networks above use.
        block = base + (int(pick.integers(2048, 4096)) if at_a_provider else int(pick.integers(2048))) * 256
        self._pool = [dotted(block + int(host)) for host in pick.integers(2, 250, size=int(pick.integers(1, 3)))]

    def addresses(self, replicas: Integers, day: int, pick: np.random.Generator) -> list[str]:
        return [self._pool[number] for number in pick.integers(len(self._pool), size=len(replicas)).tolist()]


_NETWORKS: Final[dict[str, type[Nat | Cloud | Rotating | Runners | Ipv6]]] = {
    network.kind: network for network in (Nat, Cloud, Rotating, Runners, Ipv6)
}
_SHARES: Final = (0.4, 0.35, 0.12, 0.0, 0.13)
_SHARES_OF_BUILDS: Final = (0.25, 0.1, 0.0, 0.6, 0.05)


def make_network(agent_kind: str, office: Nat, pick: np.random.Generator) -> Network:
    """Where an agent of a kind runs. Most of a tenant's agents behind a NAT are behind the same one, `office`."""
    kind = str(pick.choice(list(_NETWORKS), p=_SHARES_OF_BUILDS if agent_kind == "ci" else _SHARES))
    return office if kind == "nat" and pick.random() < 0.7 else _NETWORKS[kind](pick)
