"""The remote writer: a backfill into a running service, over its ingest endpoint."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from isal import igzip

from agentidp_analytics.service_url import ServiceUrl
from clickhouse.errors import StoreError, StoreSetupError, StoreUnavailableError
from clickhouse.event import Event

logger = logging.getLogger(__name__)

# Well below what the endpoint takes, so that a body never has to be cut at its limit.
_BODY_BYTES: Final = 4_000_000
_EVENTS: Final = 20_000
_TRIES: Final = 30
_TRIES_TO_FIND: Final = 4  # of a service that has not answered yet: 1.75 s, for one that is just starting
_LONGEST_WAIT_SECONDS: Final = 10.0
_TIMEOUT_SECONDS: Final = 60.0
_PATH: Final = "/api/v1/events"


class RemoteWriter:
    """Posts events to the service at `url` (http or https, without a path). Thread-safe: a connection a call."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        ca_file: Path | None = None,
        on_wait: Callable[[str], None] = lambda reason: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`ca_file`: PEM file of the authorities to trust instead of the system's. `on_wait` hears why it waits.

        Raises StoreSetupError for a URL, token or file that cannot be used.
        """
        self._url = ServiceUrl(url, ca_file, example="http://127.0.0.1:3000")
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise StoreSetupError("--token-file holds no bearer token on its first line")
        if self._url.is_open:
            logger.warning("--url %s sends the ingest token over the network without TLS", url)
        self._headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/x-ndjson",
            "Content-Encoding": "gzip",
        }
        self._on_wait = on_wait
        self._sleep = sleep
        self._has_answered = False

    def write(self, events: Sequence[Event]) -> None:
        """Returns once the service has answered for every event.

        Sends again while the service is unavailable or limits the rate: events count once. Raises
        StoreUnavailableError when it stays so, StoreError when the service refuses events or the token.
        """
        for body, count in _bodies(events):
            self._send(body, count)

    def _send(self, body: bytes, count: int) -> None:
        for attempt in range(_TRIES):
            try:
                status, retry_after, answer = self._post(body)
            except (OSError, http.client.HTTPException) as error:
                status, retry_after, answer = 0, "", (str(error) or type(error).__name__).encode()
                self._raise_if_permanent(error, attempt)
            said = answer[:200].decode("utf-8", "replace")
            self._has_answered |= status != 0
            if status == 200:
                self._require_all(answer, count)
                return
            if status not in (0, 429, 503):
                raise StoreError(f"{self._url} answered {status}: {said}")
            is_number = retry_after.isascii() and retry_after.isdigit()
            wait = float(retry_after) if is_number else min(2.0**attempt / 4, _LONGEST_WAIT_SECONDS)
            self._on_wait(f"waiting for {self._url} ({status or said}), try {attempt + 2} of {_TRIES} ...")
            self._sleep(min(wait, _LONGEST_WAIT_SECONDS))
        raise StoreUnavailableError(
            f"{self._url} did not take events after {_TRIES} tries ({said}); run this again later, events count once"
        )

    def _raise_if_permanent(self, error: Exception, attempt: int) -> None:
        """Raises StoreError for what trying again will not mend. A service that has answered may just restart."""
        if isinstance(error, ssl.SSLCertVerificationError):
            raise StoreError(
                f"{self._url}: the certificate is not trusted ({error.verify_message}); give its authority as --ca-file"
            ) from error
        unreachable = isinstance(error, ConnectionRefusedError | socket.gaierror | ssl.SSLError)
        if unreachable and not self._has_answered and attempt + 1 >= _TRIES_TO_FIND:
            raise StoreError(f"{self._url} cannot be reached ({error}); is the service running there?") from error

    def _post(self, body: bytes) -> tuple[int, str, bytes]:
        connection = self._url.connection(_TIMEOUT_SECONDS)
        try:
            connection.request("POST", _PATH, body, self._headers)
            response = connection.getresponse()
            return response.status, response.getheader("Retry-After") or "", response.read()
        finally:
            connection.close()

    def _require_all(self, body: bytes, count: int) -> None:
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or "accepted" not in answer:
            said = body[:100].decode("utf-8", "replace")
            raise StoreError(f"{self._url} answered 200 and not as this service does ({said!r}); is --url its address?")
        if answer["accepted"] != count:
            rejected = answer.get("rejected")
            first = rejected[0] if isinstance(rejected, list) and rejected else answer
            raise StoreError(f"{self._url} refused events: {json.dumps(first)[:300]}")


def _bodies(events: Sequence[Event]) -> Iterator[tuple[bytes, int]]:
    """gzip bodies of NDJSON, each with its number of events."""
    lines: list[bytes] = []
    size = 0
    for event in events:
        line = json.dumps(event._asdict(), separators=(",", ":")).encode() + b"\n"
        if lines and (size + len(line) > _BODY_BYTES or len(lines) == _EVENTS):
            yield igzip.compress(b"".join(lines)), len(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    if lines:
        yield igzip.compress(b"".join(lines)), len(lines)
