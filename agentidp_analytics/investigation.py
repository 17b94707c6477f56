"""The commands that tell who did that: alerts and investigate, from a store or from the service that holds it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from typing import Any, Protocol

import click
from click.core import ParameterSource
from prometheus_client import CollectorRegistry

from agentidp_analytics.exporter_client import DEFAULT_URL, Credentials, ExporterClient
from agentidp_analytics.options import EXISTING_FILE, cluster_option, log_format_option, option, options
from agentidp_analytics.report import agent_report, alert_table
from agentidp_analytics.store_commands import tenant_option
from clickhouse.alert_json import alerts_body, detail_body
from clickhouse.errors import StoreInUseError, StoreSetupError
from clickhouse.event import CONTROL_CHARACTERS, MAX_ID_LENGTH
from clickhouse.open_store import open_store
from clickhouse.sharded import ShardedStore
from clickhouse.store import Store
from clickhouse.tenant import TenantId
from exporter.parameters import DAYS_MAX

_DAYS = click.IntRange(1, DAYS_MAX)

# fmt: off
_source_options = options(
    option("--dsn", help="Read this store itself: an embedded one that no service holds, or a server."),
    cluster_option,
    option("--url", show_default=DEFAULT_URL,
           help="Ask the running service whose exporter listens here; then --dsn is not used."),
    option("--web-user", help="User of the exporter's basic auth, for --url."),
    option("--password-file", type=EXISTING_FILE, help="Its password, on the first line."),
    option("--ca-file", type=EXISTING_FILE, help="Authorities to trust for --url, PEM.  [default: the system's]"),
    option("--json", is_flag=True, help="Print the JSON that the service answers, on one line."),
    log_format_option,
)
# fmt: on


class Source(Protocol):
    """Where the answers come from. Raises StoreError."""

    def alerts(self, tenant: TenantId | None, days: int) -> dict[str, Any]:
        """The body of the exporter's /alerts."""

    def agent_detail(self, tenant: TenantId, agent: str, days: int) -> dict[str, Any] | None:
        """The body of the exporter's /agents/detail; None for an agent that the tenant never had."""


class StoreSource:
    """A store that this process has opened."""

    def __init__(self, store: Store | ShardedStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    def alerts(self, tenant: TenantId | None, days: int) -> dict[str, Any]:
        """As Source.alerts."""
        now = int(self._clock())
        since, alerts = now - days * 86_400, self._store.alerts()
        return alerts_body(days, alerts.of_tenant(tenant, since, now) if tenant else alerts.of_all(since, now))

    def agent_detail(self, tenant: TenantId, agent: str, days: int) -> dict[str, Any] | None:
        """As Source.agent_detail."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        detail = self._store.agent_details().of(tenant, agent, now, days)
        return None if detail is None else detail_body(tenant, agent, days, detail)


@click.command(name="alerts")
@_source_options
@option("--tenant", help="Only this tenant's.  [default: all tenants']")
@option("--days", type=_DAYS, default=7, show_default=True, help="Alerts that lasted at any time of so many days.")
def alerts_command(tenant: str | None, days: int, json: bool, **where: Any) -> None:
    """Prints what is or was unusual, newest first."""
    whose = None if tenant is None else tenant_option(tenant)
    with _source(**where) as source:
        body = source.alerts(whose, days)
    if json:
        _print([dumps(body)])
    elif body["data"]:
        _print(alert_table(body["data"]))
    else:
        _print([f"no alert of {f'tenant {tenant}' if tenant else 'any tenant'} in the last {days} days"])


@click.command()
@_source_options
@option("--tenant", required=True, help="The agent's tenant.")
@option("--agent", required=True, help="The agent.")
@option("--days", type=_DAYS, default=30, show_default=True, help="UTC days to look at, ending today.")
def investigate(tenant: str, agent: str, days: int, json: bool, **where: Any) -> None:
    """Prints what an agent did: its days, networks, user agents, grant types, scopes and alerts."""
    whose, who = tenant_option(tenant), _agent_option(agent)
    with _source(**where) as source:
        # The alerts first: whoever answers with them is an exporter, and its 404 for an agent is about the agent.
        found = source.alerts(whose, days)["data"]
        detail = source.agent_detail(whose, who, days)
    if detail is None:
        raise click.UsageError(
            f"--agent {agent!r}: tenant {tenant} never had this agent; is the name right, and the --tenant?"
        )
    alerts = [alert for alert in found if alert["agentId"] == who]
    _print([dumps({**detail, "alerts": alerts})] if json else agent_report(detail, alerts))


@contextmanager
def _source(
    dsn: str | None,
    cluster: str | None,
    url: str | None,
    web_user: str | None,
    password_file: Path | None,
    ca_file: Path | None,
) -> Iterator[Source]:
    """What is asked: the service if a `url` is given or no store is, else the store. A flag wins over a variable."""
    if dsn is not None and (url is None or (_is_flag("dsn") and not _is_flag("url"))):
        for name, value in (("web_user", web_user), ("password_file", password_file), ("ca_file", ca_file)):
            if value is not None and _is_flag(name):
                flag = "--" + name.replace("_", "-")
                raise click.UsageError(f"{flag} {value} belongs to --url; give that instead of --dsn, or leave it out")
        try:
            store = open_store(dsn, cluster, CollectorRegistry(), create=False)
        except StoreInUseError as error:
            raise StoreSetupError(
                f"--dsn {dsn}: another process has this embedded store open; ask that process: --url {DEFAULT_URL}, "
                "or what its --metrics-listen says"
            ) from error
        with store:
            yield StoreSource(store)
        return
    if cluster is not None and url is None:
        raise click.UsageError(f"--cluster {cluster} belongs to --dsn; give that too, or leave it out")
    if (web_user is None) != (password_file is None):
        given, missing = (
            ("--web-user", "--password-file") if password_file is None else ("--password-file", "--web-user")
        )
        raise click.UsageError(f"{missing} is missing; {given} {web_user or password_file or ''!r} needs it")
    credentials = None if web_user is None or password_file is None else Credentials(web_user, password_file)
    yield ExporterClient(DEFAULT_URL if url is None else url, credentials, ca_file)


def _is_flag(name: str) -> bool:
    """Whether an option came from the command line and not from a variable."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _agent_option(agent: str) -> str:
    try:
        agent.encode()
    except UnicodeEncodeError:
        raise click.UsageError(f"--agent {agent!r} is not UTF-8, and so the name of no agent") from None
    if not 1 <= len(agent) <= MAX_ID_LENGTH or CONTROL_CHARACTERS.search(agent):
        raise click.UsageError(
            f"--agent {agent!r} is the name of no agent; give 1 to {MAX_ID_LENGTH} characters, none a control character"
        )
    return agent


def _print(lines: Iterable[str]) -> None:
    """To standard output, whatever its encoding cannot hold as an escape."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    for line in lines:
        click.echo(line.encode(encoding, "backslashreplace").decode(encoding))
