"""A real identity provider as a process that a test owns: oidc/ beside this, installed, started, driven and stopped."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import selectors
import shutil
import subprocess
import tempfile
from base64 import b64encode
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, NamedTuple, Self
from urllib.parse import urlencode, urlsplit

DIRECTORY: Final = Path(__file__).resolve().parent / "oidc"
INSTALL_TIMEOUT: Final = 300.0  # seconds
START_TIMEOUT: Final = 60.0
REQUEST_TIMEOUT: Final = 60.0
SCOPE: Final = "analytics:read"
# The share of each agent in `issue`: uneven, so that agents or tenants mixed up cannot go unnoticed.
_SHARES: Final = (3, 2, 1)


class IdentityProviderError(RuntimeError):
    """It cannot be installed or started, or it refused a request."""


class Agent(NamedTuple):
    """A machine client and the tenant its tokens name."""

    client_id: str
    secret: str
    tenant: str


class IdentityProvider:
    """The provider on a free port of 127.0.0.1; a context manager that starts and stops it.

    Events go to `events_url` with the bearer token `events_token`; without a URL they wait until `send_events_to`
    names one. Safe to use from several threads; calls block, so inside an event loop use `asyncio.to_thread`.
    """

    issuer: str
    jwks_url: str
    audience: str
    agents: Sequence[Agent]

    def __init__(self, events_url: str = "", events_token: str = "", *, token_ttl: int = 3600) -> None:
        self._environment = {"TOKEN_TTL": str(token_ttl), "EXIT_WITH_STDIN": "1", "PORT": "0"}
        if events_url:
            self._environment |= {"EVENTS_URL": events_url, "EVENTS_TOKEN": events_token}
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    def start(self) -> Self:
        """Installs what is missing and returns when tokens can be had. Raises IdentityProviderError."""
        node = _program("node")
        install()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [node, "provider.mjs"],
            cwd=DIRECTORY,
            env=os.environ | self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        try:
            ready = json.loads(self._first_line())
        except (TimeoutError, ValueError) as error:
            self._process.kill()
            self._process.wait()
            words = self.last_words()
            self.stop()
            raise IdentityProviderError(f"the identity provider did not start: {words}") from error
        self.issuer, self.jwks_url, self.audience = ready["issuer"], ready["jwks_url"], ready["audience"]
        self.agents = tuple(Agent(agent["id"], agent["secret"], agent["tenant"]) for agent in ready["agents"])
        return self

    def stop(self) -> None:
        """Ends it at once; events that wait for delivery are lost. Nothing to do when it does not run."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()
        self._process = self._errors = None

    def token(self, client_id: str, scope: str = SCOPE) -> str:
        """A fresh access token of an agent. Raises IdentityProviderError when it is refused."""
        connection = self._connection()
        try:
            return self._issue(connection, self._agent(client_id), scope)
        finally:
            connection.close()

    def issue(self, tokens: int, concurrency: int = 8) -> list[str]:
        """Issues `tokens` tokens over `concurrency` connections, shared out 3 : 2 : 1 among the agents."""
        turns = [agent for agent, share in zip(self.agents, _SHARES, strict=True) for _ in range(share)]

        def work(worker: int) -> list[str]:
            connection = self._connection()
            try:
                numbers = range(worker, tokens, concurrency)
                return [self._issue(connection, turns[number % len(turns)], SCOPE) for number in numbers]
            finally:
                connection.close()

        with ThreadPoolExecutor(concurrency) as pool:
            return [token for batch in pool.map(work, range(concurrency)) for token in batch]

    def refuse(self, client_id: str) -> None:
        """Asks for a token with a wrong secret, which is reported as a failure; an unknown client is not reported."""
        connection = self._connection()
        try:
            status, body = self._ask(connection, Agent(client_id, "wrong", ""), SCOPE)
        finally:
            connection.close()
        if status != 401:
            raise IdentityProviderError(f"a wrong secret was answered {status} {body.get('error', '')}")

    def stats(self) -> dict[str, Any]:
        """The provider's own log and its delivery, as README.md of tests/support/oidc describes it."""
        return self._control("GET", "stats")

    def wait_delivered(self) -> dict[str, Any]:
        """Returns `stats` as soon as no event waits for delivery; raises TimeoutError after a minute."""
        return self._control("GET", "idle")

    def send_events_to(self, url: str, token: str) -> None:
        """Names the receiver of events, waiting ones included."""
        self._control("POST", "events", {"url": url, "token": token})

    def rotate(self) -> list[str]:
        """Signs with a new key from now on; returns the key ids in the key set, the new one first."""
        return list(self._control("POST", "rotate")["kids"])

    def drop_old_keys(self) -> list[str]:
        """Takes all keys but the newest out of the key set; returns its id."""
        return list(self._control("POST", "drop_old_keys")["kids"])

    def last_words(self) -> str:
        """The end of its standard error while it runs, for a failing test to show."""
        if self._errors is None:
            return ""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-2000:].strip()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _agent(self, client_id: str) -> Agent:
        return next(agent for agent in self.agents if agent.client_id == client_id)

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.issuer).netloc, timeout=REQUEST_TIMEOUT)

    def _issue(self, connection: http.client.HTTPConnection, agent: Agent, scope: str) -> str:
        status, body = self._ask(connection, agent, scope)
        if status != 200:
            raise IdentityProviderError(f"no token for agent {agent.client_id}: {status} {body.get('error', '')}")
        return str(body["access_token"])

    @staticmethod
    def _ask(connection: http.client.HTTPConnection, agent: Agent, scope: str) -> tuple[int, dict[str, Any]]:
        connection.request(
            "POST",
            "/token",
            urlencode({"grant_type": "client_credentials", "scope": scope}),
            {
                "Authorization": "Basic " + b64encode(f"{agent.client_id}:{agent.secret}".encode()).decode(),
                "Content-Type": "application/x-www-form-urlencoded",
                "User-Agent": "agentidp-analytics-tests",
            },
        )
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def _control(self, method: str, action: str, body: Mapping[str, str] | None = None) -> dict[str, Any]:
        connection = self._connection()
        try:
            connection.request(method, f"/__{action}", json.dumps(body) if body else None)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status != 200:
            raise IdentityProviderError(f"/__{action}: {response.status} {text.strip()}")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def _first_line(self) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(START_TIMEOUT):
                raise TimeoutError
        return self._process.stdout.readline()


def install() -> None:
    """Installs the locked packages unless they are there. Raises IdentityProviderError with what npm said."""
    npm = _program("npm")
    lock = DIRECTORY / "package-lock.json"
    with lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # test runs that start together must not install over each other
        wanted = hashlib.sha256(file.read()).hexdigest()
        stamp = DIRECTORY / "node_modules" / ".installed"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        done = subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=DIRECTORY,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT,
            check=False,
        )
        if done.returncode:
            raise IdentityProviderError(f"npm ci in {DIRECTORY} failed: {done.stderr[-2000:].strip()}")
        stamp.write_text(wanted)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise IdentityProviderError(
            f"{name} is not on the PATH: the tests with a real identity provider need Node.js 20 or newer with npm"
        )
    return found
