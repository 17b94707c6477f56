"""Idleness: what the service costs while little or nothing happens, in percent of one core, and its memory.

    python -m bench.idle [--seconds 60]

`demo` with its own few events a second, then `serve` on the store that it leaves, asked for /readyz every 5 s and for
/metrics every 15 s as an installation is. CPU time, not wall time: neighbours do not count.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.service import ROOT, Service, clean_environment, free_port, request, wait_for

READY_EVERY, SCRAPE_EVERY = 5, 15
SETTLING_SECONDS = 30  # merges of what was just written
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def measure(name: str, pid: int, ready: str, metrics: str, seconds: float) -> None:
    """Prints the process's CPU over `seconds`, while it is watched as an installation is."""
    time.sleep(SETTLING_SECONDS)
    before, began = cpu_seconds(pid), time.monotonic()
    for second in range(int(seconds)):
        if second % READY_EVERY == 0:
            request("GET", ready, {})
        if second % SCRAPE_EVERY == 0:
            request("GET", metrics, {})
        time.sleep(max(0.0, began + second + 1 - time.monotonic()))
    percent = 100 * (cpu_seconds(pid) - before) / (time.monotonic() - began)
    rss = int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) // 1024
    print(f"{name:<8}{percent:6.2f} % of a core{rss:8,} MiB", flush=True)


def demo(directory: Path, seconds: float) -> None:
    port, metrics_port = free_port(), free_port()
    listen = ["--listen", f"127.0.0.1:{port}", "--metrics-listen", f"127.0.0.1:{metrics_port}"]
    with (directory / "out").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "agentidp_analytics", "demo", *listen],
            cwd=directory, env=clean_environment() | {"PYTHONPATH": str(ROOT)}, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        wait_for(lambda: "Ctrl-C" in (directory / "out").read_text(), 120, (directory / "out").read_text)
        url, metrics = f"http://127.0.0.1:{port}/readyz", f"http://127.0.0.1:{metrics_port}/metrics"
        measure("demo", process.pid, url, metrics, seconds)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        demo(directory, seconds)
        with Service(directory, dsn=f"chdb://{directory / 'demo-data' / 'store'}") as service:
            measure("serve", service.pid, f"{service.url}/readyz", f"{service.metrics_url}/metrics", seconds)


if __name__ == "__main__":
    main()
