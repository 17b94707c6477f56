"""The bridge must be taken for a ClickHouse server by clickhouse-connect: real HTTP, real engine, real kill -9."""

from __future__ import annotations

import http.client
import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import clickhouse_connect
import lz4.frame
import pytest
from backports import zstd
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.bridge.errors import EngineError
from tests.support.bridge.process import Bridge
from tests.support.bridge.statement import parse_statement

COLUMNS = ["text", "kind", "at", "outcome", "number", "tags"]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    with Bridge(tmp_path_factory.mktemp("bridge") / "store") as running:
        yield running


@pytest.fixture
def client(bridge: Bridge) -> Iterator[Client]:
    with clickhouse_connect.get_client(dsn=bridge.dsn) as connected:
        yield connected


@pytest.fixture
def table(client: Client) -> Iterator[str]:
    create_table(client)
    yield "t"
    client.command("DROP TABLE t SYNC")


def create_table(client: Client) -> None:
    client.command(
        "CREATE TABLE t (text String, kind LowCardinality(String), at DateTime64(3, 'UTC'), "
        "outcome Enum8('success' = 1, 'failure' = 2), number UInt64, tags Array(String)) "
        "ENGINE = MergeTree PARTITION BY toYYYYMM(at) ORDER BY number "
        "SETTINGS fsync_after_insert = 1, fsync_part_directory = 1"
    )


def rows(numbers: range, at: datetime = NOON) -> list[list[Any]]:
    """Columns of made-up rows, one a number."""
    return [
        [f"row {number}" for number in numbers],
        [f"kind {number % 5}" for number in numbers],
        [at + timedelta(milliseconds=number) for number in numbers],
        ["failure" if number % 7 == 0 else "success" for number in numbers],
        list(numbers),
        [["a"] * (number % 3) for number in numbers],
    ]


def insert(client: Client, numbers: range, at: datetime = NOON) -> Any:
    return client.insert("t", rows(numbers, at), column_names=COLUMNS, column_oriented=True)


def count(client: Client) -> Any:
    return client.command("SELECT count() FROM t")


def post(
    bridge: Bridge, body: bytes = b"", *, method: str = "POST", headers: dict[str, str] | None = None, **query: str
) -> tuple[int, http.client.HTTPMessage, str]:
    """A request without the client library: status, headers, body."""
    credentials = b64encode(f"{bridge.user}:{bridge.password}".encode()).decode()
    sent = {"Authorization": f"Basic {credentials}"} if headers is None else headers
    connection = http.client.HTTPConnection("127.0.0.1", bridge.port, timeout=30)
    try:
        connection.request(method, f"/?{urlencode(query)}", body=body, headers=sent)
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()
    finally:
        connection.close()


def test_the_client_library_takes_it_for_a_server(bridge: Bridge, client: Client) -> None:
    assert client.ping()
    assert int(str(client.server_version).split(".")[0]) >= 26
    assert client.server_settings["max_threads"].value
    assert client.command("SELECT 1 + 1") == 2
    assert client.query("SELECT number, toString(number) FROM numbers(2)").result_rows == [(0, "0"), (1, "1")]
    assert post(bridge, method="GET")[2] == "Ok.\n"


def test_every_column_type_comes_back_as_it_was_sent(client: Client, table: str) -> None:
    hostile = ["", "a\n\nb", "x;y", "'", "\\", '`"', "\0", "\t", "é😀", "); FORMAT Native"]
    columns = rows(range(len(hostile)))
    columns[0] = columns[1] = hostile
    columns[5] = [[text, text] for text in hostile]
    summary = client.insert(table, columns, column_names=COLUMNS, column_oriented=True)
    assert summary.written_rows == len(hostile)
    found = client.query(f"SELECT {', '.join(COLUMNS)} FROM t ORDER BY number", tz_mode="aware").result_columns
    assert [list(column) for column in found] == columns


def test_twenty_thousand_rows_become_one_part(client: Client, table: str) -> None:
    assert insert(client, range(20_000)).written_rows == 20_000
    assert count(client) == 20_000
    parts = "SELECT count() FROM system.parts WHERE table = 't' AND database = currentDatabase() AND active"
    assert client.command(parts) == 1


@pytest.mark.parametrize("codec", ["lz4", "zstd", "gzip", False])
def test_inserts_may_be_compressed(bridge: Bridge, client: Client, table: str, codec: str | bool) -> None:
    with clickhouse_connect.get_client(dsn=bridge.dsn, compress=codec) as other:
        assert insert(other, range(1000)).written_rows == 1000
    assert client.command("SELECT sum(number) FROM t") == 499_500


