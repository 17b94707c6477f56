"""One error shape, whoever refuses: the routes, the limits, or the HTTP parser; and nothing of the request repeated.

Every error body is {"code", "message", "details"?}, its status is that of the code, and it carries X-Request-Id.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from pathlib import Path
from typing import Any

import pytest

from clickhouse.connection import Connection
from query_api.http.errors import STATUS_OF_CODE
from query_api.settings import Limits
from tests.support.api_harness import SOURCE_TOKEN, Reply, Service, event, logged, parse_reply, run, serving

MARK = b"zq-MARK-qz"
TRUSTED = (
    "POST /api/v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    f"Authorization: Bearer {SOURCE_TOKEN}\r\n"
).encode()


def check_shape(reply: Reply) -> None:
    body = reply.json()
    assert body.keys() | {"details"} == {"code", "message", "details"}
    assert STATUS_OF_CODE[body["code"]] == reply.status
    assert isinstance(body["message"], str)
    assert isinstance(body.get("details", {}), dict)
    assert reply.headers["Content-Type"] == "application/json"
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", reply.headers["X-Request-Id"])
    assert "Python" not in reply.headers["Server"]


LONG = MARK * 900
UNREADABLE = {
    "garbage": MARK + b"\r\n\r\n",
    "other version": b"GET /" + MARK + b" HTTP/9.9\r\nHost: x\r\n\r\n",
    "unknown method": MARK + b" / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + MARK + b"\r\n\r\n",
    "binary": bytes(range(256)) + MARK + b"\r\n\r\n",
    "long request line": b"GET /" + LONG + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "long query": b"GET /healthz?" + LONG + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "long header": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: " + LONG + b"\r\n\r\n",
    "long authorization": b"GET /healthz HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + LONG + b"\r\n\r\n",
    "long header name": b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + LONG + b": a\r\n\r\n",
    "many headers": b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + (MARK + b": a\r\n") * 120 + b"\r\n",
    "much in headers": b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    + (b"X-A: " + MARK * 700 + b"\r\n") * 5
    + b"\r\n",
    "no host": b"GET /healthz?" + MARK + b" HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: " + MARK + b"\r\n\r\n",
    "header without colon": b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + MARK + b"\r\n\r\n",
    "space before colon": b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + MARK + b" : a\r\n\r\n",
    "nul in header": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: " + MARK + b"\0\r\n\r\n",
    "folded header": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: a\r\n " + MARK + b"\r\n\r\n",
    "length and chunked": b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + MARK,
    "two lengths": b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n" + MARK,
    "negative length": b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n" + MARK,
    "huge length": b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n" + MARK,
    "two content types": b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\nContent-Type: c/d\r\n\r\n",
    "no authority": b"GET http:" + MARK + b" HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_request_gets_json_and_is_neither_repeated_nor_logged(
    embedded_store: Connection, tmp_path: Path, name: str
) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            data = await api.raw(UNREADABLE[name])
            reply = parse_reply(data)
            check_shape(reply)
            assert (reply.status, reply.code) == (400, "VALIDATION_ERROR")
            assert MARK not in data
            assert api.exposition().count("zq-") == 0
            assert api.metric("http_requests_total", route="unmatched", method="other", code="400") + sum(
                api.metric("http_requests_total", route="/healthz", method=method, code="400")
                for method in ("GET", "POST")
            )

    with logged() as lines:
        run(scenario())
    assert lines
    assert not [line for line in lines if "zq-" in line or "Traceback" in line]


def test_a_bad_request_behind_a_good_one_does_not_spoil_it(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
            writer.write(MARK + b"\r\n\r\n")
            check_shape(parse_reply(await reader.read()))
            writer.close()
            assert (await api.request("GET", "/healthz")).status == 200

    run(scenario())


PATHS = (
    *("/", "/api", "/api/v1/analytics", "/api/v1/analytics/tokens/", "/api//v1/events", "/%68ealthz", "/healthz/.."),
    *("/api/v1/analytics/agents%2Factivity", "/api/v2/events", "/metrics", "/favicon.ico", "/.env", "/healthz;a=b"),
)


def test_other_paths_are_404_and_other_methods_405_with_allow(embedded_store: Connection, tmp_path: Path) -> None:
    async def line(api: Service, request: bytes) -> Reply:
        return parse_reply(await api.raw(request + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))

    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            for path in PATHS:
                reply = await line(api, b"GET " + path.encode())
                check_shape(reply)
                assert reply.status == 404, path
            for path, methods in api.api.routes.items():
                for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"):
                    if method not in methods:
                        reply = await line(api, method.encode() + b" " + path.encode())
                        assert reply.status == 405, (method, path)
                        assert reply.headers["Allow"] == ", ".join(sorted(methods)), (method, path)
                        if method != "HEAD":
                            check_shape(reply)
            for target in (b"OPTIONS *", b"CONNECT x:1", b"GET http://elsewhere/healthz?x"):
                reply = await line(api, target)
                assert reply.status == (200 if b"healthz" in target else 404), target
            # Passes aiohttp's parser without a URL; its own code fails there and leaves the connection open for ever.
            check_shape(parse_reply(await api.raw(b"CONNECT \r\n\r\n")))

    run(scenario())


def test_a_safe_request_id_comes_back_and_any_other_is_replaced(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path) as api:
            seen = set()
            for offered in ("a", "A.b_c-1", "x" * 64):
                reply = await api.request("GET", "/nothing", headers={"X-Request-Id": offered})
                assert reply.headers["X-Request-Id"] == offered
            for refused in ("", "x" * 65, "a b", "a\u00e9", "<x>", "a;b", "a,b"):
                reply = await api.request("GET", "/healthz", headers={"X-Request-Id": refused})
                made = reply.headers["X-Request-Id"]
                assert re.fullmatch("[0-9a-f]{32}", made), refused
                seen.add(made)
            assert len(seen) == 7

    run(scenario())


def test_a_request_of_a_closed_kind_keeps_the_connection_and_an_unread_body_ends_it(
    embedded_store: Connection, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path, linger_seconds=0.05) as api:
            two = (
                b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            answers = await api.raw(two)
            assert answers.count(b"HTTP/1.1 404") == 1
            assert answers.count(b"HTTP/1.1 200") == 1
            # Its body would otherwise be read as the next request.
            smuggled = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
            head = b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
            answers = await api.raw(head + smuggled)
            assert answers.count(b"HTTP/1.1 ") == 1
            assert parse_reply(answers).headers["Connection"] == "close"

    run(scenario())


def test_slow_headers_end_with_the_keepalive_time(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path, keepalive_seconds=0.05) as api:
            assert await api.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ") == b""
            assert await api.raw(b"") == b""
            alive = await api.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")
            assert alive.count(b"HTTP/1.1 200") == 1

    run(scenario())


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def test_beyond_the_limit_of_connections_idle_ones_give_way(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path, limits=Limits(connections=3)) as api:

            async def asks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
                writer.write(HEALTH)
                return (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")

            async def connected(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                opened = await asyncio.open_connection("127.0.0.1", api.port, local_addr=(address, 0))
                assert await asks(*opened)
                return opened

            async def is_closed(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> bool:
                try:
                    return await reader.read() == b""
                except ConnectionResetError:
                    return True

            other = await connected("127.0.0.2")
            first, second = await connected("127.0.0.1"), await connected("127.0.0.1")
            second[1].write(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
            third = await connected("127.0.0.1")
            assert await is_closed(*first), "the longest idle one of the address with most"
            fourth = await connected("127.0.0.1")
            assert await is_closed(*second), "a request without all of its headers is idle"
            assert await asks(*other)
            assert await asks(*third)
            assert await asks(*fourth)
            assert api.metric("http_connections_refused_total") == 2
            for _, writer in (other, first, second, third, fourth):
                writer.close()

    run(scenario())


def test_beyond_the_limit_of_connections_a_request_under_way_stays(embedded_store: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(embedded_store, tmp_path, limits=Limits(connections=1)) as api:
            api.event_writer.hold = asyncio.Event()
            held = asyncio.create_task(api.send(event()))
            await api.event_writer.arrived.wait()
            refused_reader, refused_writer = await asyncio.open_connection("127.0.0.1", api.port)
            with contextlib.suppress(ConnectionResetError):
                assert await refused_reader.read() == b""
            assert api.metric("http_connections_refused_total") == 1
            api.event_writer.hold.set()
            assert (await held).status == 200
            refused_writer.close()

    run(scenario())


SEEDS = (
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    TRUSTED + b"Content-Length: 2\r\n\r\n[]",
    TRUSTED + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\nTrailer: x\r\n\r\n",
    b"GET /api/v1/analytics/agents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a.b.c\r\nExpect: 100-continue\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\nrest",
)
SPLINTERS = (
    b"\r\n",
    b"\0",
    b"\xff",
    b" ",
    b":",
    b"%",
    b"?",
    b"/",
    b"Content-Length: 5\r\n",
    b"Content-Encoding: gzip\r\n",
)


def mutated(chance: random.Random) -> bytes:
    data = bytearray(chance.choice(SEEDS))
    for _ in range(chance.randrange(1, 4)):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(3):
            case 0:
                data[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                data[place:place] = chance.choice(SPLINTERS)
            case _:
                del data[place : place + chance.randrange(1, 20)]
    return bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_mutilated_requests_get_json_or_a_closed_connection(
    embedded_store: Connection, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)

    async def scenario() -> None:
        quick: dict[str, Any] = {"keepalive_seconds": 0.05, "body_seconds": 0.05, "linger_seconds": 0.02}
        async with serving(embedded_store, tmp_path, **quick) as api:
            for _ in range(8):
                requests = [mutated(chance) for _ in range(20)]
                answers = await asyncio.gather(*map(api.raw, requests), return_exceptions=True)
                for request, answer in zip(requests, answers, strict=True):
                    assert isinstance(answer, (bytes, ConnectionError)), request
                    if isinstance(answer, bytes) and answer:
                        reply = parse_reply(answer)
                        assert reply.headers["Content-Type"] == "application/json", request
                        assert reply.status in (200, 400, 401, 404, 405, 413, 415), request
            assert api.metric("http_requests_in_flight") == 0

    with logged() as lines:
        run(scenario())
    assert [line for line in lines if '"level": "error"' in line or '"exception"' in line] == []
