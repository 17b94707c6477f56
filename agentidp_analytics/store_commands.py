"""The commands that need the store and nothing else: migrate, ingest, export, verify, erase."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
from prometheus_client import CollectorRegistry

from agentidp_analytics.backfill import InputError, Reject, backfill
from agentidp_analytics.ingest_client import RemoteWriter
from agentidp_analytics.options import EXISTING_FILE, option, store_options
from agentidp_analytics.progress import Progress
from clickhouse.audit import MAX_CONFLICTS, Report, table_of
from clickhouse.errors import StoreError
from clickhouse.open_store import failover_store, migrate_store, open_store
from clickhouse.sharded import ShardedStore
from clickhouse.store import Store
from clickhouse.tenant import TenantId


@click.command()
@store_options
def migrate(dsn: str, cluster: str | None) -> None:
    """Applies the schema; safe to run twice."""
    for address, applied in migrate_store(dsn, cluster):
        click.echo(f"{address}: " + (f"applied {', '.join(applied)}" if applied else "schema is current"))


@click.command()
@store_options
@click.argument("files", nargs=-1, required=True)
@option("--rejects", type=click.Path(dir_okay=False, path_type=Path), help="Keep rejected lines with reasons here.")
@option("--url", help="Send to the running service at this address instead of opening the store.")
@option("--token-file", type=EXISTING_FILE, help="Ingest bearer token for --url, on the first line.")
@option("--ca-file", type=EXISTING_FILE, help="Authorities to trust for --url, PEM.  [default: the system's]")
def ingest(
    files: tuple[str, ...],
    dsn: str,
    cluster: str | None,
    rejects: Path | None,
    url: str | None,
    token_file: Path | None,
    ca_file: Path | None,
) -> None:
    """Backfills NDJSON FILES (gzip and Zstandard too, - for standard input); run it again to resume."""
    if url is None:
        for name, value in (("--token-file", token_file), ("--ca-file", ca_file)):
            if value is not None:
                raise click.UsageError(f"{name} {value} belongs to --url; give that too, or leave it out")
    for path in files:
        if path != "-" and not Path(path).is_file():
            raise click.UsageError(f"{path} is not a file that can be read; give NDJSON files, or - for standard input")
        if path != "-" and rejects and rejects.exists() and rejects.samefile(path):
            raise click.UsageError(
                f"--rejects {rejects} is the input itself, which it would overwrite; give another file"
            )
    with contextlib.ExitStack() as stack:
        keep = stack.enter_context(_kept(rejects)) if rejects else lambda reject: None
        progress = stack.enter_context(Progress())
        store: Store | ShardedStore | None = None
        after_batch: Callable[[], None] = lambda: None  # noqa: E731
        if url is None:
            store = open_store(dsn, cluster, CollectorRegistry())
            stack.enter_context(store)
            store.upkeep.repair()
            store.removal.resume()
            write, after_batch = store.writer.write, store.upkeep.settle_if_behind
        else:
            if token_file is None:
                raise click.UsageError("--token-file is missing; --url needs the ingest bearer token of the service")
            token = token_file.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
            write = RemoteWriter(url, token, ca_file=ca_file, on_wait=progress.say).write

        tally = backfill(
            files,
            write,
            now_ms=lambda: int(time.time() * 1000),
            on_reject=keep,
            on_progress=progress.events,
            after_batch=after_batch,
        )
        if store:
            progress.say("rolling up ...")
            store.upkeep.settle()
    click.echo(
        f"accepted {tally.accepted:,}, rejected {tally.rejected:,} "
        f"in {progress.seconds:.1f} s ({tally.accepted / max(progress.seconds, 0.001):,.0f} events/s)"
    )
    for code, count in sorted(tally.codes.items()):
        click.echo(f"  rejected for {code}: {count:,}")
    if tally.rejected:
        raise SystemExit(1)


@contextlib.contextmanager
def _kept(rejects: Path) -> Iterator[Callable[[Reject], None]]:
    """What writes a rejected line to the file. Raises click.UsageError if it cannot be opened, InputError if full."""
    try:
        file = rejects.open("w", encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"--rejects {rejects} cannot be written: {error.strerror}") from error
    try:
        with file:
            yield lambda reject: print(reject.as_json(), file=file)
    except OSError as error:
        raise InputError(f"--rejects {rejects} cannot be written: {error.strerror}; what was read is stored") from error


@click.command(name="export")
@store_options
def export_command(dsn: str, cluster: str | None) -> None:
    """Writes every event as NDJSON to standard output, for `ingest` elsewhere."""
    with open_store(dsn, cluster, CollectorRegistry(), create=False) as store:
        for lines in store.export():
            sys.stdout.buffer.write(lines)
        sys.stdout.buffer.flush()  # here, where a full disk is an error that is told


@click.command(name="verify")
@store_options
@option("--since", type=click.DateTime(["%Y-%m-%d"]), help="First UTC day.  [default: the oldest]")
@option("--until", type=click.DateTime(["%Y-%m-%d"]), help="Last UTC day.  [default: the newest]")
def verify_command(
    dsn: str,
    cluster: str | None,
    since: datetime | None,
    until: datetime | None,
) -> None:
    """Recounts raw events against the rollups and the exporter's totals; exit 1 and a table when they differ."""
    if since and until and since > until:
        raise click.UsageError(f"--since {since:%Y-%m-%d} is after --until {until:%Y-%m-%d}; exchange them")
    with Progress() as progress, open_store(dsn, cluster, CollectorRegistry(), create=False) as store:
        store.upkeep.repair()
        store.removal.resume()
        report = store.verify(
            since and since.date(),
            until and until.date(),
            lambda done, total: progress.say(f"compared {done} of {total} months"),
        )
    _print_report(report)
    if report.differences:
        raise SystemExit(1)


