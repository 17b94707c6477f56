"""Refresh and scrape of the exporter, beside prometheus-client with a custom collector of the same figures.

    python -m bench.exporter [--tenants 1000 10000] [--rounds 15]

All figures are CPU milliseconds of this process (the scraping client is another one), the smallest of interleaved
rounds; each ratio compares two columns of one run. Every tenant changes in every round, except for "unchanged".
"""

from __future__ import annotations

import argparse
import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from random import Random

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.aiohttp import make_aiohttp_handler
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from clickhouse.fleet import Fleet
from clickhouse.watch import Watch
from exporter.counters import TenantCounters
from exporter.exposition import Exposition
from exporter.families import FAMILIES
from exporter.metrics import ExporterMetrics
from exporter.refresher import Refresher
from exporter.runner import ExporterRunner
from exporter.server import build_app

PROMETHEUS_3 = (
    "Accept: application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
SCRAPES = 20


_NO_WATCH = Watch()


class Tenants:
    """A `FleetSource` of made-up figures that grow with every call."""

    def __init__(self, count: int) -> None:
        random = Random(1)
        self.ids = sorted(str(uuid.UUID(int=random.getrandbits(128))) for _ in range(count))
        self.base = [int(random.paretovariate(0.5) * 100) for _ in self.ids]
        self.round = 0

    def read(self) -> Fleet:
        self.round += 1
        k, base = self.round, self.base
        return Fleet(
            tenant_id=list(self.ids),
            tokens_issued=[n + k for n in base],
            token_failures=[n // 50 + k for n in base],
            active_agents=[n % 40 + k for n in base],
            top_agent_ratio=[(n % 991 + k) / (991 + k) for n in base],
            last_issued_seconds=[1.76e9 + n % 86_400 + k / 8 for n in base],
            month_tokens=[n // 12 + k for n in base],
            published=[True] * len(base),
            present=[True] * len(base),
        )

    def watch(self) -> Watch:
        """Nothing was judged."""
        return _NO_WATCH

    def record(self, fleet: Fleet, newly_published: Sequence[str], other: tuple[int, int] | None) -> None:
        """Nothing to remember."""


class FleetCollector:
    """The same families as a prometheus-client collector."""

    def __init__(self, source: Tenants) -> None:
        self.source = source
        self.fleet = source.read()

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = kind(family.name, family.documentation, labels=["tenant_id"])
            for tenant_id, value in zip(self.fleet.tenant_id, getattr(self.fleet, family.column), strict=True):
                metric.add_metric([tenant_id], value)
            yield metric


def report(name: str, ms: float, note: str = "") -> None:
    print(f"  {name:<40}{ms:8.2f}   {note}")


def cpu_ms(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return (time.process_time() - begun) * 1e3


def render(source: Tenants, rounds: int) -> None:
    counters, exposition = TenantCounters(max_tenants=len(source.ids)), Exposition()
    registry = CollectorRegistry()
    collector = FleetCollector(source)
    registry.register(collector)
    best: dict[str, float] = {}

    def note(name: str, ms: float) -> None:
        best[name] = min(ms, best.get(name, ms))

    for number in range(rounds):
        fleet = collector.fleet = source.read()
        floors = cpu_ms(partial(counters.update, fleet))
        published = counters.publish()
        publish = cpu_ms(counters.publish)
        drawn = cpu_ms(partial(exposition.render, published))
        if number == 0:
            report("first refresh, templates included", floors + publish + drawn)
            continue
        note("floors and columns", floors + publish)
        note("render", drawn)
        note("refresh", floors + publish + drawn)
        note("unchanged", cpu_ms(partial(exposition.render, published)))
        if number <= max(2, rounds // 4):
            note("client text", cpu_ms(partial(generate_latest, registry)))
            note("client OpenMetrics", cpu_ms(partial(generate_openmetrics, registry)))
    refresh = best["refresh"]
    report("refresh: floors and columns", best["floors and columns"])
    report("refresh: both formats, plain and gzip", best["render"], f"unchanged: {best['unchanged']:.2f}")
    report("client: generate_latest, text", best["client text"], f"{best['client text'] / refresh:.0f} x refresh")
    both = best["client text"] + best["client OpenMetrics"]
    report(
        "client: OpenMetrics", best["client OpenMetrics"], f"both formats, not gzipped: {both / refresh:.0f} x refresh"
    )


async def scrapes(source: Tenants, rounds: int) -> None:
    registry = CollectorRegistry()
    refresher = Refresher(
        source, ExporterMetrics(registry, "bench"), interval=3_600, max_age=3_600, max_tenants=len(source.ids)
    )
    ours = ExporterRunner(build_app(refresher, registry))
    client_registry = CollectorRegistry()
    ExporterMetrics(client_registry, "bench")
    client_registry.register(FleetCollector(source))
    app = web.Application()
    app.router.add_get("/metrics", make_aiohttp_handler(client_registry))
    theirs = web.AppRunner(app, access_log=None)
    await ours.setup()
    await theirs.setup()
    await web.TCPSite(theirs, "127.0.0.1", 0).start()
    ports = {"ours": await ours.listen("127.0.0.1", 0), "client": theirs.addresses[0][1]}
    await refresher.refresh_once()
    best: dict[str, float] = {}
    size = 0
    for number in range(rounds):
        for name, count in (("ours", SCRAPES), ("client", 1)):
            if name == "client" and number > max(2, rounds // 4):
                continue
            begun = time.process_time()
            size = max(size, await scrape(ports[name], count))
            ms = (time.process_time() - begun) * 1e3 / count
            best[name] = min(ms, best.get(name, ms))
    stall = await longest_stall(refresher.refresh_once, rounds)
    await ours.cleanup()
    await theirs.cleanup()
    report("scrape, OpenMetrics, gzip", best["ours"], f"{size / 1e6:.2f} MB on the wire")
    report("client: scrape", best["client"], f"{best['client'] / best['ours']:.0f} x scrape")
    report("event loop stall during a refresh", stall, "wall clock, median of the longest of each")


async def scrape(port: int, count: int) -> int:
    """Lets curl scrape `count` times over one connection; the size of one answer."""
    curl = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--header", PROMETHEUS_3, "--header", "Accept-Encoding: gzip", "--output", "/dev/null"),
        *("--write-out", "%{size_download}\n", f"http://127.0.0.1:{port}/metrics?[1-{count}]"),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await curl.communicate()
    return int(output.split()[-1])


async def longest_stall(work: Callable[[], Awaitable[None]], rounds: int) -> float:
    """How long the event loop was kept from a callback that wants to run every half millisecond, ms."""
    longest = []
    for _ in range(rounds):
        task = asyncio.ensure_future(work())
        worst, last = 0.0, time.perf_counter()
        while not task.done():
            await asyncio.sleep(0.0005)
            now = time.perf_counter()
            worst, last = max(worst, now - last), now
        longest.append(worst * 1e3)
    return sorted(longest)[len(longest) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    for count in arguments.tenants:
        print(f"{count} tenants, {len(FAMILIES)} series each; CPU ms")
        render(Tenants(count), arguments.rounds)
        asyncio.run(scrapes(Tenants(count), arguments.rounds))


if __name__ == "__main__":
    main()