@pytest.mark.parametrize(("codec", "compress"), [("lz4", lz4.frame.compress), ("zstd", zstd.compress)])
def test_a_body_of_several_frames_is_read_to_its_end(
    bridge: Bridge, client: Client, table: str, codec: str, compress: Any
) -> None:
    frames = compress(b"INSERT INTO t (number) FORMAT TSV\n1\n") + compress(b"2\n") + compress(b"3\n")
    credentials = {"X-ClickHouse-User": bridge.user, "X-ClickHouse-Key": bridge.password}
    status, headers, text = post(bridge, frames, headers=credentials | {"Content-Encoding": codec})
    assert (status, json.loads(headers["X-ClickHouse-Summary"])["written_rows"]) == (200, "3"), text
    assert client.command("SELECT sum(number) FROM t") == 6
    status, headers, _ = post(bridge, frames[:-6], headers=credentials | {"Content-Encoding": codec})
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (500, "271")
    assert count(client) == 3


def test_parameters_keep_their_types(client: Client) -> None:
    moments = [datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC)]
    found = client.query(
        "SELECT {t:String}, {d:Array(DateTime('UTC'))}, {n:UInt64} + 1",
        parameters={"t": "o'neil", "d": moments, "n": 2**53},
        tz_mode="aware",
    )
    assert found.result_rows == [("o'neil", moments, 2**53 + 1)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text_survives_as_a_parameter(client: Client, text: str) -> None:
    assert client.query("SELECT {t:String}, {a:Array(String)}", parameters={"t": text, "a": [text]}).result_rows == [
        (text, [text])
    ]


def test_long_parameters_come_as_a_form(client: Client) -> None:
    names = [f"agent-{number}" for number in range(20_000)]
    assert client.command("SELECT length({names:Array(String)})", parameters={"names": names[:100]}) == 100
    found = client.query("SELECT length({names:Array(String)}), {names:Array(String)}[-1]", parameters={"names": names})
    assert found.result_rows == [(20_000, "agent-19999")]


def test_settings_hold_for_their_own_request_only(client: Client, table: str) -> None:
    insert(client, range(10))
    threads = "SELECT getSetting('max_threads')"
    before = client.command(threads)
    assert client.query(threads, settings={"max_threads": 7}).result_rows == [(7,)]
    assert client.command(threads) == before
    fence = {"additional_table_filters": {"default.t": "kind = 'kind 1' AND text != 'o''neil'"}}
    assert client.query("SELECT number FROM t ORDER BY number", settings=fence).result_columns == [[1, 6]]
    with pytest.raises(DatabaseError) as caught:
        client.command("TRUNCATE TABLE t", settings={"readonly": 1})
    assert caught.value.code == 164
    assert count(client) == 10


def test_what_a_statement_sets_is_gone_without_a_session(bridge: Bridge) -> None:
    with clickhouse_connect.get_client(dsn=bridge.dsn, autogenerate_session_id=False) as client:
        client.command("SET max_threads = 3")
        for _ in range(4):
            assert client.command("SELECT getSetting('max_threads')") != 3


def test_a_session_keeps_its_temporary_tables(bridge: Bridge, client: Client) -> None:
    client.command("CREATE TEMPORARY TABLE mine (n UInt8)")
    client.command("INSERT INTO mine VALUES (1), (2)")
    assert client.command("SELECT sum(n) FROM mine") == 3
    with clickhouse_connect.get_client(dsn=bridge.dsn) as other, pytest.raises(DatabaseError) as caught:
        other.command("SELECT sum(n) FROM mine")
    assert caught.value.code == 60
    status, headers, _ = post(bridge, b"SELECT 1", session_id="never seen", session_check="1")
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (500, "372")


@pytest.mark.parametrize(
    ("sql", "code", "status"),
    [
        ("SELECT * FROM missing", 60, 404),
        ("INSERT INTO missing (a) FORMAT TSV\n1", 60, 404),
        ("INSERT INTO system.one (dummy) SETTINGS no_such_setting = 1 FORMAT TSV\n1", 115, 404),
        ("SELECT missing", 47, 404),
        ("SELECT missing()", 46, 404),
        ("SELECT 1 FORMAT Missing", 73, 404),
        ("SELECT {t:String}", 456, 500),
        ("SELEC 1", 62, 400),
        ("SELECT 1; SELECT 2", 62, 400),
        (" -- nothing\n", 62, 400),
        ("SELECT throwIf(1)", 395, 500),
        ("SELECT toUInt8('x')", 6, 400),
        ("CREATE USER somebody", 497, 403),
    ],
)
def test_errors_carry_code_and_status_of_a_server(bridge: Bridge, sql: str, code: int, status: int) -> None:
    answered, headers, text = post(bridge, sql.encode())
    assert (answered, headers["X-ClickHouse-Exception-Code"]) == (status, str(code)), text
    assert text.startswith(f"Code: {code}. DB::Exception: ")
    assert "(version 2" in text


def test_errors_reach_the_caller_of_the_client_library(client: Client) -> None:
    for sql, code in (("SELECT * FROM missing", 60), ("SELEC 1", 62)):
        with pytest.raises(DatabaseError) as caught:
            client.query(sql)
        assert caught.value.code == code
    with pytest.raises(DatabaseError) as caught:
        client.query("SELECT 1", settings={"no_such_setting": 1})
    assert caught.value.code == 115
    with pytest.raises(DatabaseError) as caught:
        client.query("SELECT 1", settings={"max_threads": "many"})
    assert caught.value.code == 27
    assert client.command("SELECT 1") == 1


def test_database_and_format_may_come_with_the_request(bridge: Bridge, client: Client) -> None:
    client.command("CREATE DATABASE other")
    query = b"SELECT currentDatabase() AS d"
    status, headers, text = post(bridge, query, database="other", default_format="JSONEachRow", query_id="q-1")
    assert (status, text) == (200, '{"d":"other"}\n')
    assert headers["X-ClickHouse-Format"] == "JSONEachRow"
    assert headers["X-ClickHouse-Query-Id"] == "q-1"
    assert post(bridge, query)[2] == "default\n"
    assert post(bridge, query, database="missing")[0] == 404
    client.command("DROP DATABASE other")


def test_get_reads_and_never_writes(bridge: Bridge) -> None:
    assert post(bridge, method="GET", query="SELECT 1")[2] == "1\n"
    status, headers, _ = post(bridge, method="GET", query="CREATE TABLE g (n UInt8) ENGINE = Memory")
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (500, "164")


def test_an_insert_the_engine_refuses_is_an_error(client: Client, table: str) -> None:
    columns = rows(range(120))
    columns[2] = [datetime(2015 + number // 12, number % 12 + 1, 1, tzinfo=UTC) for number in range(120)]
    with pytest.raises(DatabaseError) as caught:
        client.insert(table, columns, column_names=COLUMNS, column_oriented=True)
    assert caught.value.code == 252
    assert count(client) == 0
    several = {"max_partitions_per_insert_block": 0}
    client.insert(table, columns, column_names=COLUMNS, column_oriented=True, settings=several)
    assert count(client) == 120


def test_dropping_a_partition(client: Client, table: str) -> None:
    insert(client, range(5))
    insert(client, range(5, 12), NOON + timedelta(days=40))
    client.command("ALTER TABLE t DROP PARTITION {p:String}", parameters={"p": "202603"})
    assert client.query("SELECT min(number), count() FROM t").result_rows == [(5, 7)]


def test_eight_threads_at_once(bridge: Bridge, client: Client, table: str) -> None:
    together = threading.Barrier(8)

    def work(thread: int) -> int:
        with clickhouse_connect.get_client(dsn=bridge.dsn, autogenerate_session_id=False) as own:
            together.wait()
            written = 0
            for batch in range(5):
                start = (thread * 5 + batch) * 100
                written += insert(own, range(start, start + 100)).written_rows
                found = own.query(
                    "SELECT count(), {mark:UInt64} FROM t "
                    "WHERE number >= {start:UInt64} AND number < {start:UInt64} + 100",
                    parameters={"start": start, "mark": thread},
                    settings={"max_threads": thread + 1},
                )
                assert found.result_rows == [(100, thread)]
            return written

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 4000
    assert client.query("SELECT count(), uniqExact(number) FROM t").result_rows == [(4000, 4000)]


@pytest.mark.parametrize(
    "headers",
    [
        {"X-ClickHouse-User": "default", "X-ClickHouse-Key": "wrong"},
        {"X-ClickHouse-User": "nobody", "X-ClickHouse-Key": "secret"},
        {"Authorization": "Basic " + b64encode(b"default:").decode()},
        {"Authorization": "Basic !"},
        {"Authorization": "Bearer secret"},
        {},
    ],
)
def test_other_credentials_are_refused(bridge: Bridge, headers: dict[str, str]) -> None:
    status, answered, text = post(bridge, b"SELECT 1", headers=headers)
    assert (status, answered["X-ClickHouse-Exception-Code"]) == (403, "516")
    assert "secret" not in text


def test_credentials_in_headers_and_url(bridge: Bridge) -> None:
    with pytest.raises(DatabaseError) as caught:
        clickhouse_connect.get_client(dsn=bridge.dsn.replace("secret", "wrong"))
    assert caught.value.code == 516
    assert post(bridge, b"SELECT 1", headers={"X-ClickHouse-User": "default", "X-ClickHouse-Key": "secret"})[0] == 200
    assert post(bridge, b"SELECT 1", headers={}, user="default", password="secret")[0] == 200


def test_an_insert_fails_before_or_after_it_was_carried_out(bridge: Bridge, client: Client, table: str) -> None:
    bridge.fail("before", count=2)
    for _ in range(2):
        with pytest.raises(DatabaseError) as caught:
            insert(client, range(1))
        assert caught.value.code == 252
    assert count(client) == 0
    bridge.fail("after", table="t")
    with pytest.raises(DatabaseError) as caught:
        insert(client, range(1))
    assert caught.value.code == 319
    assert count(client) == 1
    bridge.fail("before", table="somewhere_else")
    insert(client, range(1, 2))
    bridge.reset()
    assert count(client) == 2


def test_a_dropped_answer_makes_the_client_library_insert_twice(bridge: Bridge, client: Client, table: str) -> None:
    bridge.fail("drop")
    insert(client, range(1))
    assert count(client) == 2


def test_an_insert_hangs_until_reset(bridge: Bridge, client: Client, table: str) -> None:
    bridge.fail("hang")
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(insert, client, range(1))
        bridge.wait_hanging()
        with clickhouse_connect.get_client(dsn=bridge.dsn) as other:
            assert count(other) == 0
        assert not hanging.done()
        bridge.reset()
        with pytest.raises(DatabaseError):
            hanging.result()
    assert count(client) == 0


def test_an_insert_may_land_after_its_client_gave_up(bridge: Bridge, client: Client, table: str) -> None:
    bridge.fail("hang", table="t")
    connection = http.client.HTTPConnection("127.0.0.1", bridge.port)
    connection.request("POST", "/?user=default&password=secret", b"INSERT INTO t (number) FORMAT TSV\n1\n")
    bridge.wait_hanging()
    connection.close()
    assert count(client) == 0
    bridge.reset(land=True)
    assert count(client) == 1


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    bridge = Bridge(tmp_path / "store").start()
    acknowledged: list[int] = []
    enough = threading.Event()

    def write(first: int) -> None:
        with clickhouse_connect.get_client(dsn=bridge.dsn, query_retries=0) as own:
            for start in range(first, first + 1_000_000, 10):
                insert(own, range(start, start + 10))
                acknowledged.append(start)
                if len(acknowledged) >= 40:
                    enough.set()

    try:
        with clickhouse_connect.get_client(dsn=bridge.dsn) as client:
            create_table(client)
        with ThreadPoolExecutor(2) as pool:
            writers = [pool.submit(write, first) for first in (0, 1_000_000)]
            assert enough.wait(30)
            bridge.kill()
            for writer in writers:
                assert isinstance(writer.exception(), OperationalError)
        port = bridge.port
        bridge.restart()
        assert bridge.port == port
        with clickhouse_connect.get_client(dsn=bridge.dsn) as client:
            found = client.query("SELECT number FROM t").result_columns[0]
        assert {start + offset for start in acknowledged for offset in range(10)} <= set(found)
    finally:
        bridge.stop()


def test_a_store_that_cannot_be_opened_is_reported(tmp_path: Path, bridge: Bridge) -> None:
    with pytest.raises(RuntimeError, match="did not start"):
        Bridge(bridge.path).start()
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match="FileExistsError"):
        Bridge(tmp_path / "file").start()


@pytest.mark.parametrize(
    ("text", "table", "data", "infile_at"),
    [
        ("INSERT INTO t FORMAT TSV\n1", "t", "1", "FORMAT"),
        ("insert into `d`.`t` (`format`, a) format JSONEachRow {}", "d.t", "{}", "format JSON"),
        ("INSERT INTO TABLE t (a) SETTINGS x = 'FORMAT' FORMAT TSV \r\n\n1", "t", "\n1", "SETTINGS"),
        ("/* FORMAT */ INSERT INTO t -- FORMAT\n FORMAT Native\n\n\n", "t", "\n\n", "FORMAT Native"),
    ],
)
def test_the_data_of_an_insert_is_found(text: str, table: str, data: str, infile_at: str) -> None:
    statement = parse_statement(text.encode())
    assert statement.table == table
    assert statement.data == data.encode()
    assert statement.infile_at == text.index(infile_at)


def test_the_format_of_an_answer_is_found() -> None:
    assert parse_statement(b"SELECT 'FORMAT TSV', format('{}', 1) FORMAT JSON;").format == "JSON"
    assert parse_statement(b"SELECT a FROM (SELECT 1 AS a)").format == ""
    assert not parse_statement(b"ALTER TABLE t DROP PARTITION 1").returns_rows
    with pytest.raises(EngineError):
        parse_statement(b"INSERT INTO t")