def _print_report(report: Report) -> None:
    for conflict in report.conflicts:
        click.echo(
            f"conflict: tenant {conflict.tenant_id} event {conflict.event_id!r} came with {conflict.times} times, "
            f"{conflict.agents} agents, {conflict.outcomes} outcomes"
        )
    if report.differences:
        click.echo(f"{'table':<18}{'tenant':<40}{'day':<12}{'events':>14}{'counted':>14}")
        for table, tenant, day, wanted, found in table_of(report):
            click.echo(f"{table:<18}{tenant:<40}{day:<12}{wanted:>14,}{found:>14,}")
    unsettled = f", {report.unsettled} tenant-days left out because they are being written" if report.unsettled else ""
    click.echo(
        f"{report.days} days compared: {len(report.differences)} differences, "
        f"{'at least ' if len(report.conflicts) == MAX_CONFLICTS else ''}{len(report.conflicts)} conflicting event ids"
        f"{unsettled}"
    )


@click.command()
@store_options
# No variables for these two: what a shell happens to have exported must not choose what is destroyed.
@click.option("--tenant", required=True, help="The tenant to erase.")
@click.option("--agent", help="Erase only this agent of the tenant.")
@option("--dry-run", is_flag=True, help="Only say what would be erased.")
def erase(dsn: str, cluster: str | None, tenant: str, agent: str | None, dry_run: bool) -> None:
    """Removes a tenant's events and rollups, or one agent's; no Prometheus counter falls. Exit 1 if there are none."""
    whose = tenant_option(tenant)
    try:
        (agent or "").encode()
    except UnicodeEncodeError:
        raise click.UsageError(f"--agent {agent!r} is not UTF-8, and so the name of no agent") from None
    if agent == "":
        raise click.UsageError("--agent is empty; name an agent, or leave it out to erase all of the tenant")
    with Progress() as progress, open_store(dsn, cluster, CollectorRegistry(), create=False) as store:
        progress.say("rolling up ...")
        if dry_run:
            removed = store.removal.preview(whose, agent)
        else:
            progress.say("erasing: the parts of the store that hold these events are written anew ...")
            removed = store.removal.erase(whose, agent, datetime.now(UTC))
    name = f"agent {agent!r} of tenant {tenant}" if agent else f"tenant {tenant}"
    if removed is None:
        raise StoreError(f"there is no event of {name}; nothing was erased")
    done = "would erase" if dry_run else "erased"
    click.echo(f"{done} {removed.issued:,} issued and {removed.failed:,} refused tokens of {name}")


@click.command(name="failover")
@store_options
# No variables for these two: what a shell happens to have exported must not choose who is written to.
@click.option(
    "--shard", type=click.IntRange(1, 10_000), required=True, help="Number of the shard, as system.clusters has it."
)
@click.option("--to", required=True, help="Host of the replica that becomes its primary.")
def failover_command(dsn: str, cluster: str | None, shard: int, to: str) -> None:
    """Makes another replica a shard's primary: it fetches, all processes follow, the last hour is recounted."""
    if cluster is None:
        raise click.UsageError("--cluster is missing; a failover is one of a cluster's shards")
    with Progress() as progress:
        slots = failover_store(dsn, cluster, shard, to, progress.say)
    click.echo(f"{to} is the primary of shard {shard}; {slots:,} slots recounted")


def tenant_option(text: str) -> TenantId:
    try:
        return TenantId(text)
    except ValueError as error:
        raise click.UsageError(f"--tenant {text!r}: {error}") from error
