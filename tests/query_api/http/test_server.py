"""Starting, stopping, probing and TLS, over real sockets."""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import json
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from clickhouse.connection import Connection
from clickhouse.errors import StoreError, StoreUnavailableError
from query_api.http.tls import ServerCertificate, TlsFilesError
from query_api.ingest.body import gunzip
from tests.support.api_harness import SOURCE_TOKEN, Service, event, logged, parse_reply, run, serving

TOKENS = "/api/v1/analytics/tokens"


async def until(condition: Callable[[], bool]) -> None:
    """Lets the event loop turn until `condition` holds."""
    while not condition():  # noqa: ASYNC110 - there is no event for what these wait for
        await asyncio.sleep(0)


async def is_refused(api: Service) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", api.port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


def test_stop_lets_what_is_in_flight_finish_and_takes_nothing_new(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            api.event_writer.hold = asyncio.Event()
            held = api.questions.hold["org-1"] = threading.Event()
            idle = await asyncio.open_connection("127.0.0.1", api.port)
            requests = [asyncio.create_task(api.send(event())), asyncio.create_task(api.get(TOKENS))]
            await api.event_writer.arrived.wait()
            await until(lambda: bool(api.questions.calls))
            stopping = asyncio.create_task(api.server.stop())
            await asyncio.sleep(0)
            assert await is_refused(api)
            assert not stopping.done()
            api.event_writer.hold.set()
            held.set()
            assert [(await request).status for request in requests] == [200, 200]
            assert (await requests[0]).headers["Connection"] == "close"
            await stopping
            assert await idle[0].read() == b""
            idle[1].close()

    run(scenario())


def test_a_body_half_received_at_the_stop_is_still_taken(embedded_store: Connection, tmp_path: Path) -> None:
    body = json.dumps(event()).encode()
    head = (
        f"POST /api/v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {SOURCE_TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()

    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(head + body[:10])
            await until(lambda: api.metric("http_requests_in_flight") == 1)
            stopping = asyncio.create_task(api.server.stop())
            await asyncio.sleep(0)
            assert await is_refused(api)
            ready = asyncio.create_task(reader.read())
            writer.write(body[10:])
            reply = parse_reply(await ready)
            assert (reply.status, reply.json()["accepted"]) == (200, 1)
            await stopping
            writer.close()

    run(scenario())


def test_stop_does_not_wait_longer_than_the_drain_time(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path, drain_seconds=0.05) as api:
            api.event_writer.hold = asyncio.Event()
            request = asyncio.create_task(api.send(event()))
            await api.event_writer.arrived.wait()
            with logged() as lines:
                await api.server.stop()
            assert any("longer than the drain time" in line for line in lines)
            with pytest.raises(aiohttp.ClientError):
                await request

    run(scenario())


def test_a_client_that_does_not_take_its_answer_is_given_up(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path, answer_seconds=0.1, linger_seconds=0.0) as api:
            _, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            for _ in range(3_000):
                writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
            server = api.server._http
            assert server is not None
            await until(lambda: len(server.connections) == 1)
            await until(lambda: not server.connections)
            writer.close()

    run(scenario())


def test_readiness_follows_the_store_and_is_remembered_for_a_second(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            for _ in range(5):
                reply = await api.request("GET", "/readyz")
                assert (reply.status, reply.json()) == (200, {"status": "ready"})
            assert api.readiness.checks == 1
            with logged() as lines:
                for error in (StoreUnavailableError("away"), StoreError("schema 0002 is missing")):
                    api.readiness.error = error
                    api.timer.now += 1
                    reply = await api.request("GET", "/readyz")
                    assert (reply.status, reply.code) == (503, "UNAVAILABLE")
                    assert "Retry-After" in reply.headers
                    assert str(error).encode() not in reply.body
            assert len([line for line in lines if '"not ready: away"' in line]) == 1
            assert (await api.request("GET", "/healthz")).json() == {"status": "ok"}
            api.readiness.error = None
            api.timer.now += 1
            assert (await api.request("GET", "/readyz?probe=1")).status == 200
            assert api.readiness.checks == 4

    run(scenario())


def test_readiness_does_not_wait_behind_large_bodies(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            unpacking, go_on = threading.Semaphore(0), threading.Event()

            def slow(packed: bytes, limit: int) -> bytes:
                unpacking.release()
                assert go_on.wait(20)
                return gunzip(packed, limit)

            with mock.patch("query_api.ingest.handler.gunzip", slow):
                packed = gzip.compress(json.dumps(event()).encode())
                bodies = [asyncio.create_task(api.send(packed, Content_Encoding="gzip")) for _ in range(8)]
                assert await asyncio.to_thread(unpacking.acquire, timeout=20)
                try:
                    assert (await api.request("GET", "/readyz")).status == 200
                finally:
                    go_on.set()
            assert [(await body).status for body in bodies] == [200] * 8

    run(scenario())


# --- TLS


def write_certificate(directory: Path, name: str = "localhost") -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = directory / "cert.pem", directory / "key.pem"
    key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    cert_path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return cert_path, key_path


async def served_name(api: Service, server_hostname: str | None) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", api.port, ssl=context, server_hostname=server_hostname or "")
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    attributes = x509.load_der_x509_certificate(found).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attributes[0].value)


def test_tls_serves_the_newest_certificate_that_works(embedded_store: Connection, tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path, "first")

    async def scenario() -> None:
        async with serving(embedded_store, tmp_path, tls_cert=cert, tls_key=key) as api:
            reply = await api.request("GET", "/healthz", ssl=False)
            assert reply.status == 200
            for hostname in (None, "some.name"):
                assert await served_name(api, hostname) == "first"
            write_certificate(tmp_path, "second")
            assert await served_name(api, None) == "second"
            with logged() as lines:
                working_key = key.read_bytes()
                other = tmp_path / "other"
                other.mkdir()
                _, foreign_key = write_certificate(other, "third")
                for broken in (b"", b"nonsense", foreign_key.read_bytes()):
                    key.write_bytes(broken)
                    assert await served_name(api, "x") == "second"
                    assert await served_name(api, None) == "second"
                key.unlink()
                assert await served_name(api, None) == "second"
                key.write_bytes(working_key)
                assert await served_name(api, None) == "second"
            assert len([line for line in lines if "stays as it was" in line]) == 4
            plain = await api.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"HTTP/1.1" not in plain

    run(scenario())


def test_tls_files_that_cannot_work_stop_the_start(tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path)
    for wrong_cert, wrong_key in ((cert, cert), (key, key), (cert, tmp_path / "no"), (tmp_path / "no", key)):
        with pytest.raises(TlsFilesError, match="--tls-cert"):
            ServerCertificate(wrong_cert, wrong_key)
    ServerCertificate(cert, key)
