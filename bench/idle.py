"""Idleness: what the service costs while little or nothing happens, in percent of one core, and its memory.

    python -m bench.idle [--seconds 60]

`demo` with its own few events a second; then `serve` on the store that it leaves, and on an empty one, asked for
/readyz every 5 s and for /metrics every 15 s as an installation is. CPU time, not wall time: neighbours do not count.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from tests.support.service import ROOT, Service, clean_environment, free_port, request, wait_for

READY_EVERY, SCRAPE_EVERY = 5, 15
SETTLING_SECONDS, LONGEST_SETTLING_SECONDS = 10, 180
SHOWN_FROM_PERCENT = 0.05
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_by_thread(pid: int) -> dict[str, float]:
    """Seconds of CPU that each group of threads has used: names without their numbers."""
    used: dict[str, float] = defaultdict(float)
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            head, _, rest = (task / "stat").read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = rest.split()
        name = re.sub(r"[-_]?[0-9]+$", "", head.partition("(")[2])
        used["main" if task.name == str(pid) else name] += (int(fields[11]) + int(fields[12])) / _TICKS
    return used


def cpu_seconds(pid: int) -> float:
    """CPU that the process has used, threads that have ended included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_mib(pid: int) -> float:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


def settle(pid: int, api: str, metrics: str) -> None:
    """Waits until the merges of the start are done: a stretch costs no less than the one before it."""
    before, deadline = float("inf"), time.monotonic() + LONGEST_SETTLING_SECONDS
    while time.monotonic() < deadline:
        started = cpu_seconds(pid)
        visit(api, metrics, SETTLING_SECONDS)
        used = cpu_seconds(pid) - started
        if used > 0.8 * before:
            return
        before = used


def visit(api: str, metrics: str, seconds: int) -> None:
    """Calls as an orchestrator and Prometheus do, for so long."""
    started = time.monotonic()
    for second in range(seconds):
        if second % READY_EVERY == 0:
            assert request("GET", f"{api}/readyz", {})[0] == 200
        if second % SCRAPE_EVERY == 0:
            assert request("GET", f"{metrics}/metrics", {"Accept-Encoding": "gzip"})[0] == 200
        time.sleep(max(0.0, started + second + 1 - time.monotonic()))


def measure(what: str, pid: int, api: str, metrics: str, seconds: int) -> None:
    settle(pid, api, metrics)
    total, threads, started = cpu_seconds(pid), cpu_by_thread(pid), time.monotonic()
    visit(api, metrics, seconds)
    took = time.monotonic() - started
    shares = {name: 100 * (used - threads.get(name, 0)) / took for name, used in cpu_by_thread(pid).items()}
    print(
        f"{what:<28} {100 * (cpu_seconds(pid) - total) / took:5.1f} % of a core   {resident_mib(pid):5.0f} MiB   "
        + ", ".join(f"{n} {s:.1f}" for n, s in sorted(shares.items(), key=lambda i: -i[1]) if s >= SHOWN_FROM_PERCENT),
        flush=True,
    )


def demo(directory: Path, seconds: int) -> None:
    port, metrics_port = free_port(), free_port()
    command = [sys.executable, "-m", "agentidp_analytics", "demo", "--listen", f"127.0.0.1:{port}"]
    command += ["--metrics-listen", f"127.0.0.1:{metrics_port}"]
    environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
    api, metrics = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}"

    def is_ready() -> bool:
        try:
            return request("GET", f"{metrics}/-/ready", {})[0] == 200
        except OSError:
            return False

    with (directory / "demo.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=log)
    try:
        wait_for(is_ready, 120, (directory / "demo.log").read_text)
        measure("demo", process.pid, api, metrics, seconds)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def serve(what: str, directory: Path, dsn: str, seconds: int) -> None:
    with Service(directory, dsn=dsn) as service:
        measure(what, service.pid, service.url, service.metrics_url, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        demo(directory, seconds)
        serve("serve, the demo's store", directory, f"chdb://{directory / 'demo-data' / 'store'}", seconds)
        serve("serve, an empty store", directory, "", seconds)


if __name__ == "__main__":
    main()
