from __future__ import annotations

import asyncio
import logging
import socket
import zlib
from contextlib import suppress

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from clickhouse.errors import StoreUnavailableError
from exporter import runner, server
from exporter.metrics import ExporterMetrics
from exporter.refresher import Refresher
from exporter.server import build_app
from tests.support.exporter_harness import (
    Clock,
    Running,
    Store,
    curl,
    curl_status,
    running,
    samples,
    store_of,
    tenant_series,
)

OPENMETRICS = "Accept: application/openmetrics-text;version=1.0.0,*/*;q=0.1"
TEXT = "Accept: text/plain"


def test_all_four_bodies_have_the_same_samples_and_curl_sees_every_line() -> None:
    async def scenario() -> None:
        async with running(store_of(2_345), clock=Clock()) as exporter:
            text, unpacked_text, openmetrics, unpacked_openmetrics = [
                (await curl(*encoding, "--header", accept, exporter.url())).decode()
                for accept in (TEXT, OPENMETRICS)
                for encoding in ((), ("--compressed",))
            ]
            raw = await curl("--header", "Accept-Encoding: gzip", "--header", OPENMETRICS, exporter.url())
        for body in (text, unpacked_text):
            assert "# EOF" not in body
        for body in (openmetrics, unpacked_openmetrics):
            assert body.endswith("\n# EOF\n")
            assert body.count("# EOF") == 1
        parsed = [samples(body) for body in (text, unpacked_text, openmetrics, unpacked_openmetrics)]
        assert sum(series.startswith("agentidp_tenant_") for series in parsed[1]) == 6 * 2_345
        for series in parsed:  # the only ones that differ from one scrape to the next
            del series['agentidp_analytics_scrapes_total{format="text"}']
            del series['agentidp_analytics_scrapes_total{format="openmetrics"}']
        assert parsed[0] == parsed[1] == parsed[2] == parsed[3]
        member = zlib.decompressobj(wbits=31)
        assert samples(member.decompress(raw).decode()).keys() >= parsed[0].keys()
        assert (member.eof, member.unused_data) == (True, b"")

    asyncio.run(scenario())


def test_promtool_finds_nothing_to_complain_about() -> None:
    async def scenario() -> None:
        async with running(store_of(300)) as exporter:
            body = await curl("--header", TEXT, exporter.url())
        process = await asyncio.create_subprocess_exec(
            "promtool",
            "check",
            "metrics",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        complaints, _ = await process.communicate(body)
        assert (process.returncode, complaints) == (0, b"")

    asyncio.run(scenario())


def test_the_openmetrics_body_is_accepted_by_a_strict_parser() -> None:
    async def scenario() -> None:
        async with running(store_of(300)) as exporter:
            Histogram("agentidp_analytics_work_seconds", "Work.", registry=exporter.registry).observe(0.2)
            body = (await curl("--header", OPENMETRICS, exporter.url())).decode()
        families = {family.name: family for family in parse_openmetrics(body)}
        assert len(families["agentidp_tenant_tokens_issued"].samples) == 300
        assert families["agentidp_tenant_tokens_issued"].type == "counter"
        assert families["agentidp_tenant_month_tokens"].type == "gauge"
        assert families["agentidp_analytics_work_seconds"].type == "histogram"
        assert "_created" not in body

    asyncio.run(scenario())


def test_no_created_series_in_text_either() -> None:
    async def scenario() -> None:
        async with running(store_of(1)) as exporter:
            Counter("agentidp_analytics_work_total", "Work.", ["kind"], registry=exporter.registry).labels("x").inc()
            body = (await curl(exporter.url())).decode()
        assert 'agentidp_analytics_work_total{kind="x"} 1.0' in body
        assert "_created" not in body

    asyncio.run(scenario())


def headers_of(response: bytes) -> dict[str, str]:
    lines = response.decode().splitlines()[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines) if value}


