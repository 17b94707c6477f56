"""The failover: another replica becomes a shard's primary, every process follows, and what may be behind is recounted.

Both replicas are written to for a moment, so a recount on either may miss what is on the other only. That is why the
last hour is marked once more when all have followed and the new primary has fetched everything: then all is exact.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from clickhouse import topology
from clickhouse.cluster import Placement, Shard, ask_once, dsn_at, place, placement_at, placement_of
from clickhouse.connection import INSERT_SECONDS, Connection
from clickhouse.errors import StoreSetupError, StoreUnavailableError
from clickhouse.marks import new_segment_id
from clickhouse.rollups import Rollups

logger = logging.getLogger(__name__)

FOLLOW_SECONDS: Final = 5.0
# By then every process has looked for its primary again, and what it was still writing to the former one has ended.
GRACE_SECONDS: Final = FOLLOW_SECONDS + INSERT_SECONDS + 10.0
MARKED_AGAIN_SECONDS: Final = 3_600.0
_SYNC_TRIES: Final = 20

_MARK_AGAIN: Final = """
INSERT INTO marks (tenant_id, slot, segment, open)
SELECT DISTINCT tenant_id, slot, {segment:UInt64}, 1 FROM tenant_slot WHERE generation >= {since:UInt64}"""
_NEWEST: Final = "SELECT max(generation) FROM tenant_slot"


def sync(connection: Connection, say: Callable[[str], None] = lambda text: None) -> None:
    """Returns when the replica has fetched all that its shard was told. Raises StoreUnavailableError when it cannot."""
    for table in topology.TABLES:
        for attempt in range(1, _SYNC_TRIES + 1):
            try:
                connection.command(f"SYSTEM SYNC REPLICA {table}")
                break
            except StoreUnavailableError:
                if attempt == _SYNC_TRIES:
                    raise
                say(f"waiting until {connection.address} has fetched {table}, try {attempt + 1} of {_SYNC_TRIES} ...")


class Follower:
    """Keeps a connection at the primary of its shard. Thread-safe: one call at a time moves it."""

    def __init__(self, connection: Connection, dsn: str, shard: Shard, placement: Placement) -> None:
        self._connection = connection
        self._dsn = dsn
        self._shard = shard
        self._placement = placement
        self._moving = threading.Lock()
        self._asking: dict[str, Connection] = {}  # kept open: they are asked every few seconds

    def follow(self) -> bool:
        """Moves if another replica is the primary now, and says so. Raises StoreError, and stays, if that cannot be."""
        with self._moving:
            found = placement_of(self._shard, self._ask)
            if found is None or found.number <= self._placement.number:
                return False
            if found.primary_host != self._placement.primary_host:
                dsn = dsn_at(self._dsn, found.primary_host)
                there = Connection(dsn, replicas=len(self._shard.hosts), create=False)
                try:
                    sync(there)  # or a recount there would miss what was answered here
                finally:
                    there.close()
                self._connection.move(dsn)
            logger.warning("the primary of shard %d is %s from now on", self._shard.number, found.primary_host)
            self._placement = found
            return True

    def close(self) -> None:
        """Closes what replicas were asked over."""
        with self._moving:
            for connection in self._asking.values():
                connection.close()
            self._asking.clear()

    def _ask(self, host: str) -> Placement | None:
        if host not in self._asking:
            self._asking[host] = Connection(dsn_at(self._dsn, host), create=False)
        return placement_at(self._asking[host])


class Followers:
    """One thread that looks for the primaries of all shards every few seconds."""

    def __init__(self, followers: Sequence[Follower]) -> None:
        self._followers = followers
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name="primaries", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        for follower in self._followers:
            follower.close()

    def follow(self) -> None:
        """Looks now, for all shards. Raises StoreError."""
        for follower in self._followers:
            follower.follow()

    def _run(self) -> None:
        trouble: set[int] = set()
        while not self._stopping.wait(FOLLOW_SECONDS):
            for number, follower in enumerate(self._followers):
                try:
                    follower.follow()
                    trouble.discard(number)
                except Exception as error:  # whatever it was: a thread that ends here stays at a former primary
                    if number not in trouble:
                        logger.warning("a primary cannot be looked for, will be tried again: %s", error)
                    trouble.add(number)


def failover(
    dsn: str,
    cluster: str,
    shards: Sequence[Shard],
    number: int,
    host: str,
    *,
    say: Callable[[str], None] = lambda text: None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Makes the replica on `host` the primary of a shard; returns how many slots were recounted.

    Safe to interrupt and to repeat; repeated for the same host it only fetches and recounts. Raises StoreError.
    """
    shard = next((shard for shard in shards if shard.number == number), None)
    if shard is None:
        raise StoreSetupError(
            f"--shard {number} is none of {cluster}; it has {', '.join(str(s.number) for s in shards)}"
        )
    if host not in shard.hosts:
        raise StoreSetupError(f"--to {host} has no replica of shard {number}; they are on {', '.join(shard.hosts)}")
    known = placement_of(shard, ask_once(dsn))
    if known is None:
        raise StoreSetupError(f"shard {number} of {cluster} has no schema; run agentidp-analytics migrate")
    connection = Connection(dsn_at(dsn, host), replicas=len(shard.hosts), create=False)
    try:
        topology.inspect(connection, cluster=cluster)
        say(f"{host} fetches what it lacks ...")
        sync(connection, say)
        newest_before = int(connection.rows(_NEWEST)[0][0])
        if known.primary_host != host:
            place(connection, known._replace(number=known.number + 1, primary_host=host))
            say(f"{host} is the primary of shard {number}; all processes follow within {GRACE_SECONDS:.0f} s ...")
        sleep(GRACE_SECONDS)
        sync(connection, say)
        segment = new_segment_id(time.time_ns() // 1_000_000)
        # Back from the newest rollup: how far the clocks of the two servers are apart does not matter then.
        since = max(0, newest_before - int(MARKED_AGAIN_SECONDS * 1e9))
        connection.command(_MARK_AGAIN, {"segment": segment, "since": since})
        say("the last hour is recounted ...")
        return Rollups(connection).recompute([segment], lambda slots: say(f"recounted {slots:,} slots ...")).slots
    finally:
        connection.close()
