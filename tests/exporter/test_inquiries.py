"""The operators' questions on the exporter: across tenants, strict, behind its password, never in a scrape's way."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from clickhouse.agent_detail import AgentDetail
from clickhouse.alert import Alert
from clickhouse.alert_json import alert_body, detail_body
from clickhouse.connection import Connection
from clickhouse.errors import StoreError, StoreUnavailableError
from clickhouse.event import Event
from clickhouse.tenant import TenantId
from exporter.inquiries import Inquiries
from exporter.web_config import WebConfig
from tests.exporter.test_web_config import SECRET_HASH
from tests.query_api.test_analytics import BAD_DAYS
from tests.support.exporter_harness import Running, running, store_of
from tests.support.rig import NOW, Rig
from tests.support.verdicts import BIN, Verdict, say

NOW_SECONDS = NOW.timestamp()
NOW_BIN = int(NOW_SECONDS) // BIN * BIN
PATHS = ("/alerts", "/agents/detail?tenant=org-1&agent=a")


class Gate:
    """A source of both kinds: waits while it is held, fails with `error`, else has nothing."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.free = threading.Event()
        self.free.set()
        self.asked = 0
        self.arrived = threading.Semaphore(0)

    def of_all(self, since: int, now: int) -> list[Alert]:
        self._pass()
        return []

    def of_tenant(self, tenant: TenantId, since: int, now: int) -> list[Alert]:
        self._pass()
        return []

    def of(self, tenant: TenantId, agent: str, now: datetime, days: int) -> AgentDetail | None:
        self._pass()
        return None

    def _pass(self) -> None:
        self.asked += 1
        self.arrived.release()
        assert self.free.wait(20)
        if self.error is not None:
            raise self.error


class Asking:
    """An exporter and a client of it."""

    def __init__(self, exporter: Running, session: aiohttp.ClientSession) -> None:
        self.exporter = exporter
        self._session = session

    async def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
        async with self._session.request(method, self.exporter.url(path), headers=headers) as answer:
            return answer.status, answer.headers, await answer.read()

    def refused(self, reason: str) -> float | None:
        return self.exporter.registry.get_sample_value("agentidp_analytics_scrapes_refused_total", {"reason": reason})


@asynccontextmanager
async def asking(inquiries: Inquiries | None, web_config: WebConfig | None = None) -> AsyncIterator[Asking]:
    async with (
        running(store_of(2), inquiries=inquiries, web_config=web_config) as exporter,
        aiohttp.ClientSession() as session,
    ):
        yield Asking(exporter, session)


def gated(gate: Gate, **options: Any) -> Inquiries:
    return Inquiries(gate, gate, clock=lambda: NOW_SECONDS, **options)


def test_operators_are_told_of_all_tenants_or_of_one(connection: Connection) -> None:
    rig = Rig(connection)
    for tenant in ("org-1", "org-2"):
        rig.writer.write([Event(tenant, int(NOW_SECONDS * 1000) - 1, "e", "a", client_ip="192.0.2.1")])
    say(connection, [Verdict("org-1", "spike", "a", NOW_BIN - 2 * BIN), Verdict("org-2", "silence", "", NOW_BIN - BIN)])

    async def scenario() -> None:
        inquiries = Inquiries(rig.alerts(), rig.agent_details(), clock=lambda: NOW_SECONDS)
        async with asking(inquiries) as client:
            status, headers, body = await client.get("/alerts")
            assert (status, headers["Content-Type"]) == (200, "application/json")
            assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
            assert "Server" not in headers
            everyone = json.loads(body)
            assert list(everyone) == ["days", "data"]
            assert everyone["days"] == 7
            assert [entry["tenantId"] for entry in everyone["data"]] == ["org-2", "org-1"]
            (alert,) = rig.alerts().of_tenant(TenantId("org-1"), NOW_BIN - 86_400, int(NOW_SECONDS))
            assert everyone["data"][1] == {"tenantId": "org-1", **alert_body(alert)}

            _, _, body = await client.get("/alerts?tenant=org-1&days=90")
            assert json.loads(body) == {"days": 90, "data": everyone["data"][1:]}
            assert json.loads((await client.get("/alerts?tenant=nobody"))[2]) == {"days": 7, "data": []}

            status, headers, body = await client.get("/agents/detail?tenant=org-1&agent=a&days=2")
            detail = rig.agent_details().of(TenantId("org-1"), "a", NOW, 2)
            assert detail is not None
            assert (status, json.loads(body)) == (200, detail_body("org-1", "a", 2, detail))
            assert json.loads((await client.get("/agents/detail?tenant=org-1&agent=a"))[2])["days"] == 30
            status, _, body = await client.get("/agents/detail?tenant=org-1&agent=nobody")
            assert (status, body) == (404, b"The tenant never had this agent\n")

    asyncio.run(scenario())