def test_headers_of_a_scrape() -> None:
    async def scenario() -> None:
        async with running(store_of(3)) as exporter:
            plain = headers_of(await curl("--head", exporter.url()))
            packed = headers_of(await curl("--head", "--compressed", "--header", OPENMETRICS, exporter.url()))
            body = await curl(exporter.url())
        assert plain["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert plain["vary"] == packed["vary"] == "Accept, Accept-Encoding"
        assert "content-encoding" not in plain
        assert abs(int(plain["content-length"]) - len(body)) < 32, "the age has as many digits as it likes"
        assert packed["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert packed["content-encoding"] == "gzip"
        assert int(packed["content-length"]) < int(plain["content-length"])

    asyncio.run(scenario())


def test_readiness_waits_for_the_first_snapshot_and_health_does_not() -> None:
    async def scenario() -> None:
        store = store_of(1)
        store.error = StoreUnavailableError("not yet")
        async with running(store) as exporter:
            assert await curl_status(exporter.url("/-/healthy")) == 200
            assert await curl_status(exporter.url("/-/ready")) == 503
            assert await curl_status(exporter.url()) == 200
            store.error = None
            await exporter.refresher.refresh_once()
            assert await curl_status(exporter.url("/-/ready")) == 200
            store.error = StoreUnavailableError("gone again")
            await exporter.refresher.refresh_once()
            assert await curl_status(exporter.url("/-/ready")) == 200

    asyncio.run(scenario())


def test_pages_and_methods() -> None:
    async def scenario() -> None:
        async with running(store_of(1)) as exporter:
            landing = (await curl(exporter.url("/"))).decode()
            for path in ("/metrics", "/-/healthy", "/-/ready"):
                assert f'href="{path}"' in landing
                assert await curl_status(exporter.url(path)) == 200
                assert await curl_status("--head", exporter.url(path)) == 200
                for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
                    assert await curl_status("--request", method, exporter.url(path)) == 405
            assert "<script" not in landing
            refused = await curl("--head", "--request", "POST", exporter.url())
            assert headers_of(refused)["allow"] == "GET, HEAD"
            for path in ("/nothing", "/metrics/", "//metrics", "/-/quit"):
                assert await curl_status("--path-as-is", exporter.url(path)) == 404

    asyncio.run(scenario())


async def exchange(exporter: Running, request: bytes) -> bytes:
    """All that comes back for raw bytes, read to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", exporter.port)
    writer.write(request)
    await writer.drain()
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


END = b"Connection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /HOSTILE HTTP/1.1\r\nHost: x\r\n" + END, 404),
        (b"POST /HOSTILE HTTP/1.1\r\nHost: x\r\n" + END, 404),
        (b"HEAD /HOSTILE HTTP/1.1\r\nHost: x\r\n" + END, 404),
        (b"GET /metricsx HTTP/1.1\r\nHost: x\r\nExpect: HOSTILE\r\n" + END, 404),
        (b"GET /%ff%HOSTILE HTTP/1.1\r\nHost: x\r\n" + END, 404),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Encoding: HOSTILE\r\nContent-Length: 3\r\n" + END + b"abc", 405),
        (b"HOSTILE /metrics HTTP/1.1\r\nHost: x\r\n" + END, 400),
        (b"GET /HOSTILE HTTP/9.9\r\n" + END, 400),
        (b"GET http://[HOSTILE/ HTTP/1.1\r\nHost: x\r\n" + END, 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization HOSTILE: x\r\n" + END, 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: HOSTILE\r\n" + END, 400),
        (b"GET /" + b"HOSTILE" * 5_000 + b" HTTP/1.1\r\nHost: x\r\n" + END, 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: " + b"HOSTILE" * 5_000 + b"\r\n" + END, 400),
        (b"\x16\x03\x01HOSTILE\r\n\r\n", 400),
    ],
)
def test_no_answer_and_no_log_line_repeats_the_request(
    request_bytes: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def scenario() -> None:
        async with running(store_of(1)) as exporter:
            answer = await exchange(exporter, request_bytes)
        assert answer.split(b" ")[1] == str(status).encode()
        assert b"HOSTILE" not in answer

    asyncio.run(scenario())
    assert "HOSTILE" not in caplog.text


async def slow_reader(exporter: Running) -> socket.socket:
    """A client that asks for everything, uncompressed, and then reads one byte."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", exporter.port))
    await loop.sock_sendall(client, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await loop.sock_recv(client, 1) == b"H"
    return client


async def free_again(exporter: Running) -> None:
    """Waits until a place for a scrape is free: the server notices a lost client when it next writes."""
    async with asyncio.timeout(10):
        while await curl_status("--head", exporter.url()) != 200:
            pass


def test_scrapes_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_MAX_SCRAPES", 3)

    async def scenario() -> None:
        async with running(store_of(20_000), max_tenants=20_000) as busy:
            clients = [await slow_reader(busy) for _ in range(3)]
            answer = await curl("--include", busy.url())
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert headers_of(answer)["retry-after"] == "1"
            assert await curl_status(busy.url("/-/healthy")) == 200
            assert busy.registry.get_sample_value("agentidp_analytics_scrapes_refused_total", {"reason": "busy"}) == 1
            for client in clients:
                client.close()
            await free_again(busy)

    asyncio.run(scenario())


def test_a_client_that_does_not_read_is_cut_off_and_has_seen_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_MAX_SCRAPES", 1)
    monkeypatch.setattr(server, "_WRITE_SECONDS", 0.1)

    async def scenario() -> None:
        clock, store = Clock(), store_of(20_000)
        store.published.clear()
        async with running(store, clock=clock, max_tenants=20_000) as patient:
            client = await slow_reader(patient)
            await free_again(patient)
            monkeypatch.setattr(server, "_WRITE_SECONDS", 60.0)
            received = 0
            loop = asyncio.get_running_loop()
            with suppress(ConnectionResetError):
                while chunk := await loop.sock_recv(client, 1 << 20):
                    received += len(chunk)
            client.close()
            clock.now += 1_000
            await patient.refresher.refresh_once()
            body = await curl(patient.url())
            assert 0 < received < len(body)
            assert samples(body.decode())[tenant_series("tokens_issued_total", "tenant-00001")] == "0"

    asyncio.run(scenario())


async def connect(exporter: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", exporter.port)


async def is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await asyncio.wait_for(reader.read(), 10) == b""
    except ConnectionResetError:
        return True


def test_idle_connections_give_way_to_a_scrape() -> None:
    async def scenario() -> None:
        async with running(store_of(1), server_options={"max_connections": 3}) as exporter:
            idle = [await connect(exporter) for _ in range(3)]
            idle[1][1].write(b"GET /metrics HTTP/1.1\r\nX-Slow: ")
            assert [await curl_status(exporter.url()) for _ in range(2)] == [200, 200]
            assert await is_closed(idle[0][0])
            for _, writer in idle:
                writer.close()

    asyncio.run(scenario())


def test_without_an_idle_connection_a_new_one_is_closed_at_once() -> None:
    async def scenario() -> None:
        async with running(store_of(20_000), max_tenants=20_000, server_options={"max_connections": 1}) as exporter:
            client = await slow_reader(exporter)
            reader, writer = await connect(exporter)
            assert await is_closed(reader)
            writer.close()
            client.close()

    asyncio.run(scenario())


def test_a_connection_that_sends_no_request_in_time_is_closed() -> None:
    async def scenario() -> None:
        async with running(store_of(1), server_options={"keepalive_timeout": 0.05}) as exporter:
            assert await exchange(exporter, b"") == b""
            assert await exchange(exporter, b"GET /metrics HTTP/1.1\r\nX-Slow: ") == b""

    asyncio.run(scenario())


def test_a_client_that_takes_no_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_ANSWER_SECONDS", 0.1)

    async def scenario() -> None:
        async with running(store_of(1)) as exporter:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", exporter.port))

            async def ask_for_ever() -> None:
                while True:
                    await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000)

            with pytest.raises(ConnectionError):
                await asyncio.wait_for(ask_for_ever(), 20)
            client.close()

    asyncio.run(scenario())


def test_a_registry_with_a_tenant_family_is_refused() -> None:
    registry = CollectorRegistry()
    Counter("agentidp_tenant_tokens_issued_total", "Twice.", registry=registry)
    refresher = Refresher(Store(), ExporterMetrics(registry, "1"))
    with pytest.raises(ValueError, match="agentidp_tenant_tokens_issued"):
        build_app(refresher, registry)
