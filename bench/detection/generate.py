"""Writes a made-up trace of 90 days from 2026-08-25 00:00 UTC, scored from day 35 on.

    python -m bench.detection.generate --seeds 1-40 --out DIR [--fields]

DIR/counts.csv.gz, labels.csv and agents.csv; with --fields also events.ndjson.zst, one event of docs/events.md's form a
token, in order of time, and the labels that only such fields can show. A seed is a tenant, the same in every run and
beside every other one; --fields draws from a stream of its own, so that it leaves the other counts as they are.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bench.detection.events_file import EventStream, write_events
from bench.detection.identity import Identity, make_identities
from bench.detection.incidents import Calendar, Incident, make_incidents
from bench.detection.label import AGENTS_FILE, LABELS_FILE, Label, write_labels
from bench.detection.local_time import START
from bench.detection.misuse import Misuse, make_misuse
from bench.detection.tenant import Tenant, make_tenant
from bench.detection.traces import BIN_SECONDS, COLUMNS, COUNTS_FILE

EVENTS_FILE = "events.ndjson.zst"
_COUNTS, _IDENTITIES, _MISUSE = 0, 1, 2  # random streams of a seed; EventStream has one more


class Made:
    """A tenant with everything that was drawn for it."""

    def __init__(self, seed: int, *, fields: bool, incidents: bool = True) -> None:
        pick = np.random.default_rng([seed, _COUNTS])
        calendar = Calendar()
        self.seed = seed
        self.tenant: Tenant = make_tenant(seed, pick)
        self.incidents: list[Incident] = make_incidents(self.tenant, calendar, pick) if incidents else []
        self.identities: list[Identity] = []
        self.misuse: list[Misuse] = []
        if fields:
            self.identities = make_identities(self.tenant, np.random.default_rng([seed, _IDENTITIES]))
            pick = np.random.default_rng([seed, _MISUSE])
            self.misuse = make_misuse(self.tenant, self.identities, calendar, self.incidents, pick)

    def labels(self) -> list[Label]:
        """In order of time."""
        made = [incident.label(self.tenant) for incident in self.incidents]
        made += [misuse.label(self.tenant) for misuse in self.misuse if misuse.labelled]
        return sorted(made, key=lambda label: label.start)

    def stream(self) -> EventStream:
        """The events behind the counts."""
        return EventStream(self.seed, self.tenant, self.identities, self.misuse)


def parse_seeds(text: str) -> range:
    """`first-last`, or one seed."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _count_lines(tenant: Tenant) -> Iterable[str]:
    for agent in tenant.agents:
        bins = np.flatnonzero(agent.counts)
        starts = (START + bins * BIN_SECONDS).tolist()
        pairs = zip(starts, agent.counts[bins].tolist(), strict=True)
        yield "".join(f"{tenant.name},{agent.name},{start},{count}\n" for start, count in pairs)


def generate(seeds: Iterable[int], out: Path, *, fields: bool) -> None:
    """Writes the files of these seeds; the same bytes for the same seeds."""
    out.mkdir(parents=True, exist_ok=True)
    labels: list[Label] = []
    streams: list[EventStream] = []
    with (
        (out / COUNTS_FILE).open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=3, fileobj=raw, mtime=0) as counts,
        (out / AGENTS_FILE).open("w", newline="", encoding="utf-8") as file,
    ):
        counts.write(f"{COLUMNS}\n".encode())
        agents = csv.writer(file, lineterminator="\n")
        agents.writerow(["tenant_id", "agent_id", "kind", "network"])
        for seed in seeds:
            one = Made(seed, fields=fields)
            for lines in _count_lines(one.tenant):
                counts.write(lines.encode())
            networks = [identity.network_kind for identity in one.identities] or [""] * len(one.tenant.agents)
            for agent, network in zip(one.tenant.agents, networks, strict=True):
                agents.writerow([one.tenant.name, agent.name, agent.kind, network])
            labels += one.labels()
            if fields:
                streams.append(one.stream())
    write_labels(out / LABELS_FILE, labels)
    if fields:
        write_events(out / EVENTS_FILE, streams)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=parse_seeds, default=range(1, 201), help="first-last (default 1-200)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fields", action="store_true", help="the events behind the counts too")
    arguments = parser.parse_args()
    started = time.monotonic()
    generate(arguments.seeds, arguments.out, fields=arguments.fields)
    print(f"{len(arguments.seeds)} tenants in {time.monotonic() - started:.0f} s: {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
