"""What `serve` and `demo` were asked to do: the options, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from agentidp_analytics.options import EXISTING_FILE, Address, Duration, PerSecond, option, options, store_options
from exporter.settings import ExporterSettings
from query_api.auth.token_policy import TokenPolicy
from query_api.settings import ApiSettings, Limits, Rate

# fmt: off
listen_options = options(
    option("--listen", type=Address(), default=f"{ApiSettings.host}:{ApiSettings.port}", show_default=True,
           help="Query API and ingest."),
    option("--metrics-listen", type=Address(), default=f"{ExporterSettings.host}:{ExporterSettings.port}",
           show_default=True, help="Exporter."),
    option("--refresh-interval", type=Duration(0.1), default=f"{ExporterSettings.refresh_interval:g}s",
           show_default=True, help="Of the exporter's snapshot."),
    option("--max-tenants", type=click.IntRange(1, 10_000_000), default=ExporterSettings.max_tenants, show_default=True,
           help="Tenants with series of their own; the rest is summed as _other."),
    option("--zero-hold", type=Duration(), default=f"{ExporterSettings.zero_hold:g}s", show_default=True,
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
    option("--tenant-claim", default=TokenPolicy.tenant_claim, show_default=True, help="Claim that names the tenant."),
    option("--token-types", default=",".join(TokenPolicy.token_types), show_default=True, help="Accepted typ headers."),
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
    option("--budgets", type=EXISTING_FILE,
           help="Monthly token budgets of tenants and agents, TOML; re-read when it changes."),
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
    tokens: TokenPolicy | None  # None: no query API in this process
    exporter: ExporterSettings
    retention_days: int | None = None
    budgets: Path | None = None


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
        tokens = _token_policy(values) if with_api else None
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return Settings(
        dsn=dsn,
        cluster=values["cluster"],
        only=values["only"],
        api=api,
        tokens=tokens,
        exporter=exporter_settings(values),
        retention_days=values["retention_days"],
        budgets=values["budgets"],
    )


def exporter_settings(values: dict[str, Any]) -> ExporterSettings:
    """The exporter's part of the options of `serve` or `demo`."""
    return ExporterSettings(
        host=values["metrics_listen"][0],
        port=values["metrics_listen"][1],
        refresh_interval=values["refresh_interval"],
        max_tenants=values["max_tenants"],
        zero_hold=values["zero_hold"],
        web_config_file=values.get("web_config_file"),
    )


def _token_policy(values: dict[str, Any]) -> TokenPolicy:
    return TokenPolicy(
        issuers=None if values["no_issuer_check"] else tuple(values["issuer"]),
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
