"""What the exporter's tests share: a store in memory, a running exporter on a real socket, and curl."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from prometheus_client import CollectorRegistry

from clickhouse.fleet import Fleet
from clickhouse.watch import Watch
from exporter.inquiries import Inquiries
from exporter.metrics import ExporterMetrics
from exporter.refresher import Refresher
from exporter.runner import ExporterRunner
from exporter.server import build_app
from exporter.web_config import WebConfig


class Clock:
    """Unix time that only moves when told."""

    def __init__(self, now: float = 1_763_900_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass
class Tenant:
    """A row of the fleet."""

    issued: int = 0
    failures: int = 0
    agents: int = 0
    ratio: float = 0.0
    last: float = 0.0
    month: int = 0


class Store:
    """A `FleetSource`: tenants in memory, and the set of those whose counters were published."""

    def __init__(self, tenants: dict[str, Tenant] | None = None, published: Iterable[str] = ()) -> None:
        self.seen = Watch()
        self.tenants = tenants or {}
        self.published = set(published)
        self.other: tuple[int, int] | None = None
        self.error: Exception | None = None  # raised by `read`
        self.write_error: Exception | None = None  # raised by `record`
        self.calls = 0
        self.recorded: dict[str, int] = {}  # tokens issued of each tenant, as told last

    def read(self) -> Fleet:
        self.calls += 1
        if self.error is not None:
            raise self.error
        rows = sorted(self.tenants.items())
        return Fleet(
            tenant_id=[tenant_id for tenant_id, _ in rows],
            tokens_issued=[tenant.issued for _, tenant in rows],
            token_failures=[tenant.failures for _, tenant in rows],
            active_agents=[tenant.agents for _, tenant in rows],
            top_agent_ratio=[tenant.ratio for _, tenant in rows],
            last_issued_seconds=[tenant.last for _, tenant in rows],
            month_tokens=[tenant.month for _, tenant in rows],
            published=[tenant_id in self.published for tenant_id, _ in rows],
            present=[True] * len(rows),
            other=self.other,
        )

    def watch(self) -> Watch:
        return self.seen

    def record(self, fleet: Fleet, newly_published: Sequence[str], other: tuple[int, int] | None) -> None:
        if self.write_error is not None:
            raise self.write_error
        self.recorded = dict(zip(fleet.tenant_id, fleet.tokens_issued, strict=True))
        self.published.update(newly_published)
        self.other = other or self.other


def store_of(count: int) -> Store:
    """A store of `count` tenants, all published before, all values different."""
    tenants = {
        f"tenant-{n:05}": Tenant(n * 37 + 1, n % 5, n % 9 + 1, (n % 97 + 1) / 97, 1.76e9 + n / 8, n * 3 + 1)
        for n in range(count)
    }
    return Store(tenants, tenants)


@dataclass
class Running:
    """An exporter that is listening."""

    port: int
    scheme: str
    refresher: Refresher
    registry: CollectorRegistry

    def url(self, path: str = "/metrics") -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"


@asynccontextmanager
async def running(
    store: Store,
    *,
    web_config: WebConfig | None = None,
    inquiries: Inquiries | None = None,
    refreshed: bool = True,
    server_options: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> AsyncIterator[Running]:
    """An exporter that refreshes once and then only when told, unless `options` give an interval."""
    registry = CollectorRegistry()
    options = {"interval": 3_600.0, "max_age": 10_000.0, **options}
    refresher = Refresher(store, ExporterMetrics(registry, "1.2.3"), **options)
    runner = ExporterRunner(build_app(refresher, registry, web_config, inquiries), **server_options)
    await runner.setup()
    try:
        context = web_config.ssl_context() if web_config else None
        port = await runner.listen("127.0.0.1", 0, context)
        if refreshed:
            await refresher.refresh_once()
        yield Running(port, "https" if context else "http", refresher, registry)
    finally:
        await runner.cleanup()


async def curl(*arguments: str) -> bytes:
    """What curl prints; fails if curl does."""
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--show-error", "--max-time", "20", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output


async def curl_status(*arguments: str) -> int:
    """The HTTP status."""
    return int(await curl("--output", "/dev/null", "--write-out", "%{http_code}", *arguments))


def samples(body: str) -> dict[str, str]:
    """Series -> value, of a body in either format; fails on a series that is there twice."""
    lines = [line for line in body.splitlines() if line and not line.startswith("#")]
    pairs = [re.fullmatch(r"(\w+(?:\{.*\})?) (\S+)", line) for line in lines]
    assert all(pairs), "a line is no sample"
    series = {pair[1]: pair[2] for pair in pairs if pair}
    assert len(series) == len(lines), "a series is there twice"
    return series


def tenant_series(name: str, tenant_id: str) -> str:
    """The key in `samples` of a per-tenant series."""
    return f'agentidp_tenant_{name}{{tenant_id="{tenant_id}"}}'
