"""A bridge as a process that a test owns: start, kill, restart, stop, and failures on demand."""

from __future__ import annotations

import http.client
import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self
from urllib.parse import quote, urlencode

from tests.support.bridge.faults import Mode

_ROOT: Final = Path(__file__).resolve().parents[3]
START_TIMEOUT: Final = 60.0  # seconds, for a machine that is busy with other tests


class Bridge:
    """A ClickHouse-speaking server on the store in `path`; a context manager that starts and stops it.

    The port is free at the first start and stays the same over restarts, so that clients find it again.
    """

    def __init__(
        self,
        path: Path,
        *,
        user: str = "default",
        password: str = "secret",
        host: str = "127.0.0.1",
        port: int = 0,
        replica: Mapping[str, object] | None = None,
    ) -> None:
        """`replica`: see `--replica` of `__main__`."""
        self.path = path
        self.host = host
        self.replica = replica
        self.user = user
        self.password = password
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    @property
    def dsn(self) -> str:
        """What `clickhouse_connect.get_client(dsn=...)` and `--dsn` take."""
        return self.dsn_of("default")

    def dsn_of(self, database: str) -> str:
        """The same for another database, which need not exist yet."""
        return f"http://{quote(self.user)}:{quote(self.password)}@{self.host}:{self.port}/{quote(database)}"

    @property
    def runs(self) -> bool:
        """Whether it was started, and neither stopped nor killed."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """The process id while it runs."""
        return self._running().pid

    def start(self) -> Self:
        """Returns when the server answers; raises RuntimeError with its last words when it does not come up."""
        if self._process is not None:
            raise RuntimeError("the bridge is already running")
        options = ["--path", str(self.path), "--listen", f"{self.host}:{self.port}", "--until-stdin-closes"]
        if self.replica is not None:
            options += ["--replica", json.dumps(self.replica)]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.bridge", *options],
            cwd=_ROOT,
            env=os.environ | {"BRIDGE_USER": self.user, "BRIDGE_PASSWORD": self.password},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        try:
            self.port = json.loads(self._first_line())["port"]
        except (TimeoutError, ValueError) as error:
            self._process.kill()
            raise RuntimeError(f"the bridge on {self.path} did not start: {self._gone()}") from error
        return self

    def kill(self) -> None:
        """SIGKILL, as a crash or the out-of-memory killer does it; returns when the process is gone."""
        self._running().kill()
        self._gone()

    def restart(self) -> Self:
        """Starts again on the same path and port, after `kill` or `stop`."""
        return self.start()

    def stop(self) -> None:
        """Ends it in good order; nothing to do when it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        self._gone()

    def fail(self, mode: Mode | str, count: int = 1, table: str = "") -> None:
        """Makes the next `count` inserts (into `table`, without its database, when given) fail; see Mode."""
        self._control("POST", "fail", mode=str(mode), next=str(count), table=table)

    def profile(self, **settings: str) -> None:
        """The settings profile of the user from now on, in place of the one before."""
        self._control("POST", "profile", **settings)

    def pretend(self, **instead: str) -> None:
        """What is run instead of a text in statements from now on, in place of what was pretended before."""
        self._control("POST", "pretend", **instead)

    def replicate(self, *, fetches: bool = True, lag: float = 0.0) -> None:
        """Of a replica: whether it takes what the others wrote, and how many seconds after they did."""
        self._control("POST", "replica", fetches=str(int(fetches)), lag=str(lag))

    def wait_hanging(self, count: int = 1) -> None:
        """Returns as soon as `count` inserts hang, after `fail("hang")`."""
        self._control("GET", "wait_hanging", count=str(count))

    def reset(self, *, land: bool = False) -> None:
        """Disarms `fail` and refuses the inserts that hang.

        With `land` they are carried out instead, whether or not their client still waits: the late landing. Returns
        when that has been done.
        """
        self._control("POST", "reset", land=str(int(land)))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the bridge is not running")
        return self._process

    def _control(self, method: str, action: str, **parameters: str) -> None:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=START_TIMEOUT)
        try:
            connection.request(method, f"/_bridge/{action}?{urlencode(parameters)}")
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"/_bridge/{action}: {response.status} {text}")

    def _first_line(self) -> bytes:
        stdout = self._running().stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if not selector.select(START_TIMEOUT):
                raise TimeoutError
        return stdout.readline()

    def _gone(self) -> str:
        """Waits for the end of the process and returns the last it wrote to standard error."""
        process = self._running()
        process.wait(START_TIMEOUT)
        assert self._errors is not None
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace")[-2000:].strip()
        for stream in (process.stdin, process.stdout, self._errors):
            if stream is not None:
                stream.close()
        self._process = self._errors = None
        return words
