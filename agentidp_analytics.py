"""The front door: command line, settings and wiring. The only place that knows the store and both faces."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import resource
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from clickhouse import commands
from clickhouse.backfill import InputError
from clickhouse.commit import GroupCommit
from clickhouse.counters_file import CountersFile
from clickhouse.daily import DailyRound
from clickhouse.demo_events import DemoFleet, demo_fleet, demo_moment, fill
from clickhouse.errors import StoreError, StoreSetupError
from clickhouse.keeper import Keeper
from clickhouse.options import EXISTING_FILE, Address, Duration, PerSecond, option, options, store_options
from clickhouse.queries import Queries
from clickhouse.remote import RemoteWriter
from clickhouse.totals import Totals
from exporter.metrics import ExporterMetrics
from exporter.refresher import Refresher
from exporter.runner import MAX_CONNECTIONS, ExporterRunner
from exporter.server import build_app as build_exporter
from exporter.web_config import WebConfig
from exporter.web_settings import WebConfigError
from query_api.app import build_app
from query_api.dev_keys import DevKey, serve_key_set
from query_api.logs import configure_logging
from query_api.ports import Readiness
from query_api.server import ApiServer
from query_api.settings import ApiSettings, Limits, Rate
from query_api.source_tokens import SourceTokens, SourceTokensError
from query_api.tls import ServerCertificate, TlsFilesError
from query_api.trust import Trust, verifying
from query_api.verifier import DEFAULT_TOKEN_TYPES, Verifier

logger = logging.getLogger("agentidp_analytics")

VERSION: Final = version("agentidp-analytics")
# File descriptors beside those of connections: of an embedded store while it merges and answers many questions at once
# (140 over those of an idle process were seen), and of connections that are accepted only to be closed.
OTHER_FILES: Final = 400
DEMO_DIRECTORY: Final = "demo-data"
DEMO_MARKER: Final = "agentidp-analytics-demo"
DEMO_ISSUER: Final = "http://127.0.0.1/demo"
DEMO_AUDIENCE: Final = "https://analytics.example/api"


# --- Settings -------------------------------------------------------------------------------------------------------


# fmt: off
listen_options = options(
    option("--listen", type=Address(), default="127.0.0.1:3000", show_default=True, help="Query API and ingest."),
    option("--metrics-listen", type=Address(), default="127.0.0.1:9464", show_default=True, help="Exporter."),
    option("--refresh-interval", type=Duration(0.1), default="5s", show_default=True,
           help="Of the exporter's snapshot."),
    option("--max-tenants", type=click.IntRange(1, 10_000_000), default=10_000, show_default=True,
           help="Tenants with series of their own; the rest is summed as _other."),
    option("--zero-hold", type=Duration(), default="15s", show_default=True,
           help="How long a new tenant's counters stay at 0 after a scrape first saw them: one scrape interval."),
)
serve_options = options(
    store_options,
    listen_options,
    option("--only", type=click.Choice(["api", "exporter"]), help="Run one half; needs a ClickHouse server."),
    option("--issuer", multiple=True, help="Accepted iss, exact; repeatable."),
    option("--no-issuer-check", is_flag=True, help="Do not look at iss: any token signed by a key of the set."),
    option("--audience", multiple=True, help="Accepted aud; repeatable."),
    option("--no-audience-check", is_flag=True, help="Do not look at aud: also tokens meant for somebody else."),
    option("--jwks-url", multiple=True,
           help="The issuer's key set (https, or http on loopback). Once for all issuers, or once for each in order."),
    option("--ca-file", type=EXISTING_FILE,
           help="Authorities to trust for --jwks-url, PEM.  [default: the system's]"),
    option("--jwt-algorithms", default="RS256", show_default=True, help="RS/PS/ES 256-512, EdDSA; comma-separated."),
    option("--tenant-claim", default="organization_id", show_default=True, help="Claim that names the tenant."),
    option("--token-types", default=",".join(DEFAULT_TOKEN_TYPES), show_default=True, help="Accepted typ headers."),
    option("--max-token-lifetime", type=Duration(1), default="24h", show_default=True, help="Longest exp - iat."),
    option("--required-scope", help="Scope that every analytics call must have."),
    option("--ingest-token-file", type=EXISTING_FILE, help="Bearer tokens of trusted event sources, one a line."),
    option("--tenant-rate-limit", type=PerSecond(), default=200.0, show_default=True,
           help="Analytics requests a second of one tenant; five seconds' worth may come at once."),
    option("--source-rate-limit", type=PerSecond(),
           help="The same for the ingest requests of one source.  [default: no limit]"),
    option("--source-event-rate-limit", type=PerSecond(),
           help="Events a second of one source.  [default: no limit]"),
    option("--retention-days", type=click.IntRange(1, 36_500),
           help="Remove older days every night.  [default: keep all]"),
    option("--tls-cert", type=EXISTING_FILE, help="Certificate chain of the API, PEM; re-read when it changes."),
    option("--tls-key", type=EXISTING_FILE, help="Its private key."),
    option("--web-config-file", type=EXISTING_FILE, help="TLS and basic auth of the exporter (exporter-toolkit file)."),
    option("--behind-proxy", is_flag=True, help="A proxy in front does TLS: no warning for listening in the open."),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `serve` was asked to do."""

    dsn: str
    cluster: str | None = None
    only: str | None = None
    api: ApiSettings
    trust: Trust | None  # None: no query API in this process
    metrics_listen: tuple[str, int] = ("127.0.0.1", 9464)
    refresh_interval: float = 5.0
    max_tenants: int = 10_000
    zero_hold: float = 15.0
    retention_days: int | None = None
    web_config_file: Path | None = None


