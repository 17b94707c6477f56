"""A cluster of bridges: shards of replicas, each a process on a loopback address of its own."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.bridge.process import Bridge
from tests.support.service import free_port

NAME: Final = "main"


class Cluster:
    """`replicas` of each of `shards` shards; a context manager that starts and stops them all."""

    def __init__(self, path: Path, *, shards: int = 2, replicas: int = 3) -> None:
        port = free_port()
        # Far from the addresses that other tests use, and apart for clusters of tests that run at once.
        hosts = [
            [f"127.{port % 200 + 20}.{shard + 1}.{replica + 1}" for replica in range(replicas)]
            for shard in range(shards)
        ]
        layout = [(s + 1, r + 1, host) for s, of_shard in enumerate(hosts) for r, host in enumerate(of_shard)]
        self.shards = [
            [
                Bridge(
                    path / host,
                    host=host,
                    port=port,
                    replica={"shared": str(path / f"shard-{s + 1}"), "name": host, "cluster": layout},
                )
                for host in of_shard
            ]
            for s, of_shard in enumerate(hosts)
        ]

    @property
    def bridges(self) -> list[Bridge]:
        """All servers."""
        return [bridge for of_shard in self.shards for bridge in of_shard]

    @property
    def dsn(self) -> str:
        """Of the first server; any other would do."""
        return self.shards[0][0].dsn_of("analytics")

    @property
    def arguments(self) -> tuple[str, ...]:
        """What a command takes to work on it."""
        return ("--dsn", self.dsn, "--cluster", NAME)

    def __enter__(self) -> Self:
        for bridge in self.bridges:
            bridge.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bridge in self.bridges:
            bridge.stop()
