"""The service as a process that a test owns, with development keys or a real provider behind it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from agentidp_analytics.dev_keys import DevKey
from clickhouse.tenant import TenantId

ROOT: Final = Path(__file__).resolve().parents[2]
ISSUER: Final = "https://issuer.example"
AUDIENCE: Final = "https://analytics.example/api"
INGEST_TOKEN: Final = "ingest-token-of-the-tests"
START_SECONDS: Final = 60.0


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class KeyServer:
    """An issuer's key set on loopback."""

    def __init__(self, key: DevKey) -> None:
        body = json.dumps(key.key_set()).encode()

        def answer(_: dict[str, Any], start: Any) -> list[bytes]:
            start("200 OK", [("Content-Type", "application/json")])
            return [body]

        self._server: WSGIServer = make_server("127.0.0.1", 0, answer, handler_class=_Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}/jwks"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class Service:
    """`agentidp-analytics serve` on free ports; a context manager. `options` are appended to its command line.

    `open_files` is its limit of open files, "soft:hard".
    """

    def __init__(
        self, directory: Path, *options: str, dsn: str = "", issuer: Sequence[str] = (), open_files: str = ""
    ) -> None:
        self.directory = directory
        self.key = DevKey.generate()
        self.port, self.metrics_port = free_port(), free_port()
        self.token_file = directory / "ingest-tokens"
        self.token_file.write_text(INGEST_TOKEN + "\n")
        self.token_file.chmod(0o600)
        self.dsn = dsn or f"chdb://{directory / 'store'}"
        self._options = options
        self._open_files = open_files
        self._issuer = issuer
        self._keys: KeyServer | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.log_path = directory / "service.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.metrics_port}"

    def start(self, wait: bool = True) -> Self:
        """Returns when /readyz says so."""
        if not self._issuer and self._keys is None:
            self._keys = KeyServer(self.key)
        issuer = self._issuer or ("--issuer", ISSUER, "--audience", AUDIENCE, "--jwks-url", self._keys.url)  # type: ignore[union-attr]
        limited = ["prlimit", f"--nofile={self._open_files}"] if self._open_files else []
        command = [*limited, sys.executable, "-m", "agentidp_analytics", "serve", "--dsn", self.dsn, *issuer]
        command += ["--listen", f"127.0.0.1:{self.port}", "--metrics-listen", f"127.0.0.1:{self.metrics_port}"]
        command += ["--ingest-token-file", str(self.token_file), *self._options]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stderr=log, stdout=log, env=clean_environment())
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        wait_for(lambda: self._alive() and self._is_ready(), START_SECONDS, self.log)

    def _alive(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"the service ended with {self._process.returncode}:\n{self.log()}")
        return True

    def _is_ready(self) -> bool:
        ready = self.metrics_url + "/-/ready" if "exporter" in self._options else self.url + "/readyz"
        try:
            return request("GET", ready, {})[0] == 200
        except OSError:
            return False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def ended(self) -> int:
        """Waits for its end; returns the exit status."""
        assert self._process is not None
        return self._process.wait(60)

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.terminate()
        return self._process.wait(60)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill() if kind else self.stop()
        if self._keys is not None:
            self._keys.stop()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def token(self, tenant: str, **claims: Any) -> str:
        return self.key.token(TenantId(tenant), issuer=ISSUER, audience=AUDIENCE, now=time.time(), **claims)

    def get(self, path: str, tenant: str | None = "", token: str = "") -> tuple[int, Any]:
        """(status, body) of a GET with a token of `tenant`."""
        headers = {"Authorization": f"Bearer {token or self.token(tenant or '')}"} if tenant or token else {}
        status, _, body = request("GET", self.url + path, headers)
        return status, json.loads(body)

    def post(self, events: Any, token: str = INGEST_TOKEN) -> tuple[int, Any]:
        """(status, body) of posting events as JSON."""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        status, _, body = request("POST", self.url + "/api/v1/events", headers, json.dumps(events).encode())
        return status, json.loads(body)

    def samples(self, name: str) -> dict[str, float]:
        """Values of a per-tenant metric by tenant."""
        _, _, body = request("GET", self.metrics_url + "/metrics", {})
        found = re.findall(rf'^{name}{{tenant_id="([^"]*)"}} (\S+)$', body.decode(), re.MULTILINE)
        return {tenant: float(value) for tenant, value in found}

    def value(self, name: str) -> float:
        """Value of a metric without labels."""
        _, _, body = request("GET", self.metrics_url + "/metrics", {})
        match = re.search(rf"^{name} (\S+)$", body.decode(), re.MULTILINE)
        assert match is not None, name
        return float(match[1])


def request(method: str, url: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, Any, bytes]:
    """One HTTP exchange: status, headers, body."""
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)) as connection:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def wait_for(condition: Any, seconds: float, describe: Any = lambda: "") -> None:
    """Polls a condition of another process until it holds; that process has no event to await here."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {describe()}")
        time.sleep(0.05)


def clean_environment() -> dict[str, str]:
    """The environment without settings of the service that a developer may have exported."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AGENTIDP_ANALYTICS_")}


def run(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of the program to its end."""
    return subprocess.run(
        [sys.executable, "-m", "agentidp_analytics", *arguments],
        cwd=cwd,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