def settings_from(values: dict[str, Any]) -> Settings:
    """Checks the options against each other. Raises click.UsageError with one line that names the setting."""
    dsn = values["dsn"]
    with_api = values["only"] != "exporter"
    if values["only"] and dsn.startswith("chdb:"):
        raise click.UsageError(
            f"--only {values['only']} needs a ClickHouse server as --dsn: the embedded store belongs to one process"
        )
    if with_api:
        _require(values, "issuer", "--no-issuer-check", "the expected iss of the tokens")
        _require(values, "audience", "--no-audience-check", "the expected aud of the tokens")
    try:
        api = ApiSettings(
            host=values["listen"][0],
            port=values["listen"][1],
            tls_cert=values["tls_cert"],
            tls_key=values["tls_key"],
            ingest_token_file=values["ingest_token_file"],
            limits=Limits(
                tenant_requests=_rate(values["tenant_rate_limit"]),
                source_requests=_rate(values["source_rate_limit"]),
                source_events=_rate(values["source_event_rate_limit"]),
            ),
        )
        trust = _trust(values) if with_api else None
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return Settings(
        dsn=dsn,
        cluster=values["cluster"],
        only=values["only"],
        api=api,
        trust=trust,
        metrics_listen=values["metrics_listen"],
        refresh_interval=values["refresh_interval"],
        max_tenants=values["max_tenants"],
        zero_hold=values["zero_hold"],
        retention_days=values["retention_days"],
        web_config_file=values["web_config_file"],
    )


def _trust(values: dict[str, Any]) -> Trust:
    return Trust(
        issuers=tuple(values["issuer"]),
        audiences=None if values["no_audience_check"] else frozenset(values["audience"]),
        jwks_urls=tuple(values["jwks_url"]),
        algorithms=_list(values["jwt_algorithms"]),
        tenant_claim=values["tenant_claim"],
        token_types=_list(values["token_types"]),
        max_token_lifetime=values["max_token_lifetime"],
        required_scope=values["required_scope"],
        ca_file=values["ca_file"],
    )


def _require(values: dict[str, Any], name: str, give_up: str, what: str) -> None:
    given, given_up = values[name], values[give_up.strip("-").replace("-", "_")]
    if given and given_up:
        raise click.UsageError(f"--{name} and {give_up} contradict each other; give one of them")
    if not given and not given_up:
        raise click.UsageError(f"--{name} is missing; give {what}, or {give_up} to do without that check")


