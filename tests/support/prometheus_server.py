"""A real Prometheus for tests: on a free port of 127.0.0.1, with its data in a directory of the test."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
EXAMPLE_CONFIG: Final = ROOT / "grafana" / "prometheus.yml"
RULES: Final = ROOT / "exporter" / "rules"
_READY_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.05

Json = dict[str, Any]


class PrometheusError(RuntimeError):
    """Prometheus or promtool is missing, did not start, or refused a request; the message holds what it said."""


def program(name: str, package: str = "prometheus") -> str:
    """The path of a program. Raises PrometheusError: a check that cannot run must not look passed."""
    path = shutil.which(name)
    if path is None:
        raise PrometheusError(f"{name} is not installed: apt-get install --no-install-recommends {package}")
    return path


def promtool(*arguments: str | Path, cwd: Path | None = None) -> str:
    """Runs promtool and returns what it printed. Raises PrometheusError with that text when it fails."""
    done = subprocess.run([program("promtool"), *map(str, arguments)], capture_output=True, text=True, cwd=cwd)
    if done.returncode != 0:
        raise PrometheusError(f"promtool {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}")
    return done.stdout


def create_blocks(open_metrics: str, data: Path) -> None:
    """Fills the data directory of a server that does not run yet from OpenMetrics text with timestamps."""
    source = data.parent / f"{data.name}.om"
    source.write_text(open_metrics)
    # By default blocks are 2 hours long and the text is parsed once a block: 15 days would take minutes.
    promtool("tsdb", "create-blocks-from", "--max-block-duration=24h", "openmetrics", "-q", source, data)


class PrometheusServer:
    """A running server. Times are Unix seconds."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url

    def get(self, path: str, parameters: Mapping[str, str | float] | None = None) -> Any:
        """The `data` of an API answer. Raises PrometheusError when Prometheus answers with an error."""
        return get(self.base_url, path, parameters)

    def query(self, expression: str, at: float | None = None) -> list[Json]:
        """The series of an instant query, now unless `at` is given."""
        parameters: dict[str, str | float] = {"query": expression}
        if at is not None:
            parameters["time"] = at
        return list(self.get("/api/v1/query", parameters)["result"])

    def alerts(self) -> list[Json]:
        """Pending and firing alerts."""
        return list(self.get("/api/v1/alerts")["alerts"])

    def rules(self) -> list[Json]:
        """Every rule of every group, with its `health` and `lastError`."""
        return [rule for group in self.get("/api/v1/rules")["groups"] for rule in group["rules"]]

    def wait_for(self, what: str, condition: Callable[[PrometheusServer], Any], seconds: float = _READY_SECONDS) -> Any:
        """Asks until `condition` is true and returns it. Raises PrometheusError naming `what` after `seconds`."""
        deadline = time.monotonic() + seconds
        while not (value := condition(self)):
            if time.monotonic() > deadline:
                raise PrometheusError(f"not within {seconds:.0f} s: {what}")
            time.sleep(_POLL_SECONDS)
        return value


def get(base_url: str, path: str, parameters: Mapping[str, str | float] | None = None) -> Any:
    """The `data` of an API answer of the Prometheus at `base_url`. Raises PrometheusError on an error answer."""
    query = f"?{urlencode(parameters)}" if parameters else ""
    try:
        with urlopen(f"{base_url}{path}{query}", timeout=60) as answer:
            return json.load(answer)["data"]
    except HTTPError as error:
        raise PrometheusError(f"{path}{query}: {error.code} {error.read().decode(errors='replace')}") from error


@contextmanager
def prometheus(config: Path, data: Path, *options: str) -> Iterator[PrometheusServer]:
    """Runs Prometheus on `data` until the block is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    log = data.parent / "prometheus.log"
    command = [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={data}",
        # What a test backfills may be of any year.
        "--storage.tsdb.retention.time=100y",
        f"--web.listen-address={address}",
        *options,
    ]
    with log.open("w") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
        try:
            server = PrometheusServer(f"http://{address}")
            server.wait_for(f"Prometheus is ready, see {log}", lambda _: _is_ready(process, f"http://{address}", log))
            yield server
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_ready(process: subprocess.Popen[bytes], base_url: str, log: Path) -> bool:
    if process.poll() is not None:
        raise PrometheusError(f"Prometheus ended with status {process.returncode}:\n{log.read_text()[-3000:]}")
    try:
        with urlopen(f"{base_url}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def quick_config(directory: Path, *targets: str, interval: str = "1s", more: Json | None = None) -> Path:
    """A copy of grafana/prometheus.yml and its rules with other targets and one interval for all; returns its path.

    Only intervals change, so what a test sees here is what the example configuration does, sooner. `more` are further
    sections of the configuration; settings in its `global` are added.
    """
    config = yaml.safe_load(EXAMPLE_CONFIG.read_text())
    more = more or {}
    config = config | more | {"global": config["global"] | more.get("global", {})}
    config["global"] |= {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
    for job in config["scrape_configs"]:
        job.pop("scrape_interval", None)
        job["static_configs"] = [{"targets": list(targets)}]
    config["rule_files"] = []
    for rules in sorted(RULES.glob("*.yml")):
        content = yaml.safe_load(rules.read_text())
        for group in content["groups"]:
            group["interval"] = interval
            for rule in group["rules"]:
                # Both only wait; that they wait for as long as they say is shown in exporter/rules/tests.
                rule |= {key: interval for key in ("for", "keep_firing_for") if key in rule}
        copy = directory / rules.name
        copy.write_text(yaml.safe_dump(content, sort_keys=False))
        config["rule_files"].append(str(copy))
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path
