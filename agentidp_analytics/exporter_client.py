"""The exporter's client: the operators' questions to a running service, whose store nobody else may open."""

from __future__ import annotations

import http.client
import json
import logging
import ssl
from base64 import b64encode
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from agentidp_analytics.service_url import ServiceUrl
from clickhouse.errors import StoreError, StoreSetupError, StoreUnavailableError
from clickhouse.tenant import TenantId
from exporter.settings import ExporterSettings

logger = logging.getLogger(__name__)

DEFAULT_URL: Final = f"http://{ExporterSettings.host}:{ExporterSettings.port}"
_TIMEOUT_SECONDS: Final = 60.0
_WAYS_OUT: Final = "name the exporter listener (--metrics-listen) of a running service, or a store with --dsn instead"


class Credentials(NamedTuple):
    """Of the exporter's basic authentication; `password_file` has the password on its first line."""

    user: str
    password_file: Path

    def header(self) -> str:
        """The value of Authorization. Raises StoreSetupError for what no server could accept."""
        if not self.user or ":" in self.user or not self.user.isprintable():
            raise StoreSetupError(f"--web-user {self.user!r} is no user; give a name without a colon")
        # Only the end of the line goes: a password may begin or end with blanks.
        password = self.password_file.read_bytes().partition(b"\n")[0].removesuffix(b"\r")
        if not password:
            raise StoreSetupError(f"--password-file {self.password_file} holds no password on its first line")
        return "Basic " + b64encode(self.user.encode() + b":" + password).decode("ascii")


class ExporterClient:
    """Asks the exporter at `url`. Raises StoreSetupError for what a setting can mend, else StoreError."""

    def __init__(self, url: str, credentials: Credentials | None, ca_file: Path | None) -> None:
        """Raises StoreSetupError for a URL, user or file that cannot be used."""
        self._url = ServiceUrl(url, ca_file, example=DEFAULT_URL)
        self._user = credentials and credentials.user
        self._headers = {"Authorization": credentials.header()} if credentials else {}
        if credentials and self._url.is_open:
            logger.warning("--url %s sends the password over the network without TLS", url)

    def alerts(self, tenant: TenantId | None, days: int) -> dict[str, Any]:
        """The body of the exporter's /alerts."""
        found = self._body("/alerts", {"days": str(days)} | ({"tenant": str(tenant)} if tenant else {}), "days", "data")
        if found is None:
            raise StoreSetupError(f"--url {self._url} answers, and has no alerts; {_WAYS_OUT}")
        return found

    def agent_detail(self, tenant: TenantId, agent: str, days: int) -> dict[str, Any] | None:
        """The body of the exporter's /agents/detail; None for an agent that the tenant never had, or no such page."""
        return self._body("/agents/detail", {"tenant": str(tenant), "agent": agent, "days": str(days)}, "agentId")

    def _body(self, path: str, query: dict[str, str], *members: str) -> dict[str, Any] | None:
        """What `path` answers; None for 404."""
        status, body = self._get(f"{path}?{urlencode(query)}")
        said = " ".join(body[:200].decode("utf-8", "replace").split())
        if status == 404:
            return None
        if status == 401:
            way_out = (
                f"it does not accept --web-user {self._user} with the password of --password-file"
                if self._user
                else "it wants --web-user and --password-file"
            )
            raise StoreSetupError(f"--url {self._url} answered 401: {way_out}")
        if status == 503:
            raise StoreUnavailableError(f"--url {self._url} answered 503 ({said}); run this again in a moment")
        if status != 200:
            raise StoreError(f"--url {self._url} answered {status}: {said!r}")
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or not set(members) <= answer.keys():
            raise StoreSetupError(f"--url {self._url} answered {said[:100]!r}, not as an exporter does; {_WAYS_OUT}")
        return answer

    def _get(self, target: str) -> tuple[int, bytes]:
        connection = self._url.connection(_TIMEOUT_SECONDS)
        try:
            connection.request("GET", target, headers=self._headers)
            response = connection.getresponse()
            return response.status, response.read()
        except ssl.SSLCertVerificationError as error:
            raise StoreSetupError(
                f"--url {self._url}: the certificate is not trusted ({error.verify_message}); "
                "give its authority as --ca-file"
            ) from error
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"--url {self._url} did not answer within {_TIMEOUT_SECONDS:.0f} s; run this again in a moment"
            ) from error
        except http.client.HTTPException as error:
            raise StoreSetupError(
                f"--url {self._url} does not answer as HTTP ({type(error).__name__}); http or https? Else {_WAYS_OUT}"
            ) from error
        except OSError as error:
            raise StoreSetupError(f"--url {self._url} cannot be reached ({error}); {_WAYS_OUT}") from error
        finally:
            connection.close()