def _rate(per_second: float | None) -> Rate | None:
    return None if per_second is None else Rate(per_second, max(1, round(5 * per_second)))


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files that settings name, read."""

    sources: SourceTokens | None
    certificate: ServerCertificate | None
    web_config: WebConfig | None

    @classmethod
    def read(cls, settings: Settings) -> Files:
        """Raises SourceTokensError, TlsFilesError or WebConfigError for one that cannot be used."""
        api = settings.api if settings.trust else ApiSettings()  # without the API, nobody uses its files
        return cls(
            sources=SourceTokens(api.ingest_token_file) if api.ingest_token_file else None,
            certificate=ServerCertificate(api.tls_cert, api.tls_key) if api.tls_cert and api.tls_key else None,
            web_config=WebConfig(settings.web_config_file) if settings.web_config_file else None,
        )


# --- Wiring ---------------------------------------------------------------------------------------------------------


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
                    f"{option_name} {_authority(host, port)} cannot be listened on: {reason}; give another address"
                ) from error


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[None]:
    """Serves as `settings` say until the block is left; then drains: requests are finished, their events stored."""
    _require_open_files(settings)
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    # Before the store: a wrong setting must not leave a new store behind.
    files = Files.read(settings)
    listen = {} if settings.only == "exporter" else {"--listen": (settings.api.host, settings.api.port)}
    require_free_addresses({**listen, "--metrics-listen": settings.metrics_listen})
    async with contextlib.AsyncExitStack() as stack:
        verifier = None
        if settings.trust is not None:
            try:
                verifier = await stack.enter_async_context(verifying(settings.trust, registry))
            except ValueError as error:
                raise click.UsageError(str(error)) from error
        # An exporter of its own neither writes nor recounts: metrics of that would be zeros that look like silence.
        store_registry = registry if verifier is not None else CollectorRegistry()
        keeper = stack.enter_context(await asyncio.to_thread(Keeper, settings.dsn, settings.cluster, store_registry))
        if verifier is not None:
            await _start_api(settings, files, keeper, verifier, registry, stack)
        await _start_exporter(settings, files.web_config, keeper, registry, stack)
        yield


def _require_open_files(settings: Settings) -> None:
    """Raises the soft limit of open files to the hard one. Raises click.UsageError if that is too few.

    With too few, idle connections would take those that the store writes with.
    """
    connections = MAX_CONNECTIONS + (settings.api.limits.connections if settings.trust else 0)
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
    keeper: Keeper,
    verifier: Verifier,
    registry: CollectorRegistry,
    stack: contextlib.AsyncExitStack,
) -> None:
    keeper.upkeep.start()
    stack.push_async_callback(asyncio.to_thread, keeper.upkeep.stop)
    commit = GroupCommit(keeper.writer, keeper.metrics)
    await commit.start()
    stack.push_async_callback(commit.stop)
    api = build_app(
        settings.api,
        sources=files.sources,
        verifier=verifier,
        questions=Queries(keeper.store, settings.api.query_seconds),
        inlet=commit,
        readiness=Ready((keeper, commit)),
        registry=registry,
    )
    server = ApiServer(api, settings.api, files.certificate)
    stack.push_async_callback(server.stop)
    try:
        port = await server.start()
    except OSError as error:
        raise click.UsageError(f"--listen {settings.api.host}:{settings.api.port}: {error.strerror}") from error
    scheme = "https" if settings.api.tls_cert else "http"
    logger.info("query API and ingest at %s://%s", scheme, _authority(settings.api.host, port))
    daily = DailyRound(
        keeper.store,
        keeper.upkeep,
        keeper.removal,
        keeper.metrics,
        retention_days=settings.retention_days,
        clock=time.time,
    )
    _in_background(stack, _every_day(daily))


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
    keeper: Keeper,
    registry: CollectorRegistry,
    stack: contextlib.AsyncExitStack,
) -> None:
    host, port = settings.metrics_listen
    if settings.only == "api":
        app = build_exporter(None, registry, web_config)
    else:
        path = keeper.store.counters_file
        refresher = Refresher(
            Totals(keeper.store, counters_file=CountersFile(path) if path else None),
            ExporterMetrics(registry, VERSION),
            interval=settings.refresh_interval,
            max_age=max(300.0, settings.refresh_interval),
            zero_hold=settings.zero_hold,
            max_tenants=settings.max_tenants,
        )
        app = build_exporter(refresher, registry, web_config)
    runner = ExporterRunner(app)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        bound = await runner.listen(host, port, web_config.ssl_context() if web_config else None)
    except OSError as error:
        raise click.UsageError(f"--metrics-listen {host}:{port}: {error.strerror}") from error
    scheme = "https" if web_config and web_config.ssl_context() else "http"
    logger.info("exporter at %s://%s/metrics", scheme, _authority(host, bound))


def _in_background(stack: contextlib.AsyncExitStack, work: Awaitable[None]) -> None:
    task = asyncio.ensure_future(work)

    async def stop() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(stop)


async def _every_day(daily: DailyRound) -> None:
    with contextlib.suppress(StoreError):  # a full disk, for one: the service starts all the same, and it comes again
        await asyncio.to_thread(daily.resume)
    while True:
        await asyncio.sleep(daily.seconds_until_next())
        try:
            await asyncio.to_thread(daily.run)
        except Exception:  # whatever it was, tomorrow's round must come
            logger.exception("the daily round failed and is tried again tomorrow")


async def _until_signalled() -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()


# --- Commands -------------------------------------------------------------------------------------------------------


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(VERSION, prog_name="agentidp-analytics")
def cli() -> None:
    """Exact token-issuance analytics for identity providers of machine agents."""


@cli.command()
@serve_options
def serve(**values: Any) -> None:
    """Runs the query API, the ingest endpoint and the exporter."""
    settings = settings_from(values)
    _warn_if_open(settings, behind_proxy=values["behind_proxy"])
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    async with running(settings):
        await _until_signalled()
        logger.info("stopping: requests under way are finished and their events stored")


def _warn_if_open(settings: Settings, *, behind_proxy: bool) -> None:
    listeners = [("--metrics-listen", settings.metrics_listen[0], bool(settings.web_config_file) or behind_proxy)]
    if settings.only != "exporter":
        listeners.append(("--listen", settings.api.host, bool(settings.api.tls_cert) or behind_proxy))
    for name, host, is_protected in listeners:
        if not is_protected and host not in ("127.0.0.1", "::1", "localhost"):
            logger.warning(
                "%s %s is open to the network without TLS: tokens can be read on the way. Give --tls-cert and "
                "--tls-key (exporter: --web-config-file), or --behind-proxy if a proxy does TLS",
                name,
                host,
            )


for command in (commands.migrate, commands.ingest, commands.export_command, commands.verify_command, commands.erase):
    cli.add_command(command)


@cli.command()
@listen_options
@option(
    "--log-format",
    type=click.Choice(["json", "text"]),
    help="Of the structured logs on stderr.  [default: text on a terminal, else json]",
)
def demo(
    listen: tuple[str, int],
    metrics_listen: tuple[str, int],
    refresh_interval: float,
    max_tenants: int,
    zero_hold: float,
    log_format: str | None,
) -> None:
    """Serves a fresh store filled with 90 days of made-up events, and goes on with a few events a second."""
    _configure_logging(log_format)
    logging.getLogger("query_api.access").setLevel(logging.WARNING)
    require_free_addresses({"--listen": listen, "--metrics-listen": metrics_listen})
    with _demo_directory() as directory:
        key = DevKey.generate()
        key.save(directory / "signing-key.pem")
        ingest_token = secrets.token_urlsafe(24)
        token_file = directory / "ingest-token"
        token_file.touch(mode=0o600)
        token_file.write_text(ingest_token + "\n")
        settings = Settings(
            dsn=f"chdb://{directory / 'store'}",
            api=ApiSettings(host=listen[0], port=listen[1], ingest_token_file=token_file),
            trust=None,
            metrics_listen=metrics_listen,
            refresh_interval=refresh_interval,
            max_tenants=max_tenants,
            zero_hold=zero_hold,
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
        with Keeper(settings.dsn, None, CollectorRegistry()) as keeper:
            events = await asyncio.to_thread(fill, keeper, fleet)
        trust = Trust(issuers=(DEMO_ISSUER,), audiences=frozenset({DEMO_AUDIENCE}), jwks_urls=(jwks_url,))
        await stack.enter_async_context(running(replace(settings, trust=trust)))
        api = f"http://{_authority(settings.api.host, settings.api.port)}"
        _in_background(stack, _live_events(fleet, RemoteWriter(api, ingest_token)))
        click.echo(f"\n{events:,} events of 90 days are in; ready after {time.monotonic() - started:.1f} s.")
        click.echo(_demo_text(settings, key, fleet))
        await _until_signalled()
        click.echo("stopping ...")


async def _live_events(fleet: DemoFleet, remote: RemoteWriter) -> None:
    """Posts events as a provider would, at a few a second."""
    pick = random.Random()  # noqa: S311 - made-up data, no secret
    while True:
        with contextlib.suppress(StoreError):
            await asyncio.to_thread(remote.write, demo_moment(fleet, pick, datetime.now(UTC)))
        await asyncio.sleep(1)


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _command() -> str:
    """How this program was called, so that a second terminal in this directory can call it too."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py" or called.suffix == ".py":
        return f"{os.path.relpath(sys.executable)} -m agentidp_analytics"
    return called.name if shutil.which(called.name) else os.path.relpath(called)


