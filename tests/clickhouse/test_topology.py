"""What is found out about a server at the start, and what is refused, on a bridge that pretends to be it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clickhouse import topology
from clickhouse.connection import Connection
from clickhouse.errors import StoreSetupError
from clickhouse.topology import CLOCK_SECONDS, OLDEST_VERSION, Topology
from tests.support.bridge.process import Bridge
from tests.support.service import ROOT, run

LIKE_TABLES = "(SELECT 'events' AS name, '{}' AS engine, currentDatabase() AS database)"


@pytest.fixture
def pretending(server_store: Connection, bridge: Bridge) -> Iterator[Bridge]:
    yield bridge
    bridge.pretend()
    bridge.profile()


def content(bridge: Bridge) -> list[tuple[object, ...]]:
    connection = Connection(bridge.dsn_of("analytics"))
    rows = connection.rows(
        "SELECT name, total_rows FROM system.tables WHERE database = currentDatabase() ORDER BY name"
    )
    connection.close()
    return rows


def inspected(bridge: Bridge) -> Topology:
    connection = Connection(bridge.dsn_of("analytics"))
    try:
        return topology.inspect(connection)
    finally:
        connection.close()


def test_an_embedded_store_and_a_single_server(embedded_store: Connection, pretending: Bridge) -> None:
    assert topology.inspect(embedded_store) is Topology.EMBEDDED
    assert inspected(pretending) is Topology.SERVER


REFUSED = {
    "23.8.16.40": ({"version()": "'23.8.16.40'"}, "ClickHouse 23.8.16.40; 24.3 is the oldest"),
    "read-only": ({"system.settings WHERE": "(SELECT 'readonly' AS name, '1' AS value) WHERE"}, "may only read"),
    "replicated": ({"system.tables": LIKE_TABLES.format("ReplicatedReplacingMergeTree")}, "--cluster"),
    "grants": ({"CHECK GRANT": "SELECT 0 --"}, "lacks one of SELECT, INSERT, ALTER DELETE"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("command", ["verify", "migrate", "ingest"])
def test_what_would_not_be_safe_is_one_line_and_changes_nothing(
    pretending: Bridge, tmp_path: Path, case: str, command: str
) -> None:
    before = content(pretending)
    instead, reason = REFUSED[case]
    pretending.pretend(**instead)
    (tmp_path / "events").write_text("")
    arguments = [str(tmp_path / "events")] if command == "ingest" else []
    ended = run(command, "--dsn", pretending.dsn_of("analytics"), *arguments)
    pretending.pretend()
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert reason in ended.stderr
    assert "secret" not in ended.stderr
    assert content(pretending) == before


def test_a_profile_that_may_only_read_is_refused(pretending: Bridge) -> None:
    pretending.profile(readonly="1")
    with pytest.raises(StoreSetupError, match=r"may only read \(readonly = 1\)"):
        inspected(pretending)


@pytest.mark.parametrize("offset", [CLOCK_SECONDS + 5, -CLOCK_SECONDS - 5])
def test_a_clock_far_from_the_servers_is_refused(server_store: Connection, offset: float) -> None:
    with pytest.raises(StoreSetupError, match="ahead of" if offset > 0 else "behind"):
        topology.inspect(server_store, clock=lambda: time.time() + offset)
    assert topology.inspect(server_store, clock=lambda: time.time() + offset / 4) is Topology.SERVER


@pytest.mark.parametrize(
    "instead",
    [
        {"system.tables": LIKE_TABLES.format("SharedReplacingMergeTree")},
        {"system.settings WHERE": "(SELECT 'cloud_mode' AS name, '1' AS value) WHERE"},
    ],
)
def test_cloud_reads_what_every_replica_was_told(pretending: Bridge, instead: dict[str, str]) -> None:
    pretending.pretend(**instead)
    connection = Connection(pretending.dsn_of("analytics"))
    assert topology.inspect(connection) is Topology.CLOUD
    asked = "SELECT getSetting('select_sequential_consistency')"
    assert connection.rows(asked) == [(1,)]
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.extend(connection.rows(asked)))
    thread.start()
    thread.join()
    assert seen == [(1,)], "a client that another thread opened later"
    connection.close()
    with pytest.raises(StoreSetupError, match="leave out --cluster"):
        topology.inspect(Connection(pretending.dsn_of("analytics")), cluster="any")


@contextmanager
def balancer(ports: list[int]) -> Iterator[int]:
    """A TCP balancer on 127.0.0.1: each connection goes to the next port."""
    started, stopped = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    bound: list[int] = []
    turns = 0

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal turns
        turns += 1
        there, back = await asyncio.open_connection("127.0.0.1", ports[turns % len(ports)])
        await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        bound.append(server.sockets[0].getsockname()[1])
        started.set()
        await stopped.wait()
        server.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    assert started.wait(30)
    try:
        yield bound[0]
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()


def test_a_balancer_in_front_of_several_servers_is_refused(pretending: Bridge, tmp_path: Path) -> None:
    pretending.pretend(**{"hostName()": "'ch-1'"})
    with Bridge(tmp_path) as second:
        Connection(second.dsn_of("analytics")).close()
        second.pretend(**{"hostName()": "'ch-2'"})
        with balancer([pretending.port, second.port]) as port:
            dsn = pretending.dsn_of("analytics").replace(str(pretending.port), str(port))
            with pytest.raises(StoreSetupError, match=r"several servers answer there \(ch-1, ch-2\)"):
                topology.inspect(Connection(dsn))


def test_the_grants_script_is_sql_with_the_grants_that_are_looked_for(server_store: Connection) -> None:
    text = (ROOT / "docs" / "clickhouse-grants.sql").read_text()
    for statement in filter(str.strip, text.split(";\n")):
        server_store.rows("SELECT formatQuery({sql:String})", {"sql": statement})
    for grant in topology._GRANTS:
        assert text.count(f"{grant}") >= 2, grant


def test_the_oldest_version_is_the_documented_one() -> None:
    assert "{}.{}".format(*OLDEST_VERSION) in (ROOT / "docs" / "operations.md").read_text()
