"""The API as it runs: real sockets, the real verifier and key set, the real store behind it.

`Service` is the one place where the parts are put together. `Questions`, `AlertQuestions`, `DetailQuestions` and
`EventWriter` stand between the API and the store only to hold, count or fail a call that then goes through.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
from multidict import CIMultiDict
from prometheus_client import CollectorRegistry, generate_latest

from agentidp_analytics.logs import JsonFormatter
from clickhouse.agent_detail import AgentDetail, AgentDetails
from clickhouse.alert import Alert
from clickhouse.alerts import Alerts
from clickhouse.commit import GroupCommit
from clickhouse.connection import Connection
from clickhouse.event import Event
from clickhouse.queries import Queries
from clickhouse.schema import check
from clickhouse.store import Store
from clickhouse.tenant import TenantId
from query_api.app import Api, build_app
from query_api.auth.jwks import KeySet
from query_api.auth.token_policy import TokenPolicy
from query_api.auth.verifier import Verifier
from query_api.http.server import ApiServer
from query_api.http.tls import ServerCertificate
from query_api.ingest.sources import SourceTokens
from query_api.settings import ApiSettings
from tests.support.hostile_tokens import Issuer, JwksServer

NOW: Final = datetime(2026, 11, 23, 9, 15, tzinfo=UTC).timestamp()
SOURCE_TOKEN: Final = "a-trusted-source-token"
JSON: Final = {"Content-Type": "application/json"}

_Result = TypeVar("_Result")


@cache
def issuer() -> Issuer:
    """One for all tests: making its keys takes a second."""
    return Issuer()


def run(test: Coroutine[Any, Any, _Result]) -> _Result:
    """Runs a test's coroutine; a hang is a failure, not a wait."""
    return asyncio.run(asyncio.wait_for(test, 30))


class Clock:
    """Unix seconds that only a test moves."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> Any:
        return self.json()["code"]


def parse_reply(data: bytes) -> Reply:
    """The first HTTP response in `data`."""
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers: CIMultiDict[str] = CIMultiDict()
    for line in lines:
        name, _, value = line.partition(": ")
        headers.add(name, value)
    return Reply(int(status.split()[1]), headers, body)


class Questions:
    """The store's queries; `error` fails a call before it, `hold` blocks it until set."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries
        self.error: Exception | None = None
        self.hold: dict[str, threading.Event] = {}
        self.calls: list[tuple[str, str]] = []
        self.arrived: Callable[[str], None] = lambda tenant: None

    def trend(self, tenant: TenantId, today: date, days: int) -> list[tuple[date, int]]:
        self.let_pass("trend", tenant)
        return self._queries.trend(tenant, today, days)

    def activity(self, tenant: TenantId, today: date, days: int) -> list[tuple[int, int, int]]:
        self.let_pass("activity", tenant)
        return self._queries.activity(tenant, today, days)

    def agents(self, tenant: TenantId, month: date, limit: int, after: tuple[str, int] | None) -> list[tuple[str, int]]:
        self.let_pass("agents", tenant)
        return self._queries.agents(tenant, month, limit, after)

    def let_pass(self, name: str, tenant: str) -> None:
        self.calls.append((name, tenant))
        self.arrived(tenant)
        if tenant in self.hold:
            assert self.hold[tenant].wait(20)
        if self.error is not None:
            raise self.error


class AlertQuestions:
    """The store's alerts, behind the same gate as its queries."""

    def __init__(self, alerts: Alerts, gate: Questions) -> None:
        self._alerts = alerts
        self._gate = gate

    def of_tenant(self, tenant: TenantId, since: int, now: int) -> list[Alert]:
        self._gate.let_pass("alerts", tenant)
        return self._alerts.of_tenant(tenant, since, now)


class DetailQuestions:
    """The store's agent details, behind the same gate."""

    def __init__(self, details: AgentDetails, gate: Questions) -> None:
        self._details = details
        self._gate = gate

    def of(self, tenant: TenantId, agent: str, now: datetime, days: int) -> AgentDetail | None:
        self._gate.let_pass("detail", tenant)
        return self._details.of(tenant, agent, now, days)


class EventWriter:
    """The store's group commit; `error` fails a write before it, `hold` blocks it until set."""

    def __init__(self, commit: GroupCommit) -> None:
        self._commit = commit
        self.error: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.arrived = asyncio.Event()
        self.written: list[Sequence[Event]] = []

    async def write(self, events: Sequence[Event]) -> None:
        self.arrived.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        await self._commit.write(events)
        self.written.append(events)


class Readiness:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.error: Exception | None = None
        self.checks = 0

    def check(self) -> None:
        self.checks += 1
        if self.error is not None:
            raise self.error
        check(self._connection)


