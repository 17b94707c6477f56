"""How a server is reached: what goes over the wire, and what a DSN may say about it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clickhouse.connection import Connection
from clickhouse.errors import StoreError, StoreSetupError
from clickhouse.schema import migrate
from tests.exporter.test_web_config import sign
from tests.support.bridge.process import Bridge

PASSWORD = "a-secret-password"
CLIENT_HELLO = 0x16


@contextlib.contextmanager
def listening(answer_with: bytes = b"") -> Iterator[tuple[int, list[bytes]]]:
    """A bare socket on a port that says nothing about TLS, and all that it was sent; each caller is hung up on."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        heard.append(connection.recv(65536))
                        connection.sendall(answer_with)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield server.getsockname()[1], heard
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("options", ["", "?verify=false", "?secure=true", "?secure=1&verify=true"])
@pytest.mark.parametrize("scheme", ["https", "clickhouses"])
def test_a_scheme_with_tls_speaks_tls_on_every_port(scheme: str, options: str) -> None:
    with listening() as (port, heard), pytest.raises(StoreError):
        Connection(f"{scheme}://user:{PASSWORD}@127.0.0.1:{port}/analytics{options}")
    assert heard
    for sent in heard:
        assert sent[0] == CLIENT_HELLO, sent[:80]
        assert PASSWORD.encode() not in sent
        assert base64.b64encode(f"user:{PASSWORD}".encode()) not in sent


@pytest.mark.parametrize("options", ["", "?secure=false", "?compress=false"])
@pytest.mark.parametrize("scheme", ["http", "clickhouse"])
def test_a_scheme_without_tls_speaks_http(scheme: str, options: str) -> None:
    with listening() as (port, heard), pytest.raises(StoreError):
        Connection(f"{scheme}://user:{PASSWORD}@127.0.0.1:{port}/analytics{options}")
    assert heard
    assert all(sent.startswith(b"POST /") for sent in heard)


@pytest.mark.parametrize(
    ("dsn", "named"),
    [
        ("https://127.0.0.1:1/db?secure=false", "...secure: "),
        ("clickhouse://127.0.0.1:1/db?secure=true", "...secure: "),
        ("http://127.0.0.1:1/db?verify=true", "...verify: "),
        ("http://127.0.0.1:1/db?ca_cert=/etc/ca.pem", "...ca_cert: "),
        ("https://127.0.0.1:1/db?secure=maybe", "...secure: "),
        ("https://127.0.0.1:1/db?verify=on", "...verify: "),
        ("https://127.0.0.1:1/db?ca_cert=/nowhere/ca.pem", "ca.pem"),
        ("https://127.0.0.1:1/db?interface=http", "...interface: "),
        # What the program sets itself: each of these could cut a count, or change when an insert counts as failed.
        ("http://127.0.0.1:1/db?query_limit=10", "...query_limit: "),
        ("http://127.0.0.1:1/db?send_receive_timeout=1", "...send_receive_timeout: "),
        ("http://127.0.0.1:1/db?session_id=x", "...session_id: "),
        ("http://127.0.0.1:1/db?compress=nonsense", "127.0.0.1:1/db"),
        ("http://127.0.0.1:port/db", "port"),
        ("http://127.0.0.1:99999/db", "port"),
        ("http://[::1/db", "host and port"),
        ("http:///db", "host and port"),
        (f"http://user:half/{PASSWORD}@127.0.0.1:1/db", "percent-encode"),
        (f"http://user:12?{PASSWORD}@127.0.0.1:1/db", "percent-encode"),
        (f"http://user:12#{PASSWORD}@127.0.0.1:1/db", "percent-encode"),
        (f"http://user:{PASSWORD}@127.0.0.1:1/db?access_token={PASSWORD}", "token"),
    ],
)
def test_a_dsn_that_contradicts_itself_is_refused(dsn: str, named: str) -> None:
    with pytest.raises(StoreSetupError) as raised:
        Connection(dsn)
    assert "--dsn" in str(raised.value)
    assert named in str(raised.value)
    assert PASSWORD not in str(raised.value)


@pytest.mark.parametrize(
    "answer", [b"", b"220 mail.example ESMTP\r\n", b"HTTP/1.0 200 OK\r\n\r\n<html>", b"HTTP/1.0 404 No\r\n\r\n"]
)
def test_what_is_no_clickhouse_server_is_a_wrong_setting(answer: bytes) -> None:
    with listening(answer) as (port, _), pytest.raises(StoreSetupError) as raised:
        Connection(f"http://user:{PASSWORD}@127.0.0.1:{port}/db")
    assert str(raised.value).startswith(f"--dsn http://127.0.0.1:{port}/db: ")
    assert PASSWORD not in str(raised.value)


@pytest.fixture
def tls_bridge(bridge: Bridge, tmp_path: Path) -> Iterator[str]:
    """The authority of a relay that speaks only TLS and has the bridge behind it; `tmp_path/ca.crt` signed it."""
    authority = sign("test CA")
    authority.write(tmp_path / "ca.crt", tmp_path / "ca.key")
    sign("server", authority).write(tmp_path / "server.crt", tmp_path / "server.key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    loop = asyncio.new_event_loop()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_bridge = await asyncio.open_connection("127.0.0.1", bridge.port)
        await asyncio.gather(copy(reader, to_bridge), copy(behind, writer))

    server = loop.run_until_complete(asyncio.start_server(relay, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield f"{bridge.user}:{bridge.password}@127.0.0.1:{server.sockets[0].getsockname()[1]}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    server.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_a_database_is_made_and_migrated_over_tls_alone(tls_bridge: str, tmp_path: Path) -> None:
    dsn = f"clickhouses://{tls_bridge}/made%20over_tls?ca_cert={tmp_path / 'ca.crt'}"
    connection = Connection(dsn)
    assert migrate(connection)
    assert connection.rows("SELECT currentDatabase()") == [("made over_tls",)]
    connection.close()


def test_a_certificate_that_nobody_vouches_for_is_refused(tls_bridge: str) -> None:
    with pytest.raises(StoreError, match="CERTIFICATE_VERIFY_FAILED"):
        Connection(f"https://{tls_bridge}/default")
    connection = Connection(f"https://{tls_bridge}/default?verify=false")
    assert connection.rows("SELECT 1") == [(1,)]
    connection.close()
