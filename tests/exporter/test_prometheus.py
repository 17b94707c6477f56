"""A real Prometheus scrapes two exporters of one store: one in plain HTTP, one behind TLS and a password."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import bcrypt

from exporter.refresher import Refresher
from exporter.web_config import WebConfig
from tests.exporter.test_web_config import sign
from tests.support.exporter_harness import Tenant, running, store_of

CONFIG = """
global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}
scrape_configs:
- job_name: plain
  static_configs: [{{targets: ["127.0.0.1:{plain}"]}}]
- job_name: secure
  scheme: https
  tls_config: {{ca_file: {directory}/ca.crt}}
  basic_auth: {{username: prometheus, password: s3cret}}
  static_configs: [{{targets: ["127.0.0.1:{secure}"]}}]
"""


@asynccontextmanager
async def prometheus(directory: Path, config: str) -> AsyncIterator[int]:
    """A Prometheus with this configuration; yields its port."""
    (directory / "prometheus.yml").write_text(config)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield port
    finally:
        process.kill()
        await process.wait()


async def query(port: int, expression: str) -> dict[str, float]:
    """The value of an instant query by job; empty while Prometheus is starting."""
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": expression}) as response,
        ):
            answer: Any = await response.json()
    except (aiohttp.ClientError, OSError):
        return {}
    return {series["metric"]["job"]: float(series["value"][1]) for series in answer.get("data", {}).get("result", [])}


async def until(port: int, expression: str, expected: float, refresher: Refresher) -> None:
    """Asks after every refresh until both jobs have the expected value."""
    values: dict[str, float] = {}
    try:
        async with asyncio.timeout(20):
            while values != {"plain": expected, "secure": expected}:
                async with refresher.refreshed:
                    await refresher.refreshed.wait()
                values = await query(port, expression)
    except TimeoutError:
        raise AssertionError(f"{expression}: {values} instead of {expected}") from None


def test_prometheus_sees_every_tenant_and_the_whole_first_burst_of_a_new_one(tmp_path: Path) -> None:
    ca = sign("test CA")
    ca.write(tmp_path / "ca.crt", tmp_path / "ca.key")
    sign("server", ca).write(tmp_path / "server.crt", tmp_path / "server.key")
    hashed = bcrypt.hashpw(b"s3cret", bcrypt.gensalt(4)).decode()
    (tmp_path / "web.yml").write_text(
        "tls_server_config: {cert_file: server.crt, key_file: server.key}\n"
        f"basic_auth_users: {{prometheus: {hashed}}}\n"
    )

    async def scenario() -> None:
        store = store_of(1_500)
        options: dict[str, Any] = {"interval": 0.1, "zero_hold": 0.6}
        async with (
            running(store, **options) as plain,
            running(store, web_config=WebConfig(tmp_path / "web.yml"), **options) as secure,
            prometheus(tmp_path, CONFIG.format(plain=plain.port, secure=secure.port, directory=tmp_path)) as port,
        ):

            async def expect(expression: str, value: float) -> None:
                await until(port, expression, value, plain.refresher)

            await expect("up", 1)
            await expect("agentidp_analytics_up", 1)
            await expect("count by (job) ({__name__=~'agentidp_tenant_.+'})", 6 * 1_500)
            total = sum(tenant.issued for tenant in store.tenants.values())
            await expect("sum by (job) (agentidp_tenant_tokens_issued_total)", total)
            await expect("agentidp_tenant_last_issued_timestamp_seconds{tenant_id='tenant-00003'}", 1.76e9 + 3 / 8)
            store.tenants = {**store.tenants, "new": Tenant(issued=5_000)}
            burst = "agentidp_tenant_tokens_issued_total{tenant_id='new'}"
            await expect(f"max_over_time({burst}[1m]) - min_over_time({burst}[1m])", 5_000)
            await expect(f"floor(increase({burst}[1m]) / 5000)", 1)
            await expect("sum by (job) (resets(agentidp_tenant_tokens_issued_total[1m]))", 0)

    asyncio.run(scenario())