def test_only_parameters_that_can_be_meant_are_taken() -> None:
    wrong = [(f"/alerts?days={days}", "days") for days in BAD_DAYS]
    wrong += [(f"/agents/detail?tenant=org-1&agent=a&days={days}", "days") for days in BAD_DAYS]
    tenants = ("", "a%20b", "_other", "x" * 129, "%C3%A4", "a%0A", "org-1&tenant=org-1", "org-1&tenant=org-2")
    wrong += [(f"/alerts?tenant={tenant}", "tenant") for tenant in tenants]
    wrong += [(f"/agents/detail?agent=a&tenant={tenant}", "tenant") for tenant in tenants]
    agents = ("", "%00", "a%0Ab", "x" * 257, "a&agent=a")
    wrong += [(f"/agents/detail?tenant=org-1&agent={agent}", "agent") for agent in agents]
    wrong += [("/agents/detail", "tenant and agent"), ("/agents/detail?tenant=org-1", "tenant and agent")]
    wrong += [("/agents/detail?agent=a", "tenant and agent")]
    wrong += [(f"{path}{'&' if '?' in path else '?'}HOSTILE=1", "unknown") for path in PATHS]
    wrong += [("/alerts?agent=a", "unknown"), ("/alerts?Days=7", "unknown"), ("/alerts?<script>=1", "unknown")]

    async def scenario() -> None:
        gate = Gate()
        async with asking(gated(gate)) as client:
            for path, named in wrong:
                status, _, body = await client.get(path)
                assert (status, body.count(b"\n")) == (400, 1), path
                assert named in body.decode(), (path, body)
                assert b"HOSTILE" not in body
                assert b"script" not in body
            assert gate.asked == 0
            for method in ("POST", "DELETE"):
                assert (await client.get("/alerts", method))[0] == 405

    asyncio.run(scenario())


def test_head_is_get_without_its_body() -> None:
    async def scenario() -> None:
        async with asking(gated(Gate())) as client:
            for path, wanted in ((PATHS[0], 200), (PATHS[1], 404)):
                status, headers, body = await client.get(path, "HEAD")
                assert (status, body) == (wanted, b"")
                assert headers["Content-Length"] == str(len((await client.get(path))[2]))

    asyncio.run(scenario())


def test_the_exporters_password_is_asked_for_first(tmp_path: Path) -> None:
    (tmp_path / "web.yml").write_text(f"basic_auth_users:\n  prometheus: {SECRET_HASH}\n")

    async def scenario() -> None:
        gate = Gate()
        async with asking(gated(gate), WebConfig(tmp_path / "web.yml")) as client:
            for path in (*PATHS, "/alerts?days=0", "/agents/detail"):
                for headers in ({}, {"Authorization": "Basic " + base64.b64encode(b"prometheus:wrong").decode()}):
                    status, answer, _ = await client.get(path, **headers)
                    assert (status, answer["WWW-Authenticate"][:5]) == (401, "Basic"), path
            assert gate.asked == 0
            good = "Basic " + base64.b64encode(b"prometheus:s3cret").decode()
            assert (await client.get("/alerts", Authorization=good))[0] == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("path", PATHS)
def test_few_at_once_and_scrapes_do_not_wait_for_them(path: str) -> None:
    async def scenario() -> None:
        gate = Gate()
        gate.free.clear()
        async with asking(gated(gate)) as client:
            waiting = [asyncio.create_task(client.get(path)) for _ in range(2)]
            for _ in waiting:
                assert await asyncio.to_thread(gate.arrived.acquire, timeout=10)
            for other in PATHS:
                status, headers, _ = await client.get(other)
                assert (status, headers["Retry-After"]) == (503, "1")
            assert client.refused("busy") == 2
            assert (await client.get("/metrics"))[0] == 200
            assert (await client.get("/alerts?days=0"))[0] == 400
            gate.free.set()
            assert {status for status, _, _ in await asyncio.gather(*waiting)} <= {200, 404}
            assert (await client.get("/alerts"))[0] == 200

    asyncio.run(scenario())


def test_one_that_takes_too_long_is_given_up_and_keeps_its_place_until_it_ends() -> None:
    async def scenario() -> None:
        gate = Gate()
        gate.free.clear()
        async with asking(gated(gate, seconds=0.01)) as client:
            for _ in range(2):
                status, headers, _ = await client.get("/alerts")
                assert (status, headers["Retry-After"]) == (503, "5")
            assert client.refused("busy") == 0
            assert (await client.get("/alerts"))[0] == 503
            assert client.refused("busy") == 1, "the threads are still busy"
            gate.free.set()
            async with asyncio.timeout(10):
                while (await client.get("/alerts"))[0] != 200:
                    pass

    asyncio.run(scenario())


@pytest.mark.parametrize("path", PATHS)
def test_a_store_that_fails_is_told_without_its_words(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        gate = Gate()
        async with asking(gated(gate)) as client:
            for error, wanted in (
                (StoreUnavailableError("db-7.internal is full", retry_after=7), 503),
                (StoreError("db-7.internal refused"), 500),
                (RuntimeError("db-7.internal has a bug"), 500),
            ):
                gate.error = error
                status, headers, body = await client.get(path)
                assert status == wanted
                assert b"db-7" not in body
                assert headers.get("Retry-After") == ("7" if wanted == 503 else None)
            assert (await client.get("/metrics"))[0] == 200
            gate.error = None
            assert (await client.get("/alerts"))[0] == 200

    asyncio.run(scenario())
    assert "the store is unavailable: db-7.internal is full" in caplog.text


def test_the_end_waits_for_what_is_under_way() -> None:
    ended: list[float] = []

    async def scenario() -> None:
        gate = Gate()
        gate.free.clear()
        inquiries = gated(gate, seconds=0.01)
        async with asking(inquiries) as client:
            assert (await client.get("/alerts"))[0] == 503
            stopping = asyncio.create_task(inquiries.stop())
            await asyncio.sleep(0)
            assert not stopping.done()
            gate.free.set()
            await stopping
            ended.append(gate.asked)

    asyncio.run(scenario())
    assert ended == [1]


def test_a_process_that_leaves_tenants_to_another_has_none_of_this() -> None:
    async def scenario() -> None:
        async with asking(None) as client:
            for path in PATHS:
                assert (await client.get(path))[0] == 404
            assert b"/alerts" not in (await client.get("/"))[2]
        async with asking(gated(Gate())) as client:
            assert b'href="/alerts"' in (await client.get("/"))[2]

    asyncio.run(scenario())
