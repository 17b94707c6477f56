"""`ingest --url` and `--jwks-url` meet servers that refuse, are away or restart, over real sockets and TLS."""

from __future__ import annotations

import asyncio
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from agentidp_analytics.dev_keys import DevKey
from agentidp_analytics.ingest_client import RemoteWriter
from clickhouse.errors import StoreError, StoreSetupError, StoreUnavailableError
from clickhouse.event import Event
from query_api.auth.token_policy import TokenPolicy
from query_api.auth.verifier import open_verifier
from tests.exporter.test_web_config import Signed, sign
from tests.support.service import INGEST_TOKEN, Service, free_port, run

EVENTS = [Event("org-a", 1_795_425_000_000, "1", "agent")]


class Server(http.server.ThreadingHTTPServer):
    """Answers POST with the `answers` in turn, and then with success; None drops the connection."""

    answers: list[tuple[int, dict[str, str]] | None]
    body: bytes | None = None  # of every answer, instead of the one that belongs to it
    seen: int = 0
    key: DevKey


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen += 1
        answer = self.server.answers.pop(0) if self.server.answers else (200, {})
        if answer is None:
            self.close_connection = True
            return
        status, headers = answer
        body = json.dumps({"accepted": 1, "rejected": []} if status == 200 else {"code": "X"}).encode()
        body = body if self.server.body is None else self.server.body
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        body = json.dumps(self.server.key.key_set()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def serving(*answers: tuple[int, dict[str, str]] | None, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.answers = list(answers)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def ca() -> Signed:
    return sign("private CA")


def context_of(ca: Signed, directory: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS with a certificate of `ca`, and the file of the authority."""
    chain, key, authority = directory / "server.pem", directory / "server.key", directory / "ca.pem"
    sign("server", ca).write(chain, key)
    ca.write(authority, directory / "ca.key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    return context, authority


def writer(port: int, scheme: str = "http", **options: Any) -> tuple[RemoteWriter, list[float], list[str]]:
    waits: list[float] = []
    told: list[str] = []
    remote = RemoteWriter(f"{scheme}://127.0.0.1:{port}", "a-token", sleep=waits.append, on_wait=told.append, **options)
    return remote, waits, told


def test_what_may_pass_is_tried_again_and_told() -> None:
    with serving((503, {"Retry-After": "3"}), (429, {}), None, (200, {})) as server:
        remote, waits, told = writer(server.server_port)
        remote.write(EVENTS)
    assert (server.seen, waits[0]) == (4, 3.0)
    assert ["503" in told[0], "429" in told[1], len(told)] == [True, True, 3]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
def test_a_refusal_ends_at_once(status: int) -> None:
    with serving((status, {})) as server:
        remote, waits, _ = writer(server.server_port)
        with pytest.raises(StoreError, match=f"answered {status}"):
            remote.write(EVENTS)
    assert (server.seen, waits) == (1, [])


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"5", b"{}", b"\xff", b"[" * 100_000])
def test_a_success_of_something_else_is_told(body: bytes) -> None:
    with serving() as server:
        server.body = body
        remote, waits, _ = writer(server.server_port)
        with pytest.raises(StoreError, match="not as this service does"):
            remote.write(EVENTS)
    assert waits == []


@pytest.mark.parametrize("wait", ["\u00b2", "Wed, 21 Oct 2026 07:28:00 GMT", "-5", "1.5", ""])
def test_a_retry_after_that_is_no_number_of_seconds_is_left_out(wait: str) -> None:
    with serving((503, {"Retry-After": wait}), (200, {})) as server:
        remote, waits, _ = writer(server.server_port)
        remote.write(EVENTS)
    assert waits == [0.25]


@pytest.mark.parametrize(
    "url",
    [
        *("http://h:99999", "http://h:abc", "http://h:0", "http://[::1", "http://a..b", "http://a b", "http://", "h"),
        *("http://user:secret@h", "http://h/path", "http://h#f", "http://h?q", "ftp://h"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused_at_once(url: str) -> None:
    with pytest.raises(StoreSetupError, match="is no address of a service") as refused:
        RemoteWriter(url, "a-token")
    assert "secret" not in str(refused.value)


def test_a_service_that_never_was_there_ends_after_seconds() -> None:
    remote, waits, told = writer(free_port())
    with pytest.raises(StoreError, match="cannot be reached") as ended:
        remote.write(EVENTS)
    assert not isinstance(ended.value, StoreUnavailableError)
    assert sum(waits) < 2
    assert len(told) == len(waits)


def test_a_service_that_answered_before_may_restart() -> None:
    with serving() as server:
        remote, waits, _ = writer(server.server_port)
        remote.write(EVENTS)
    with pytest.raises(StoreUnavailableError, match="run this again later"):
        remote.write(EVENTS)
    assert sum(waits) > 60


def test_an_unknown_certificate_ends_at_once_and_its_authority_is_the_way_out(ca: Signed, tmp_path: Path) -> None:
    context, authority = context_of(ca, tmp_path)
    with serving(tls=context) as server:
        remote, waits, _ = writer(server.server_port, "https")
        with pytest.raises(StoreError, match="--ca-file"):
            remote.write(EVENTS)
        assert waits == []
        remote, _, _ = writer(server.server_port, "https", ca_file=authority)
        remote.write(EVENTS)
    assert server.seen == 1
    (tmp_path / "no-ca").write_text("no certificate")
    with pytest.raises(StoreSetupError, match="--ca-file"):
        writer(1, "https", ca_file=tmp_path / "no-ca")


def test_an_issuer_with_a_private_authority_is_trusted_by_its_file(ca: Signed, tmp_path: Path) -> None:
    context, authority = context_of(ca, tmp_path)

    async def fetched(ca_file: Path | None, port: int) -> tuple[float, float]:
        registry = CollectorRegistry()
        url = f"https://127.0.0.1:{port}/jwks"
        policy = TokenPolicy(issuers=("https://i",), audiences=frozenset({"a"}), jwks_urls=(url,), ca_file=ca_file)
        async with open_verifier(policy, registry), asyncio.timeout(20):
            while True:
                ok, failed = (
                    registry.get_sample_value("agentidp_analytics_jwks_fetches_total", {"result": result}) or 0.0
                    for result in ("ok", "unreachable")
                )
                if ok + failed:
                    return ok, failed
                await asyncio.sleep(0.01)

    with serving(tls=context) as server:
        server.key = DevKey.generate()
        assert asyncio.run(fetched(None, server.server_port)) == (0, 1)
        assert asyncio.run(fetched(authority, server.server_port)) == (1, 0)


def test_a_wrong_token_is_one_line_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "events").write_text(json.dumps(EVENTS[0]._asdict()) + "\n")
    (tmp_path / "token").write_text("another-token-than-that\n")
    with Service(tmp_path) as service:
        arguments = ("ingest", "--url", service.url, "--token-file", str(tmp_path / "token"), str(tmp_path / "events"))
        ended = run(*arguments)
        assert ended.returncode == 1
        assert "answered 401" in ended.stderr.splitlines()[-1]
        assert INGEST_TOKEN not in ended.stderr
