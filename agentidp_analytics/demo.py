"""The demo: `serve` on a fresh store with made-up events of 90 days, development keys and calls to paste."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
from prometheus_client import CollectorRegistry

from agentidp_analytics.demo_events import DemoFleet, demo_fleet, demo_moment, fill
from agentidp_analytics.dev_keys import DevKey, serve_key_set
from agentidp_analytics.ingest_client import RemoteWriter
from agentidp_analytics.logs import configure_logging
from agentidp_analytics.options import option
from agentidp_analytics.service import (
    authority,
    in_background,
    require_free_addresses,
    require_open_files,
    running,
    until_signalled,
)
from agentidp_analytics.settings import Settings, exporter_settings, listen_options
from clickhouse.errors import StoreError
from clickhouse.open_store import open_store
from clickhouse.tenant import TenantId
from exporter.runner import MAX_CONNECTIONS
from query_api.auth.token_policy import TokenPolicy
from query_api.settings import ApiSettings, Limits

DEMO_DIRECTORY: Final = "demo-data"
DEMO_MARKER: Final = "agentidp-analytics-demo"
DEMO_ISSUER: Final = "http://127.0.0.1/demo"
DEMO_AUDIENCE: Final = "https://analytics.example/api"


@click.command()
@listen_options
@option(
    "--log-format",
    type=click.Choice(["json", "text"]),
    help="Of the structured logs on stderr.  [default: text on a terminal, else json]",
)
def demo(**values: Any) -> None:
    """Serves a fresh store filled with 90 days of made-up events, and goes on with a few events a second."""
    configure_logging(values["log_format"])
    logging.getLogger("query_api.access").setLevel(logging.WARNING)
    require_open_files(MAX_CONNECTIONS + Limits().connections)
    host, port = values["listen"]
    require_free_addresses({"--listen": (host, port), "--metrics-listen": values["metrics_listen"]})
    with _demo_directory() as directory:
        key = DevKey.generate()
        key.save(directory / "signing-key.pem")
        ingest_token = secrets.token_urlsafe(24)
        token_file = directory / "ingest-token"
        token_file.touch(mode=0o600)
        token_file.write_text(ingest_token + "\n")
        settings = Settings(
            dsn=f"chdb://{directory / 'store'}",
            api=ApiSettings(host=host, port=port, ingest_token_file=token_file),
            tokens=None,
            exporter=exporter_settings(values),
        )
        asyncio.run(_demo(settings, key, ingest_token))


@contextlib.contextmanager
def _demo_directory() -> Iterator[Path]:
    """The directory of the demo, emptied; locked until the block is left, because emptying it under another demo would
    take that one's store away. Raises click.UsageError.
    """
    directory = Path.cwd() / DEMO_DIRECTORY
    try:
        directory.mkdir(exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise click.UsageError(
            f"{directory} cannot be made: {error.strerror}; run demo in another directory"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = list(directory.iterdir())
        if held and directory / DEMO_MARKER not in held:
            raise click.UsageError(f"{directory} exists and is not of an earlier demo; move it away")
        (directory / DEMO_MARKER).touch()
        for entry in held:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != DEMO_MARKER:
                entry.unlink()
        yield directory
    except BlockingIOError:
        raise click.UsageError(
            f"{directory} belongs to a demo that is running; stop it, or run this one in another directory"
        ) from None
    finally:
        os.close(lock)


async def _demo(settings: Settings, key: DevKey, ingest_token: str) -> None:
    fleet = demo_fleet()
    started = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        jwks_url = await stack.enter_async_context(serve_key_set(key))
        with open_store(settings.dsn, None, CollectorRegistry()) as store:
            events = await asyncio.to_thread(fill, store, fleet)
        tokens = TokenPolicy(issuers=(DEMO_ISSUER,), audiences=frozenset({DEMO_AUDIENCE}), jwks_urls=(jwks_url,))
        await stack.enter_async_context(running(replace(settings, tokens=tokens)))
        api = f"http://{authority(settings.api.host, settings.api.port)}"
        in_background(stack, _live_events(fleet, RemoteWriter(api, ingest_token)))
        click.echo(f"\n{events:,} events of 90 days are in; ready after {time.monotonic() - started:.1f} s.")
        click.echo(_demo_text(settings, key, fleet))
        await until_signalled()
        click.echo("stopping ...")


async def _live_events(fleet: DemoFleet, remote: RemoteWriter) -> None:
    """Posts events as a provider would, at a few a second."""
    pick = random.Random()  # noqa: S311 - made-up data, no secret
    while True:
        with contextlib.suppress(StoreError):
            await asyncio.to_thread(remote.write, demo_moment(fleet, pick, datetime.now(UTC)))
        await asyncio.sleep(1)


def _command() -> str:
    """How this program was called, so that a second terminal in this directory can call it too."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py" or called.suffix == ".py":
        return f"{os.path.relpath(sys.executable)} -m agentidp_analytics"
    return called.name if shutil.which(called.name) else os.path.relpath(called)


def _demo_text(settings: Settings, key: DevKey, fleet: DemoFleet) -> str:
    api = f"http://{authority(settings.api.host, settings.api.port)}"
    exporter = authority(settings.exporter.host, settings.exporter.port)
    token = key.token(
        TenantId(fleet.looping_tenant),
        issuer=DEMO_ISSUER,
        audience=DEMO_AUDIENCE,
        now=time.time(),
        lifetime=12 * 3600,
    )
    troubles = "\n              ".join(trouble.story for trouble in fleet.troubles)
    curl = 'curl -s -H "Authorization: Bearer $TOKEN"'
    return f"""
  query API   {api}   (OpenAPI: {api}/openapi.json)
  exporter    http://{exporter}/metrics
  tenants     {", ".join(sorted({agent.tenant_id for agent in fleet.agents}))}
  stories     {fleet.looping_tenant}: one agent looped {fleet.looping_days_ago} days ago
              {fleet.silent_tenant}: silent for {fleet.silent_for_days} days
              {fleet.dominated_tenant}: one agent takes most of the tokens
              {troubles}
  alerts      of all of them in a minute or two: {_command()} alerts --url http://{exporter}

A token of {fleet.looping_tenant}, valid for 12 hours (for another tenant: {_command()} token --tenant NAME):

export TOKEN={token}

{curl} '{api}/api/v1/analytics/tokens?days=30'
{curl} '{api}/api/v1/analytics/agents/activity?days=30'
{curl} '{api}/api/v1/analytics/agents'

Prometheus: add this to scrape_configs (grafana/prometheus.yml has it with the alert rules):

  - job_name: agentidp-analytics
    static_configs: [{{targets: ["{exporter}"]}}]

Ctrl-C stops it.
"""
