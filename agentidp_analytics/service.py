"""The service's life: what the settings name is opened in order, runs, and is closed in the opposite order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Final, NamedTuple, Protocol

import click
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from agentidp_analytics.files import FileMetrics, Files
from agentidp_analytics.measuring import every_minute
from agentidp_analytics.settings import Settings
from clickhouse.commit import GroupCommit
from clickhouse.daily import DailyRound
from clickhouse.detection.detector import BIN
from clickhouse.errors import StoreError
from clickhouse.metrics import StoreMetrics
from clickhouse.open_store import open_store
from clickhouse.sharded import ShardedStore
from clickhouse.store import Store
from exporter.inquiries import Inquiries
from exporter.metrics import ExporterMetrics
from exporter.refresher import Refresher
from exporter.runner import MAX_CONNECTIONS, ExporterRunner
from exporter.server import build_app as build_exporter
from exporter.web_config import WebConfig
from query_api.app import build_app
from query_api.auth.verifier import Verifier, open_verifier
from query_api.http.server import ApiServer
from query_api.ports import Readiness

logger = logging.getLogger(__name__)

VERSION: Final = version("agentidp-analytics")
# File descriptors beside those of connections: of an embedded store while it merges and answers many questions at once
# (140 over those of an idle process were seen), and of connections that are accepted only to be closed.
OTHER_FILES: Final = 400


def authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def require_free_addresses(addresses: Mapping[str, tuple[str, int]]) -> None:
    """Raises click.UsageError naming the option whose address cannot be listened on. All are free again on return."""
    with contextlib.ExitStack() as held:
        for option_name, (host, port) in addresses.items():
            try:
                family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
                held.enter_context(contextlib.closing(socket.create_server((host, port), family=family)))
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or "no host name"
                raise click.UsageError(
                    f"{option_name} {authority(host, port)} cannot be listened on: {reason}; give another address"
                ) from error


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[None]:
    """Serves as `settings` say until the block is left; then drains: requests are finished, their events stored."""
    require_open_files(MAX_CONNECTIONS + (settings.api.limits.connections if settings.tokens else 0))
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    # Before the store: a wrong setting must not leave a new store behind.
    files = Files.read(settings)
    registry.register(FileMetrics(files))
    listen = {} if settings.only == "exporter" else {"--listen": (settings.api.host, settings.api.port)}
    require_free_addresses({**listen, "--metrics-listen": (settings.exporter.host, settings.exporter.port)})
    async with contextlib.AsyncExitStack() as stack:
        verifier = None
        if settings.tokens is not None:
            try:
                verifier = await stack.enter_async_context(open_verifier(settings.tokens, registry))
            except ValueError as error:
                raise click.UsageError(str(error)) from error
        # An exporter of its own neither writes nor recounts: metrics of that would be zeros that look like silence.
        store_registry = registry if verifier is not None else CollectorRegistry()
        store = await asyncio.to_thread(open_store, settings.dsn, settings.cluster, store_registry)
        stack.enter_context(store)
        if verifier is not None:
            await _start_api(settings, files, store, verifier, registry, stack)
        await _start_exporter(settings, files.web_config, store, registry, stack)
        yield


def require_open_files(connections: int) -> None:
    """Raises the soft limit of open files to the hard one. Raises click.UsageError if that is too few.

    With too few, idle connections would take those that the store writes with.
    """
    needed = connections + OTHER_FILES
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < needed:
        raise click.UsageError(
            f"the limit of open files (ulimit -Hn) is {most}; {connections} connections and the store need {needed}: "
            f"raise it, LimitNOFILE={needed} in a systemd unit, ulimits in a container"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _start_api(
    settings: Settings,
    files: Files,
    store: Store | ShardedStore,
    verifier: Verifier,
    registry: CollectorRegistry,
    stack: contextlib.AsyncExitStack,
) -> None:
    store.upkeep.start()
    stack.push_async_callback(asyncio.to_thread, store.upkeep.stop)
    commit = GroupCommit(store.writer, store.metrics)
    await commit.start()
    stack.push_async_callback(commit.stop)
    api = build_app(
        settings.api,
        sources=files.sources,
        verifier=verifier,
        questions=store.queries(settings.api.query_seconds),
        alerts=store.alerts(settings.api.query_seconds),
        details=store.agent_details(settings.api.query_seconds),
        event_writer=commit,
        readiness=Ready((store, commit)),
        registry=registry,
    )
    server = ApiServer(api, settings.api, files.certificate)
    stack.push_async_callback(server.stop)
    try:
        port = await server.start()
    except OSError as error:
        raise click.UsageError(f"--listen {settings.api.host}:{settings.api.port}: {error.strerror}") from error
    scheme = "https" if settings.api.tls_cert else "http"
    logger.info("query API and ingest at %s://%s", scheme, authority(settings.api.host, port))
    in_background(stack, _every_day(store.daily(settings.retention_days)))
    detector = store.detector(files.budgets.current) if files.budgets else store.detector()
    in_background(stack, _every_five_minutes(detector, store.metrics))
    in_background(stack, every_minute(store))


class Ready(NamedTuple):
    """The service can be given work when each of its parts can."""

    parts: Sequence[Readiness]

    def check(self) -> None:
        """Raises StoreError with the first reason against it."""
        for part in self.parts:
            part.check()


async def _start_exporter(
    settings: Settings,
    web_config: WebConfig | None,
    store: Store | ShardedStore,
    registry: CollectorRegistry,
    stack: contextlib.AsyncExitStack,
) -> None:
    exporter = settings.exporter
    host, port = exporter.host, exporter.port
    if settings.only == "api":
        app = build_exporter(None, registry, web_config)
    else:
        refresher = Refresher(
            store.totals(),
            ExporterMetrics(registry, VERSION),
            interval=exporter.refresh_interval,
            max_age=exporter.max_age,
            zero_hold=exporter.zero_hold,
            max_tenants=exporter.max_tenants,
        )
        inquiries = Inquiries(
            store.alerts(exporter.inquiry_seconds),
            store.agent_details(exporter.inquiry_seconds),
            seconds=exporter.inquiry_seconds,
        )
        app = build_exporter(refresher, registry, web_config, inquiries)
    runner = ExporterRunner(app)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        bound = await runner.listen(host, port, web_config.ssl_context() if web_config else None)
    except OSError as error:
        raise click.UsageError(f"--metrics-listen {host}:{port}: {error.strerror}") from error
    scheme = "https" if web_config and web_config.ssl_context() else "http"
    logger.info("exporter at %s://%s/metrics", scheme, authority(host, bound))


def in_background(stack: contextlib.AsyncExitStack, work: Awaitable[None]) -> None:
    task = asyncio.ensure_future(work)

    async def stop() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(stop)


async def _every_day(daily: DailyRound) -> None:
    work: Callable[[], object] = daily.resume
    while True:
        try:
            await asyncio.to_thread(work)
        except Exception:  # whatever it was (a full disk, for one), the next round must come
            logger.exception("the daily round failed and is tried again tomorrow")
        await asyncio.sleep(daily.seconds_until_next())
        work = daily.run


class Detects(Protocol):
    """What finds alerts."""

    def tick(self) -> None: ...


# From the end of a bin to the round that judges it: by then its events are in the rollups.
_DETECTION_DELAY: Final = 20.0


async def _every_five_minutes(detector: Detects, metrics: StoreMetrics) -> None:
    """At once, which makes up for the time that the service was away, and then after each bin."""
    while True:
        started = time.time()
        try:
            await asyncio.to_thread(detector.tick)
        except Exception as error:  # whatever it was, the next round must come
            metrics.detection_failures.inc()
            expected = isinstance(error, StoreError)
            logger.log(
                logging.WARNING if expected else logging.ERROR,
                "detection failed and is tried again in a few minutes: %s",
                error,
                exc_info=None if expected else error,
            )
        else:
            metrics.detection_last_success.set(time.time())
            metrics.detection_seconds.set(time.time() - started)
        await asyncio.sleep(BIN - (time.time() - _DETECTION_DELAY) % BIN)


async def until_signalled() -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
