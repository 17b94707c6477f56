"""POST /api/v1/events over real HTTP: who may send, what is taken, and that nothing half sent is stored."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from clickhouse.connection import Connection
from clickhouse.errors import StoreUnavailableError
from query_api.ingest.formats import MAX_REASONS
from query_api.settings import Limits, Rate
from tests.conftest import empty
from tests.support.api_harness import SOURCE_TOKEN, Reply, Service, event, parse_reply, run, serving

TODAY = "/api/v1/analytics/tokens?days=1"
POST = b"POST /api/v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
TRUSTED = POST + f"Authorization: Bearer {SOURCE_TOKEN}\r\n".encode()


@pytest.fixture
def connection(embedded_store: Connection) -> Connection:
    """The embedded store will do: what the two kinds do differently is below the inlet."""
    return empty(embedded_store)


async def count_today(api: Service, tenant: str = "org-1") -> int:
    count: int = (await api.get(TODAY, tenant=tenant)).json()["data"][0]["count"]
    return count


def test_every_format_and_coding_is_stored_and_counted_once(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            cloud = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
            sent: list[tuple[Any, str]] = [
                (event(1), "application/json"),
                ([event(2), event(1)], "APPLICATION/JSON; charset=utf-8"),
                ({"events": [event(3)]}, "application/json;x=y"),
                (json.dumps(event(4)).encode() + b"\n" + json.dumps(event(5)).encode(), "application/x-ndjson"),
                ({**cloud, "data": event(6)}, "application/cloudevents+json"),
                ([{**cloud, "data": event(7)}, {**cloud, "data": event(7)}], "application/cloudevents-batch+json"),
            ]
            for body, media_type in sent:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                for coding, packed in {
                    "identity": data,
                    "gzip": gzip.compress(data),
                    "X-GZIP": gzip.compress(data),
                }.items():
                    reply = await api.send(packed, Content_Type=media_type, Content_Encoding=coding)
                    assert (reply.status, reply.json()["rejected"]) == (200, []), (media_type, coding)
            assert await count_today(api) == 7
            assert api.metric("ingest_events_accepted_total") == 27
            assert api.metric("ingest_last_accepted_timestamp_seconds") == api.clock.now

    run(scenario())


def test_other_media_types_and_codings_are_415(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            for media_type in (
                "text/plain",
                "application/jsonx",
                "",
                "*/*",
                "application/json,x",
                "multipart/form-data",
            ):
                reply = await api.send(event(), Content_Type=media_type)
                assert (reply.status, reply.code) == (415, "UNSUPPORTED_MEDIA_TYPE"), media_type
            body = json.dumps(event()).encode()
            head = b"POST /api/v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n" % len(body)
            untyped = head + f"Authorization: Bearer {SOURCE_TOKEN}\r\n\r\n".encode() + body
            assert parse_reply(await api.raw(untyped)).status == 415
            for coding in ("deflate", "br", "zstd", "gzip, gzip", "gzip;q=1"):
                reply = await api.send(event(), Content_Encoding=coding)
                assert (reply.status, reply.headers["Accept-Encoding"]) == (415, "gzip"), coding
            assert api.event_writer.written == []

    run(scenario())


def test_valid_events_are_taken_and_the_others_explained(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            reply = await api.send([event(1), event(2, agent_id=None, outcome="maybe"), 7, event(3)])
            assert reply.status == 200
            assert reply.json().keys() == {"accepted", "rejected"}
            assert reply.json()["accepted"] == 2
            found = [(entry["index"], entry["pointer"], entry["code"]) for entry in reply.json()["rejected"]]
            assert found == [(1, "/agent_id", "required"), (1, "/outcome", "enum"), (2, "", "type")]
            assert await count_today(api) == 2
            assert api.metric("ingest_events_rejected_total", reason="required") == 1
            assert api.metric("ingest_events_rejected_total", reason="type") == 1

    run(scenario())


def test_nothing_valid_is_400_with_the_same_list(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            mixed = (await api.send([event(1), event(1, event_id=None)])).json()["rejected"]
            reply = await api.send([event(1, event_id=None)])
            assert (reply.status, reply.code) == (400, "VALIDATION_ERROR")
            assert reply.json()["details"] == {"rejected": [{**mixed[0], "index": 0}]}
            assert (await api.send(b"")).status == 400
            assert (await api.send({"events": 5})).json()["details"] == {"pointer": "/events"}
            assert api.metric("http_requests_total", route="/api/v1/events", method="POST", code="500") == 0

    run(scenario())


def test_an_empty_batch_is_accepted(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            empty = {
                b"[]": "application/json",
                b'{"events": []}': "application/json",
                b"\n \r\n": "application/x-ndjson",
                b"": "application/x-ndjson",
                b"[ ]": "application/cloudevents-batch+json",
            }
            for body, media_type in empty.items():
                reply = await api.send(body, Content_Type=media_type)
                assert (reply.status, reply.json()) == (200, {"accepted": 0, "rejected": []}), body
                assert reply.headers["X-Rejected"] == "0"
            assert api.event_writer.written == []
            assert api.metric("ingest_last_accepted_timestamp_seconds") == 0

    run(scenario())


def test_a_thousand_reasons_are_told_and_all_rejected_are_counted(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            batch = [event(number) if number % 2 else {} for number in range(4_000)]
            reply = await api.send(batch)
            assert reply.json()["accepted"] == 2_000
            assert len(reply.json()["rejected"]) == MAX_REASONS
            assert reply.headers["X-Rejected"] == "2000"
            assert await count_today(api) == 2_000
            assert api.metric("ingest_events_rejected_total", reason="required") == 2_000

            hostile = gzip.compress(b"[" + b",".join([b"{}"] * 50_000) + b"]")
            reply = await api.send(hostile, Content_Encoding="gzip")
            assert (reply.status, reply.headers["X-Rejected"]) == (400, "50000")
            assert len(reply.json()["details"]["rejected"]) == MAX_REASONS
            assert len(reply.body) < 150_000

    run(scenario())


def test_a_body_of_nothing_but_brackets_is_refused_before_it_is_parsed(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            brackets = b"[" + b"[]," * 3_300_000 + b"[]]"
            assert len(brackets) < Limits().body_bytes
            ignored = json.dumps(event(1))[:-1].encode() + b', "x": ' + brackets[: -len(b",[]]")] + b"]}"
            for body in (brackets, ignored):
                reply = await api.send(body)
                assert (reply.status, reply.code) == (413, "PAYLOAD_TOO_LARGE")
            lines = json.dumps(event(2)).encode() + b"\n" + ignored[:900_000]
            reply = await api.send(lines, Content_Type="application/x-ndjson")
            assert (reply.json()["accepted"], reply.headers["X-Rejected"]) == (1, "1")
            # The largest batch that the limits allow, every field given and two more, is none of these.
            full = event(1, outcome="success", grant_type="client_credentials", scope="a b", client_ip="192.0.2.1",
                         user_agent="x", source="y", expires_in=60, details={"a": 1}, flags=[1, 2])  # fmt: skip
            most = json.dumps([full] * 30_000, separators=(",", ":")).encode()
            assert (await api.send(most)).json() == {"accepted": 30_000, "rejected": []}

    run(scenario())


def test_only_a_known_source_gets_in(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            wrong = (SOURCE_TOKEN + "x", SOURCE_TOKEN[:-1], SOURCE_TOKEN.upper(), "", "x", f"{SOURCE_TOKEN} x", "ü")
            for token in wrong:
                reply = await api.send(event(), token=token)
                assert (reply.status, reply.code) == (401, "UNAUTHORIZED"), token
                assert reply.headers["WWW-Authenticate"].startswith('Bearer realm="agentidp-analytics", error=')
            access = await api.send(event(), token=api.access_token())
            assert access.status == 401
            for headers in ({}, {"Authorization": "Basic eA=="}, {"Authorization": SOURCE_TOKEN}):
                reply = await api.request("POST", "/api/v1/events", json=event(), headers=headers)
                assert (reply.status, reply.code) == (401, "UNAUTHORIZED")
                assert "error" not in reply.headers["WWW-Authenticate"]
            two = f"Authorization: Bearer {SOURCE_TOKEN}\r\n".encode()
            reply = parse_reply(await api.raw(TRUSTED + two + b"Connection: close\r\nContent-Length: 0\r\n\r\n"))
            assert (reply.status, reply.code) == (400, "VALIDATION_ERROR")
            assert (await api.get(TODAY, headers={"Authorization": f"Bearer {SOURCE_TOKEN}"})).status == 401
            assert api.event_writer.written == []
            assert api.metric("auth_failures_total", reason="source_token") == len(wrong) + 1
            assert api.metric("auth_failures_total", reason="no_credentials") == 1

    run(scenario())


def test_without_a_token_file_ingest_is_off(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path, sources=None) as api:
            reply = await api.send(event())
            assert (reply.status, reply.code) == (403, "FORBIDDEN")
            assert "--ingest-token-file" in reply.json()["message"]

    run(scenario())


def test_credentials_come_before_parameters_and_these_before_the_body(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            path = "/api/v1/events?tenant=org-2"
            assert (await api.send(b"{", token="wrong", path=path, Content_Type="x/y")).status == 401
            reply = await api.send(b"{", path=path, Content_Type="x/y")
            assert (reply.status, reply.json()["details"]) == (400, {"parameter": "tenant"})

    run(scenario())


def test_a_source_bound_to_tenants_sends_for_no_other(connection: Connection, tmp_path: Path) -> None:
    sources = f"{SOURCE_TOKEN} name=webhook tenants=org-1,org-9 prefix=acme-"

    async def scenario() -> None:
        async with serving(connection, tmp_path, sources=sources) as api:
            tenants = ["org-1", "org-2", "acme-7", "acme", "org-9", "org-10", "ORG-1"]
            reply = await api.send([event(1, tenant_id=tenant) for tenant in tenants])
            assert reply.json()["accepted"] == 3
            found = [(entry["index"], entry["pointer"], entry["code"]) for entry in reply.json()["rejected"]]
            assert found == [(index, "/tenant_id", "forbidden_tenant") for index in (1, 3, 5, 6)]
            assert await count_today(api, "org-2") == 0
            assert await count_today(api, "acme-7") == 1
            assert (await api.send(event(1, tenant_id="org-2"))).status == 400

    run(scenario())


def test_the_limit_of_a_body_is_10_million_bytes_sent_or_unpacked(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            limit = Limits().body_bytes
            assert limit == 10_000_000
            text = json.dumps(event()).encode()
            assert (await api.send(text.ljust(limit))).status == 200
            for size in (limit + 1, 10 * 1024 * 1024 + 1):
                reply = await api.send(text.ljust(size))
                assert (reply.status, reply.code) == (413, "PAYLOAD_TOO_LARGE"), size

            async def pieces(size: int) -> AsyncIterator[bytes]:
                yield text
                for _ in range((size - len(text)) // 100_000):
                    yield b" " * 100_000
                yield b" " * ((size - len(text)) % 100_000)

            headers = {"Authorization": f"Bearer {SOURCE_TOKEN}", "Content-Type": "application/json"}
            for size, status in {limit: 200, limit + 1: 413}.items():
                reply = await api.request("POST", "/api/v1/events", data=pieces(size), headers=headers)
                assert reply.status == status
                packed = gzip.compress(text.ljust(size), 1)
                assert (await api.send(packed, Content_Encoding="gzip")).status == status
            assert (await api.send(gzip.compress(b"[]")[:-1], Content_Encoding="gzip")).status == 400

    run(scenario())


def test_more_events_than_a_request_may_have_are_413(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path, limits=Limits(events_per_request=3)) as api:
            assert (await api.send([event(number) for number in range(3)])).status == 200
            reply = await api.send([event(number) for number in range(4)])
            assert (reply.status, reply.code) == (413, "PAYLOAD_TOO_LARGE")
            assert [len(events) for events in api.event_writer.written] == [3]

    run(scenario())


def test_bodies_in_memory_are_bounded_together(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path, limits=Limits(body_bytes_in_flight=1_000)) as api:
            api.event_writer.hold = asyncio.Event()
            first = asyncio.create_task(api.send(json.dumps(event()).encode().ljust(900)))
            await api.event_writer.arrived.wait()
            reply = await api.send(json.dumps(event()).encode().ljust(200))
            assert (reply.status, reply.code, reply.headers["Retry-After"]) == (503, "UNAVAILABLE", "1")
            api.event_writer.hold.set()
            assert (await first).status == 200
            assert (await api.send(json.dumps(event()).encode().ljust(1_000))).status == 200

    run(scenario())


def test_a_store_that_is_away_is_503_and_the_resend_counts_once(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            api.event_writer.error = StoreUnavailableError("disk full on db-7", retry_after=9)
            reply = await api.send([event(1), event(2, agent_id=None)])
            assert (reply.status, reply.code, reply.headers["Retry-After"]) == (503, "UNAVAILABLE", "9")
            assert b"db-7" not in reply.body
            assert api.metric("ingest_events_accepted_total") == 0
            api.event_writer.error = None
            for _ in range(2):
                assert (await api.send([event(1), event(2, agent_id=None)])).json()["accepted"] == 1
            assert await count_today(api) == 1
            assert api.metric("ingest_events_rejected_total", reason="required") == 2
            api.event_writer.error = RuntimeError("x")
            assert (await api.send(event(3))).code == "INTERNAL_ERROR"

    run(scenario())


def test_a_body_that_stops_half_way_is_neither_answered_nor_stored(connection: Connection, tmp_path: Path) -> None:
    body = json.dumps([event(1)]).encode()

    async def scenario() -> None:
        async with serving(connection, tmp_path, body_seconds=0.05) as api:
            sized = TRUSTED + b"Content-Length: %d\r\n\r\n" % (len(body) + 1) + body
            chunked = TRUSTED + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(body), body)
            for request in (sized, chunked):
                assert await api.raw(request) == b""  # too slow: the connection is closed
                _, writer = await asyncio.open_connection("127.0.0.1", api.port)
                writer.write(request)
                await writer.drain()
                writer.close()  # gone before the end
            assert (await api.send(event(2))).status == 200
            assert [[found.event_id for found in events] for events in api.event_writer.written] == [["e-2"]]
            assert api.metric("http_requests_total", route="/api/v1/events", method="POST", code="500") == 0

    run(scenario())


def test_broken_framing_is_400(connection: Connection, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(connection, tmp_path) as api:
            for chunks in (b"zz\r\n[]\r\n", b"2\r\n[]xx\r\n0\r\n\r\n", b"-1\r\n\r\n", b"fffffffffffffffff\r\n"):
                data = await api.raw(TRUSTED + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
                reply = parse_reply(data)
                assert (reply.status, reply.code) == (400, "VALIDATION_ERROR"), chunks
            assert api.event_writer.written == []

    run(scenario())


async def read_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def test_only_a_trusted_sender_is_asked_for_its_body(connection: Connection, tmp_path: Path) -> None:
    body = json.dumps(event()).encode()
    expecting = b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)

    async def scenario() -> None:
        async with serving(connection, tmp_path, linger_seconds=0.05) as api:
            for head, status in {
                POST + b"Authorization: Bearer wrong\r\n": 401,
                TRUSTED.replace(b"application/json", b"text/html"): 415,
                TRUSTED.replace(b"/events", b"/nothing"): 404,
            }.items():
                reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
                writer.write(head + expecting)
                assert (await read_head(reader)).startswith(b"HTTP/1.1 %d " % status)
                writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(TRUSTED + expecting)
            assert await read_head(reader) == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
            assert (await read_head(reader)).startswith(b"HTTP/1.1 200 ")
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(TRUSTED + expecting)
            assert (await read_head(reader)).startswith(b"HTTP/1.1 100 ")
            writer.write(b"x" * len(body))
            assert (await read_head(reader)).startswith(b"HTTP/1.1 400 ")
            writer.close()

    run(scenario())


def test_a_source_may_be_limited_by_requests_and_by_events(connection: Connection, tmp_path: Path) -> None:
    def is_limited(reply: Reply, retry_after: str) -> bool:
        return (reply.status, reply.code, reply.headers["Retry-After"]) == (429, "RATE_LIMITED", retry_after)

    async def scenario() -> None:
        sources = f"{SOURCE_TOKEN} name=a\nanother-source-token name=b"
        limits = Limits(source_requests=Rate(1, 2), source_events=Rate(10, 20))
        async with serving(connection, tmp_path, sources=sources, limits=limits) as api:
            reply = await api.send([event(number) for number in range(50)])
            assert reply.status == 200
            assert reply.headers["RateLimit-Policy"] == '"source";q=2;w=2'
            assert reply.headers["RateLimit"] == '"source";r=1;t=1'
            assert is_limited(await api.send(event(51)), "4")
            assert is_limited(await api.send(event(51)), "1")
            assert (await api.send(event(52), token="another-source-token")).status == 200
            api.timer.now += 3.0
            assert is_limited(await api.send(event(51)), "1")
            api.timer.now += 0.1
            assert (await api.send(event(51))).status == 200
            assert await count_today(api) == 52
            assert api.metric("rate_limited_total", scope="source") == 3

    run(scenario())
