"""The service's alerts on a trace, written to a file and, when the trace has labels, held against them.

    python -m bench.detection --traces DIR --out alerts.csv
    python -m bench.detection --events FILE.ndjson.zst --out alerts.csv

DIR is one that `bench.detection.generate` writes. labels.csv, agents.csv and counts.csv.gz are looked for beside a
file of events; without counts.csv.gz its tokens are counted. The table is of our alerts that page, of those that page
or open a ticket, and of rules that others publish.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bench.detection.alarm import write_alarms
from bench.detection.label import AGENTS_FILE, LABELS_FILE, read_agents, read_labels
from bench.detection.peers import peers_alarms
from bench.detection.replay import replay
from bench.detection.score import PAGE, PAGE_AND_TICKET, PEERS_QUESTIONS, fleet_of, score
from bench.detection.table import table
from bench.detection.traces import COUNTS_FILE, read_counts, read_events


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--traces", type=Path, help="directory with counts.csv.gz and labels.csv")
    source.add_argument("--events", type=Path, help="NDJSON of events, .zst or .gz")
    parser.add_argument("--out", type=Path, required=True, help="where to write the alerts")
    arguments = parser.parse_args()
    started = time.monotonic()

    def progress(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", file=sys.stderr, flush=True)

    alarms = replay(traces=arguments.traces, events=arguments.events, progress=progress)
    write_alarms(arguments.out, alarms)
    progress(f"{len(alarms):,} alerts: {arguments.out}")
    directory: Path = arguments.traces or arguments.events.parent
    if not (directory / LABELS_FILE).exists():
        progress(f"no {LABELS_FILE} in {directory}: nothing to hold them against")
        return
    labels, agents = read_labels(directory / LABELS_FILE), read_agents(directory / AGENTS_FILE)
    counts = directory / COUNTS_FILE
    trace = read_counts(counts) if arguments.traces or counts.exists() else read_events(arguments.events)
    progress(f"{len(trace.count):,} bins of {len(trace.agents):,} agents, {len(labels):,} labels")
    fleet = fleet_of(trace, agents)
    columns = {
        "ours, page": score(alarms, labels, fleet, PAGE),
        "ours, page + ticket": score(alarms, labels, fleet, PAGE_AND_TICKET),
    }
    for name, raised in peers_alarms(trace).items():
        columns[name] = score(raised, labels, fleet, PAGE, PEERS_QUESTIONS)
        progress(f"{len(raised):,} alerts of {name}")
    print(table(columns, len(fleet.weeks), sum(fleet.weeks.values())))


if __name__ == "__main__":
    main()
