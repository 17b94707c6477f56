"""The command line: `agentidp-analytics COMMAND`."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from agentidp_analytics import investigation, store_commands
from agentidp_analytics.backfill import InputError
from agentidp_analytics.budgets_file import BudgetsError
from agentidp_analytics.demo import DEMO_AUDIENCE, DEMO_DIRECTORY, DEMO_ISSUER, demo
from agentidp_analytics.dev_keys import DevKey
from agentidp_analytics.options import EXISTING_FILE, Duration, option
from agentidp_analytics.service import VERSION, running, until_signalled
from agentidp_analytics.settings import Settings, serve_options, settings_from
from clickhouse.errors import StoreError, StoreSetupError
from exporter.web_settings import WebConfigError
from query_api.auth.token_policy import TokenPolicy
from query_api.http.tls import TlsFilesError
from query_api.ingest.sources import SourceTokensError

logger = logging.getLogger(__name__)

_OUTPUT_ERRORS: Final = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


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
        await until_signalled()
        logger.info("stopping: requests under way are finished and their events stored")


def _warn_if_open(settings: Settings, *, behind_proxy: bool) -> None:
    listeners = [("--metrics-listen", settings.exporter.host, bool(settings.exporter.web_config_file) or behind_proxy)]
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


for command in (
    store_commands.migrate,
    store_commands.ingest,
    store_commands.export_command,
    store_commands.verify_command,
    store_commands.erase,
    store_commands.failover_command,
    investigation.alerts_command,
    investigation.investigate,
    demo,
):
    cli.add_command(command)


@cli.command()
@option("--key", type=EXISTING_FILE, help=f"Private key, PEM.  [default: {DEMO_DIRECTORY}/signing-key.pem]")
@option("--tenant", required=True, help="Tenant that the token is for.")
@option("--issuer", default=DEMO_ISSUER, show_default=True, help="iss of the token.")
@option("--audience", default=DEMO_AUDIENCE, show_default=True, help="aud of the token.")
@option("--lifetime", type=Duration(1), default="1h", show_default=True, help="exp - iat.")
@option("--tenant-claim", default=TokenPolicy.tenant_claim, show_default=True, help="Claim that names the tenant.")
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
            store_commands.tenant_option(tenant),
            issuer=issuer,
            audience=audience,
            now=time.time(),
            lifetime=int(lifetime),
            tenant_claim=tenant_claim,
        )
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command. A wrong setting ends with one line and exit 2, a store that fails with one line and exit 1."""
    try:
        cli.main(args=arguments, prog_name="agentidp-analytics", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        raise SystemExit(2) from None
    except click.ClickException as error:
        _end(error.format_message(), 2)
    except (StoreSetupError, SourceTokensError, TlsFilesError, WebConfigError, BudgetsError) as error:
        _end(str(error), 2)
    except (StoreError, InputError) as error:
        _end(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        raise SystemExit(130) from None
    except OSError as error:
        if error.errno not in _OUTPUT_ERRORS:
            raise
        # Python would write what is left once more when it ends, and complain in its own way.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            raise SystemExit(1) from None  # who read it has seen enough
        _end(f"standard output cannot be written: {error.strerror}", 1)


def _end(message: str, status: int) -> None:
    click.echo(f"agentidp-analytics: {' '.join(message.split())}", err=True)
    raise SystemExit(status)