def _demo_text(settings: Settings, key: DevKey, fleet: DemoFleet) -> str:
    api = f"http://{_authority(settings.api.host, settings.api.port)}"
    exporter = _authority(*settings.metrics_listen)
    token = key.token(
        commands.tenant_option(fleet.looping_tenant),
        issuer=DEMO_ISSUER,
        audience=DEMO_AUDIENCE,
        now=time.time(),
        lifetime=12 * 3600,
    )
    curl = 'curl -s -H "Authorization: Bearer $TOKEN"'
    return f"""
  query API   {api}   (OpenAPI: {api}/openapi.json)
  exporter    http://{exporter}/metrics
  tenants     {", ".join(sorted({agent.tenant_id for agent in fleet.agents}))}
  stories     {fleet.looping_tenant}: one agent looped {fleet.looping_days_ago} days ago
              {fleet.silent_tenant}: silent for {fleet.silent_for_days} days
              {fleet.dominated_tenant}: one agent takes most of the tokens

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


@cli.command()
@option("--key", type=EXISTING_FILE, help=f"Private key, PEM.  [default: {DEMO_DIRECTORY}/signing-key.pem]")
@option("--tenant", required=True, help="Tenant that the token is for.")
@option("--issuer", default=DEMO_ISSUER, show_default=True, help="iss of the token.")
@option("--audience", default=DEMO_AUDIENCE, show_default=True, help="aud of the token.")
@option("--lifetime", type=Duration(1), default="1h", show_default=True, help="exp - iat.")
@option("--tenant-claim", default="organization_id", show_default=True, help="Claim that names the tenant.")
def token(key: Path | None, tenant: str, issuer: str, audience: str, lifetime: float, tenant_claim: str) -> None:
    """Mints a development token, with the key that demo made or a given one."""
    for name, value in (("--issuer", issuer), ("--audience", audience), ("--tenant-claim", tenant_claim)):
        if not value:
            raise click.UsageError(f"{name} is empty; give a value, or leave it out")
    path = key or Path(DEMO_DIRECTORY) / "signing-key.pem"
    try:
        dev_key = DevKey.load(path)
    except FileNotFoundError as error:
        raise click.UsageError(f"--key {path} does not exist; run demo first, or give a PEM file") from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(
        dev_key.token(
            commands.tenant_option(tenant),
            issuer=issuer,
            audience=audience,
            now=time.time(),
            lifetime=int(lifetime),
            tenant_claim=tenant_claim,
        )
    )


def _configure_logging(log_format: str | None) -> None:
    configure_logging("text" if (log_format or ("text" if sys.stderr.isatty() else "json")) == "text" else "json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command. A wrong setting ends with one line and exit 2, a store that fails with one line and exit 1."""
    try:
        cli.main(args=arguments, prog_name="agentidp-analytics", standalone_mode=False, obj=_configure_logging)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        raise SystemExit(2) from None
    except click.ClickException as error:
        _end(error.format_message(), 2)
    except (StoreSetupError, SourceTokensError, TlsFilesError, WebConfigError) as error:
        _end(str(error), 2)
    except (StoreError, InputError) as error:
        _end(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        raise SystemExit(130) from None


def _end(message: str, status: int) -> None:
    click.echo(f"agentidp-analytics: {' '.join(message.split())}", err=True)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
