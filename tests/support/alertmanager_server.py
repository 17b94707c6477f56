"""A real Alertmanager for tests, and somebody who hears what it sends."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.request import Request, urlopen

import yaml

from tests.support.prometheus_server import ROOT, PrometheusError, program

EXAMPLE_CONFIG: Final = ROOT / "grafana" / "alertmanager.yml"
PACKAGE: Final = "prometheus-alertmanager"
_READY_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.05

Json = dict[str, Any]


def amtool(*arguments: str | Path) -> str:
    """Runs amtool and returns what it printed. Raises PrometheusError with that text when it fails."""
    command = [program("amtool", PACKAGE), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise PrometheusError(f"amtool {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}")
    return done.stdout


class Receiver:
    """What arrived at the webhooks: (path, notification) in the order of arrival."""

    def __init__(self) -> None:
        self.notifications: list[tuple[str, Json]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.notifications.append((self.path, json.loads(body)))
                self.send_response(200)
                self.end_headers()

            def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Receiver:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, path: str, alert: str) -> list[Json]:
        """Notifications about one alert name at one webhook."""
        return [
            notification
            for arrived_at, notification in list(self.notifications)
            if arrived_at == path and notification["groupLabels"]["alertname"] == alert
        ]

    def wait_for(self, path: str, alert: str, count: int, seconds: float = 60) -> list[Json]:
        """Waits for so many; raises PrometheusError with all that arrived after `seconds`."""
        deadline = time.monotonic() + seconds
        while len(found := self.of(path, alert)) < count:
            if time.monotonic() > deadline:
                told = [(path, entry["status"], entry["groupLabels"]) for path, entry in self.notifications]
                raise PrometheusError(f"not {count} notifications of {alert} at {path}: {told}")
            time.sleep(_POLL_SECONDS)
        return found


def quick_alertmanager_config(directory: Path, receiver: str) -> Path:
    """A copy of grafana/alertmanager.yml that sends to `receiver` and waits for nothing; returns its path."""
    config = yaml.safe_load(EXAMPLE_CONFIG.read_text())
    for route in (config["route"], *config["route"]["routes"]):
        route |= {key: "1s" for key in ("group_wait", "group_interval") if key in route}
    for entry in config["receivers"]:
        for webhook in entry["webhook_configs"]:
            webhook["url"] = webhook["url"].replace("127.0.0.1:9099", receiver)
    path = directory / "alertmanager.yml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


class AlertmanagerServer:
    """A running server."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._url = f"http://{address}/api/v2/alerts"

    def post(self, alerts: list[dict[str, str]]) -> None:
        """Sends alerts with these labels, as Prometheus does."""
        body = json.dumps([{"labels": labels} for labels in alerts]).encode()
        urlopen(Request(self._url, body, {"Content-Type": "application/json"}), timeout=10).close()

    def alerts(self) -> list[Json]:
        """All alerts, with `status`."""
        with urlopen(self._url, timeout=10) as answer:
            return list(json.load(answer))


@contextmanager
def alertmanager(config: Path, data: Path) -> Iterator[AlertmanagerServer]:
    """Runs Alertmanager on `data` until the block is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    log = data.parent / "alertmanager.log"
    command = [
        program("prometheus-alertmanager", PACKAGE),
        f"--config.file={config}",
        f"--storage.path={data}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",  # else it listens for peers on all addresses
    ]
    with log.open("w") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + _READY_SECONDS
            while not _is_ready(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise PrometheusError(f"Alertmanager is not ready:\n{log.read_text()[-3000:]}")
                time.sleep(_POLL_SECONDS)
            yield AlertmanagerServer(address)
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_ready(address: str) -> bool:
    try:
        with urlopen(f"http://{address}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