@contextmanager
def logged(formatter: logging.Formatter | None = None) -> Iterator[list[str]]:
    """Every line that is logged meanwhile, down to debug, formatted as the service would (as JSON by default)."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler, root = Handler(), logging.getLogger()
    handler.setFormatter(formatter or JsonFormatter())
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@dataclass
class Service:
    """A running API and what a test may do to its parts."""

    port: int
    api: Api
    server: ApiServer
    session: aiohttp.ClientSession
    questions: Questions
    event_writer: EventWriter
    readiness: Readiness
    registry: CollectorRegistry
    clock: Clock
    timer: Clock
    token_file: Path
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def access_token(self, tenant: str = "org-1", **claims: Any) -> str:
        return issuer().token(self.clock.now, **{issuer().tenant_claim: tenant, **claims})

    async def request(self, method: str, path: str, **arguments: Any) -> Reply:
        async with self.session.request(method, self.url + path, **arguments) as response:
            return Reply(response.status, response.headers, await response.read())

    async def get(self, path: str, tenant: str = "org-1", **arguments: Any) -> Reply:
        """GET with a good token of `tenant`."""
        headers = {"Authorization": f"Bearer {self.access_token(tenant)}", **arguments.pop("headers", {})}
        return await self.request("GET", path, headers=headers, **arguments)

    async def send(self, body: Any, token: str = SOURCE_TOKEN, path: str = "/api/v1/events", **headers: str) -> Reply:
        """POST of events: bytes as they are, anything else as JSON. `Content_Type` names a header."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        all_headers = {"Authorization": f"Bearer {token}", **JSON, **named}
        return await self.request("POST", path, data=data, headers=all_headers)

    async def raw(self, data: bytes) -> bytes:
        """Sends bytes as they are and reads until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            return await reader.read()
        finally:
            writer.close()

    def metric(self, name: str, **labels: str) -> float:
        """The value of a sample now, 0 if it is not there."""
        return self.registry.get_sample_value(f"agentidp_analytics_{name}", labels) or 0.0

    def exposition(self) -> str:
        return generate_latest(self.registry).decode()


@asynccontextmanager
async def serving(
    connection: Connection,
    tmp_path: Path,
    *,
    sources: str | None = SOURCE_TOKEN,
    required_scope: str | None = "analytics:read",
    **settings: Any,
) -> AsyncIterator[Service]:
    """A Service on a free port. `sources` is the text of the ingest token file, None for no such file."""
    token_file = tmp_path / "tokens"
    if sources is not None:
        token_file.write_text(sources)
        token_file.chmod(0o600)
    wanted = ApiSettings(port=0, ingest_token_file=None if sources is None else token_file)
    wanted = replace(wanted, **settings)
    clock, timer, registry = Clock(), Clock(0.0), CollectorRegistry()
    store = Store(connection, registry, clock=clock)
    commit = GroupCommit(store.writer, store.metrics)
    await commit.start()
    questions, event_writer, readiness = Questions(store.queries()), EventWriter(commit), Readiness(connection)
    async with JwksServer(issuer().jwks()) as jwks, aiohttp.ClientSession() as session:
        keys = KeySet(session, jwks.url, algorithms=["RS256"])
        await keys.start()
        verifier = Verifier(
            TokenPolicy(
                issuers=(issuer().url,),
                audiences=frozenset({issuer().audience}),
                jwks_urls=(jwks.url,),
                required_scope=required_scope,
            ),
            {issuer().url: keys},
            clock,
        )
        api = build_app(
            wanted,
            sources=SourceTokens(wanted.ingest_token_file) if wanted.ingest_token_file else None,
            verifier=verifier,
            questions=questions,
            alerts=AlertQuestions(store.alerts(), questions),
            details=DetailQuestions(store.agent_details(), questions),
            event_writer=event_writer,
            readiness=readiness,
            registry=registry,
            clock=clock,
            timer=timer,
        )
        certificate = ServerCertificate(wanted.tls_cert, wanted.tls_key) if wanted.tls_cert and wanted.tls_key else None
        server = ApiServer(api, wanted, certificate)
        port = await server.start()
        try:
            yield Service(
                port,
                api,
                server,
                session,
                questions,
                event_writer,
                readiness,
                registry,
                clock,
                timer,
                token_file,
                "https" if wanted.tls_cert else "http",
            )
        finally:
            await server.stop()
            await keys.close()
            await commit.stop()


def event(number: int = 1, **changes: Any) -> dict[str, Any]:
    """A good event; `changes` replace or add members, None leaves one out."""
    value = {
        "event_id": f"e-{number}",
        "tenant_id": "org-1",
        "agent_id": "agent-1",
        "issued_at": "2026-11-23T09:00:00Z",
        **changes,
    }
    return {name: member for name, member in value.items() if member is not None}
