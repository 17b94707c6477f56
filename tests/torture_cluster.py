"""The torture of a cluster: two shards of three replicas, four services; what may die dies, and primaries are switched.

Clients send to all services meanwhile. After each round every answered event counts once, in the answers of every
service; what was not answered may count once.

    python -m tests.torture_cluster --seconds 300 [--seed N]
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from clickhouse.cluster import shard_of
from tests.support.bridge.process import Bridge
from tests.support.cluster import NAME, Cluster
from tests.support.service import Service, run
from tests.torture import TENANTS, Client, Outcome, judge_bounds, judge_exactly

SERVICES: Final = 4
CLIENTS: Final = 6


class Chaos:
    """The cluster, the services on it, and what is done to them."""

    def __init__(self, directory: Path, cluster: Cluster, services: list[Service], pick: random.Random) -> None:
        self.directory = directory
        self.cluster = cluster
        self.services = services
        self.pick = pick
        self.primary = [0, 0]
        self.done: Counter[str] = Counter()

    def strike(self) -> None:
        """One blow, and its repair."""
        blow: Callable[[], None] = self.pick.choice(
            (self._lose_a_replica, self._lose_a_primary, self._switch_a_primary, self._lag, self._kill_a_service)
        )
        self.done[blow.__name__.strip("_")] += 1
        blow()

    def _any_dsn(self) -> str:
        return self.pick.choice([bridge for bridge in self.cluster.bridges if bridge.runs]).dsn_of("analytics")

    def _shard(self) -> tuple[int, Bridge, list[Bridge]]:
        shard = self.pick.randrange(len(self.cluster.shards))
        primary = self.cluster.shards[shard][self.primary[shard]]
        return shard, primary, [bridge for bridge in self.cluster.shards[shard] if bridge is not primary]

    def _fail_over(self, shard: int, to: Bridge) -> None:
        arguments = ("--cluster", NAME, "--shard", str(shard + 1), "--to", to.host)
        ended = run("failover", "--dsn", self._any_dsn(), *arguments)
        assert ended.returncode == 0, ended.stderr
        self.primary[shard] = self.cluster.shards[shard].index(to)

    def _lose_a_replica(self) -> None:
        _, _, others = self._shard()
        lost = self.pick.choice(others)
        lost.kill()
        time.sleep(self.pick.uniform(1, 6))
        lost.restart()

    def _lose_a_primary(self) -> None:
        shard, primary, others = self._shard()
        primary.kill()
        time.sleep(self.pick.uniform(0, 3))
        self._fail_over(shard, self.pick.choice(others))
        primary.restart()

    def _switch_a_primary(self) -> None:
        shard, _, others = self._shard()
        self._fail_over(shard, self.pick.choice(others))

    def _lag(self) -> None:
        _, _, others = self._shard()
        others[0].replicate(fetches=False)
        others[1].replicate(lag=self.pick.uniform(0, 1))
        time.sleep(self.pick.uniform(2, 8))
        for bridge in others:
            bridge.replicate()

    def _kill_a_service(self) -> None:
        service = self.pick.choice(self.services)
        service.kill()
        service.dsn = self._any_dsn()
        service.start()


def torture(directory: Path, seconds: float, seed: int) -> tuple[Outcome, Counter[str]]:
    """Runs for `seconds`, and at least two rounds."""
    pick = random.Random(seed)
    assert {shard_of(tenant, 2) for tenant in TENANTS} == {0, 1}
    clients = [Client(number, random.Random(seed * 100 + number)) for number in range(CLIENTS)]
    outcome = Outcome()
    with Cluster(directory) as cluster, ExitStack() as stack:
        migrated = run("migrate", *cluster.arguments)
        assert migrated.returncode == 0, migrated.stderr
        services = []
        for number in range(SERVICES):
            (own := directory / f"service-{number}").mkdir()
            options = ("--cluster", NAME, "--refresh-interval", "1s", "--zero-hold", "0s")
            services.append(stack.enter_context(Service(own, *options, dsn=cluster.dsn)))
        chaos = Chaos(directory, cluster, services, pick)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline or outcome.rounds < 2:
            stop = threading.Event()
            threads = [threading.Thread(target=_keep_sending, args=(client, services, stop)) for client in clients]
            for thread in threads:
                thread.start()
            try:
                chaos.strike()
                time.sleep(pick.uniform(0, 2))
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
            outcome.rounds += 1
            for service in services:
                judge_bounds(service, clients, outcome)
            print(
                f"  round {outcome.rounds}: {dict(chaos.done)}, {outcome.lost} lost, {outcome.doubled} doubled",
                flush=True,
            )
        for client in clients:
            pending, client.unanswered = client.unanswered, []
            for start in range(0, len(pending), 500):
                client.send(services[0].url, pending[start : start + 500])
            assert client.unanswered == []
        for service in services:
            judge_exactly(service, clients, outcome, forgotten=False)
            assert service.stop() == 0
        verified = run("verify", *cluster.arguments)
        if verified.returncode != 0:
            outcome.other.append(f"verify: {verified.stdout[-500:]} {verified.stderr[-500:]}")
    outcome.events = len({(e.tenant_id, e.issued_at, e.event_id) for client in clients for e in client.answered})
    return outcome, chaos.done


def _keep_sending(client: Client, services: list[Service], stop: threading.Event) -> None:
    while not stop.is_set():
        client.send(client.random.choice(services).url, client.batch())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    arguments = parser.parse_args()
    print(f"cluster: seed {arguments.seed}, {arguments.seconds:.0f} s, {datetime.now(UTC):%H:%M} ...", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        outcome, done = torture(Path(directory), arguments.seconds, arguments.seed)
    print(f"cluster: {dict(done)}, {outcome.events:,} events, {outcome.lost} lost, {outcome.doubled} doubled")
    for line in outcome.other:
        print(f"  {line}")
    if outcome.lost or outcome.doubled or outcome.other:
        sys.exit(1)


if __name__ == "__main__":
    main()
