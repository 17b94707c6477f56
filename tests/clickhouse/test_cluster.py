"""A store over the shards of a cluster: bridges that replicate as servers do, a real engine behind each."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from xml.etree import ElementTree

import pytest
import yaml
from prometheus_client import CollectorRegistry

from clickhouse.cluster import shard_of
from clickhouse.connection import Connection
from clickhouse.errors import StoreSetupError, StoreUnavailableError
from clickhouse.event import Event
from clickhouse.open_store import failover_store, migrate_store, open_store
from clickhouse.sharded import ShardedStore
from clickhouse.smoke import smoke
from clickhouse.tenant import TenantId
from tests.support.bridge.process import Bridge
from tests.support.cluster import NAME, Cluster
from tests.support.oracle import Oracle
from tests.support.rig import NOW
from tests.support.service import ROOT, clean_environment, run

TENANTS = [f"org-{letter}" for letter in "abcdefgh"]


def event(number: int, tenant: str = "", hours_ago: float = 1.0) -> Event:
    at = NOW - timedelta(hours=hours_ago)
    serial = hashlib.md5(str(number).encode()).hexdigest()
    return Event(tenant or TENANTS[number % len(TENANTS)], int(at.timestamp() * 1000), serial, f"agent-{number % 5}")


EVENTS = [event(number, hours_ago=number % 50) for number in range(400)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as made:
        list(migrate_store(made.dsn, NAME))
        yield made


@pytest.fixture
def store(cluster: Cluster) -> Iterator[ShardedStore]:
    for bridge in cluster.bridges:
        bridge.replicate()
    heir = open_store(cluster.dsn, NAME, CollectorRegistry(), clock=(NOW + timedelta(hours=1)).timestamp)
    assert isinstance(heir, ShardedStore)
    heir.upkeep.repair()  # what the store of the test before has left
    for shard in heir.shards:
        shard.connection.close()
    opened = open_store(cluster.dsn, NAME, CollectorRegistry(), clock=NOW.timestamp)
    assert isinstance(opened, ShardedStore)
    with opened:
        yield opened


def agree(store: ShardedStore, oracle: Oracle) -> None:
    queries = store.queries()
    for tenant in oracle.tenants():
        name = TenantId(tenant)
        assert queries.trend(name, NOW.date(), 90) == oracle.trend(tenant, NOW.date(), 90)
        assert queries.activity(name, NOW.date(), 90) == oracle.activity(tenant, NOW.date(), 90)
        assert queries.agents(name, NOW.date()) == oracle.agents(tenant, NOW.date())


def counts_on(bridge_dsn: str) -> dict[str, int]:
    connection = Connection(bridge_dsn)
    rows = connection.rows("SELECT tenant_id, toUInt64(sum(issued)) FROM tenant_day FINAL GROUP BY tenant_id")
    connection.close()
    return {str(tenant): int(count) for tenant, count in rows}


def test_a_tenant_is_on_one_shard_and_every_replica_of_it_has_it(cluster: Cluster, store: ShardedStore) -> None:
    store.writer.write(EVENTS)
    agree(store, Oracle(EVENTS))
    store.upkeep.settle()
    agree(store, Oracle(EVENTS))
    assert {shard_of(tenant, 2) for tenant in TENANTS} == {0, 1}
    for position, of_shard in enumerate(cluster.shards):
        expected = {t: sum(e.tenant_id == t for e in EVENTS) for t in TENANTS if shard_of(t, 2) == position}
        for bridge in of_shard:
            Connection(bridge.dsn_of("analytics")).command("SYSTEM SYNC REPLICA tenant_day")
            assert counts_on(bridge.dsn_of("analytics")) == expected
    assert store.verify().differences == []
    fleet = store.totals().read()
    assert fleet.tenant_id == sorted(TENANTS)
    assert sum(fleet.tokens_issued) == len(EVENTS)


def test_the_size_of_a_cluster_is_that_of_its_primaries(store: ShardedStore) -> None:
    for shard in store.shards:
        shard.connection.command("SYSTEM STOP MERGES")  # else sizes change between two looks
    store.writer.write(EVENTS)
    shards = [shard.size() for shard in store.shards]
    whole = store.size()
    assert min(size.bytes for size in shards) > 0
    assert (whole.bytes, whole.parts) == (sum(size.bytes for size in shards), max(size.parts for size in shards))
    assert whole.free_bytes is not None
    for shard in store.shards:
        shard.connection.command("SYSTEM START MERGES")


def test_counters_of_all_shards_are_recorded_where_their_tenants_are(cluster: Cluster, store: ShardedStore) -> None:
    store.writer.write(EVENTS)
    store.upkeep.settle()
    totals = store.totals()
    fleet = totals.read()
    totals.record(fleet, fleet.tenant_id, (7, 1))
    again = store.totals().read()
    assert all(again.published)
    assert (again.tokens_issued, again.other) == (fleet.tokens_issued, (7, 1))


def test_the_shard_of_a_tenant_never_changes() -> None:
    assert [shard_of(tenant, 5) for tenant in TENANTS] == [3, 3, 3, 2, 0, 2, 0, 2]


def test_one_dead_replica_stops_nothing_and_a_second_stops_writing(cluster: Cluster, store: ShardedStore) -> None:
    of_first = next(t for t in TENANTS if shard_of(t, 2) == 0)
    more = [event(1_000 + n, of_first) for n in range(5)]
    cluster.shards[0][2].kill()
    try:
        store.writer.write([*EVENTS, *more])
        cluster.shards[0][1].replicate(fetches=False)
        store.shards[0].connection.send_settings({"insert_quorum_timeout": 1_000})
        with pytest.raises(StoreUnavailableError):
            store.writer.write([event(2_000, of_first)])  # no second replica has it: not durable
        cluster.shards[0][1].replicate()
        store.writer.write([event(2_000, of_first)])
    finally:
        cluster.shards[0][2].restart()
    agree(store, Oracle([*EVENTS, *more, event(2_000, of_first)]))


def to_shard(position: int, count: int, start: int) -> list[Event]:
    """New events, a few minutes old, of tenants of the shard at `position`."""
    tenants = [tenant for tenant in TENANTS if shard_of(tenant, 2) == position]
    return [event(start + n, tenants[n % len(tenants)], hours_ago=0.05 * (n % 4)) for n in range(count)]


def fail_over(cluster: Cluster, position: int, replica: int, *stores: ShardedStore) -> int:
    """The command, with a look of all processes in place of the time in which they look by themselves."""
    host = cluster.shards[position][replica].host
    dsn = next(bridge for bridge in cluster.bridges if bridge.runs).dsn_of("analytics")

    def grace(seconds: float) -> None:
        for store in stores:
            store.followers.follow()

    return failover_store(dsn, NAME, position + 1, host, lambda text: None, grace)


def primary_of(cluster: Cluster, store: ShardedStore, position: int) -> Bridge:
    return next(bridge for bridge in cluster.shards[position] if bridge.host in store.shards[position].connection.dsn)


@pytest.mark.parametrize("sequential", [True, False], ids=["control", "as-it-is"])
def test_writers_at_once_are_not_refused(
    cluster: Cluster, store: ShardedStore, monkeypatch: pytest.MonkeyPatch, sequential: bool
) -> None:
    """The control is a quorum as it used to be, one insert after another: what comes beside is refused with 286."""
    if sequential:
        for shard in store.shards:
            monkeypatch.setattr(
                shard.connection, "_settings", shard.connection._settings | {"insert_quorum_parallel": 0}
            )
    for bridge in cluster.bridges:
        bridge.replicate(lag=0.3)  # so that the second insert begins while the first one waits
    outcomes = []

    def write(number: int) -> None:
        try:
            store.writer.write([event(50_000 + number, tenant="org-writers")])
            outcomes.append("stored")
        except StoreUnavailableError as refused:
            outcomes.append("286" if "Code: 286" in str(refused.__cause__ or refused) else str(refused))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ("286" in outcomes) == sequential, outcomes
    assert sequential or outcomes == ["stored"] * 4
    store.upkeep.settle()


@pytest.mark.parametrize("sequential", [True, False], ids=["control", "as-it-is"])
def test_a_question_is_answered_while_a_replica_lags(cluster: Cluster, store: ShardedStore, sequential: bool) -> None:
    """The control asks as it used to: any replica, sequentially consistent. One that lags refuses with 289."""
    seen = [event(60_000 + number, tenant="org-lagging") for number in range(2)]
    store.writer.write(seen[:1])
    of_shard = cluster.shards[shard_of("org-lagging", 2)]
    for bridge in of_shard[1:]:
        bridge.replicate(fetches=False)
    with ExitStack() as stack:
        stack.callback(of_shard[1].replicate)
        of_shard[2].replicate()  # the quorum's second
        store.writer.write(seen[1:])
        if sequential:
            lagging = Connection(of_shard[1].dsn_of("analytics"))
            with pytest.raises(StoreUnavailableError):
                lagging.rows("SELECT count() FROM events", settings={"select_sequential_consistency": 1})
            lagging.close()
        else:
            agree(store, Oracle(seen))


def test_a_primary_that_dies_is_replaced_by_a_command_and_nothing_answered_is_lost(
    cluster: Cluster, store: ShardedStore
) -> None:
    other = open_store(cluster.dsn, NAME, CollectorRegistry(), clock=NOW.timestamp)
    assert isinstance(other, ShardedStore)
    before = store.totals().read()
    events = to_shard(0, 40, 10_000)
    store.writer.write(events[:20])
    other.writer.write(events[20:])
    store.upkeep.settle()  # the other one's segment stays open over the failover
    dead = primary_of(cluster, store, 0)
    dead.kill()
    with pytest.raises(StoreUnavailableError):
        store.writer.write(to_shard(0, 1, 20_000))
    store.writer.write(to_shard(1, 1, 30_000))
    store.check()  # the tenants of the other shard are served
    with pytest.raises(StoreUnavailableError):
        store.totals().read()  # tenants that are not there would look erased
    successor = (cluster.shards[0].index(dead) + 1) % 3
    assert fail_over(cluster, 0, successor, store, other) > 0
    assert primary_of(cluster, store, 0) is primary_of(cluster, other, 0) is cluster.shards[0][successor]
    more = to_shard(0, 6, 40_000)
    other.writer.write(more)
    dead.restart()
    for one in (store, other):
        one.upkeep.settle()
    assert fail_over(cluster, 0, successor, store, other) > 0, "the same again does no harm"
    held = {one for one in held_on(store) if one.event_id not in {e.event_id for e in to_shard(0, 1, 20_000)}}
    assert {*events, *more} <= held
    for one in (store, other):
        agree(one, Oracle(held))
    assert store.verify().differences == []
    after = dict(zip((fleet := store.totals().read()).tenant_id, fleet.tokens_issued, strict=True))
    assert all(after[t] >= count for t, count in zip(before.tenant_id, before.tokens_issued, strict=True))
    other.__exit__()


@pytest.mark.parametrize("marks_again", [False, True], ids=["control", "as-it-is"])
def test_a_process_that_is_slow_to_follow_leaves_nothing_behind(
    cluster: Cluster, store: ShardedStore, monkeypatch: pytest.MonkeyPatch, marks_again: bool
) -> None:
    """It writes to and recounts on the former primary while the new one is written to, and lags.

    The control leaves out what the failover does against that: it has to come out wrong, and the next one heals it.
    """
    if not marks_again:
        monkeypatch.setattr("clickhouse.failover._MARK_AGAIN", "SELECT {segment:UInt64}, {since:UInt64}")
    late = open_store(cluster.dsn, NAME, CollectorRegistry(), clock=NOW.timestamp)
    assert isinstance(late, ShardedStore)
    former = primary_of(cluster, store, 1)
    successor = (cluster.shards[1].index(former) + 1) % 3
    new = cluster.shards[1][successor]
    events = to_shard(1, 60, 50_000 + 1_000 * marks_again)
    store.writer.write(events[:20])
    store.upkeep.settle()

    def grace(seconds: float) -> None:
        store.followers.follow()
        new.replicate(lag=1.5)
        former.replicate(lag=1.5)
        store.writer.write(events[20:40])
        late.writer.write(events[40:])
        late.upkeep.settle()  # on the former primary, without what the new one was just told
        store.upkeep.settle()
        late.followers.follow()

    failover_store(cluster.dsn, NAME, 2, new.host, lambda text: None, grace)
    new.replicate()
    former.replicate()
    if not marks_again:
        assert store.verify().differences != []
        monkeypatch.undo()
        fail_over(cluster, 1, successor, store, late)
    held = held_on(store)
    assert {*events} <= held
    for one in (store, late):
        agree(one, Oracle(held))
    assert store.verify().differences == []
    late.__exit__()


def test_a_former_primary_that_is_cut_off_is_not_believed(cluster: Cluster, store: ShardedStore) -> None:
    """It lives, and nobody could tell it."""
    former = primary_of(cluster, store, 1)
    former.replicate(fetches=False)
    successor = (cluster.shards[1].index(former) + 1) % 3
    fail_over(cluster, 1, successor, store)
    assert primary_of(cluster, store, 1) is cluster.shards[1][successor]
    former.replicate()
    assert store.verify().differences == []


def held_on(store: ShardedStore) -> set[Event]:
    """Every event that the store exports."""
    lines = b"".join(store.export()).splitlines()
    return {Event(**json.loads(line)) for line in lines}


def test_a_change_of_shards_is_refused_and_nothing_is_looked_for_elsewhere(cluster: Cluster) -> None:
    first = cluster.shards[0]
    rows = ", ".join(f"('main', 1, {number + 1}, '{bridge.host}')" for number, bridge in enumerate(first))
    columns = "cluster String, shard_num UInt32, replica_num UInt32, host_name String"
    pretended = {"system.clusters": f"(SELECT * FROM values('{columns}', {rows}))"}
    first[0].pretend(**pretended)
    with pytest.raises(StoreSetupError, match="was made as number 1 of 2 and is number 1 of 1 now"):
        open_store(cluster.dsn, NAME, CollectorRegistry())
    first[0].pretend(**{"system.clusters": f"(SELECT * FROM values('{columns}', {rows.rpartition(', (')[0]}))"})
    with pytest.raises(StoreSetupError, match="shard 1 has 2 replicas"):
        open_store(cluster.dsn, NAME, CollectorRegistry())
    first[0].stop()
    first[0].restart()


def test_commands_work_on_a_cluster(cluster: Cluster, store: ShardedStore) -> None:
    del store
    again = run("migrate", *cluster.arguments)
    assert again.returncode == 0
    assert again.stdout.count("schema is current") == 2
    unknown = run("verify", "--dsn", cluster.dsn, "--cluster", "nobody")
    assert (unknown.returncode, "it knows main" in unknown.stderr) == (2, True), unknown.stderr
    verified = run("verify", *cluster.arguments)
    assert (verified.returncode, "0 differences" in verified.stdout) == (0, True), verified.stdout + verified.stderr
    exported = run("export", *cluster.arguments)
    assert exported.stdout.count("\n") >= len(EVENTS)
    erased = run("erase", *cluster.arguments, "--tenant", TENANTS[0])
    assert erased.returncode == 0, erased.stderr
    assert TENANTS[0] not in run("export", *cluster.arguments).stdout


def test_the_smoke_script_holds_here_and_tells_what_does_not(
    cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    dsn = cluster.shards[0][0].dsn_of("smoke")
    assert smoke(dsn, NAME, 3_000, lambda seconds: None) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 10
    assert all(line.startswith("holds  ") for line in lines), lines
    with pytest.raises(StoreSetupError, match="has events already"):
        smoke(dsn, NAME, 100, lambda seconds: None)
    cluster.shards[1][2].stop()
    capfd.readouterr()
    with pytest.raises(StoreSetupError, match="Max retries"):
        smoke(cluster.shards[0][0].dsn_of("smoke_2"), NAME, 100, lambda seconds: None)
    cluster.shards[1][2].restart()
    assert [line[:5] for line in capfd.readouterr().out.splitlines()] == ["FAILS", "FAILS"]


def test_the_compose_file_has_the_servers_of_the_cluster_that_it_configures() -> None:
    deploy = ROOT / "deploy"
    services = yaml.safe_load((deploy / "compose.yaml").read_text())["services"]
    hosts = [host.text for host in ElementTree.parse(deploy / "clickhouse.xml").iterfind(".//replica/host")]
    assert hosts == [name for name in services if name.startswith("ch-")]
    assert ElementTree.parse(deploy / "keeper.xml").findtext(".//tcp_port") == "9181"
    help_shown = subprocess.run([deploy / "cluster-smoke", "--help"], capture_output=True, text=True, cwd=ROOT,
                                env=clean_environment() | {"PYTHON": sys.executable}, check=True)  # fmt: skip
    assert "--events" in help_shown.stdout
