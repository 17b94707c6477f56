"""The address of a running service, and the way there: http, or https with authorities to trust."""

from __future__ import annotations

import http.client
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from clickhouse.errors import StoreSetupError


class ServiceUrl:
    """The value of `--url`: http or https, a host, perhaps a port, and no path."""

    def __init__(self, url: str, ca_file: Path | None, *, example: str) -> None:
        """`ca_file`: PEM file of the authorities to trust instead of the system's. `example`: what a good one is like.

        Raises StoreSetupError for a URL or file that cannot be used.
        """
        self.scheme, self.host, self.port = _address(url, example)
        self._url = url
        try:
            self._tls = ssl.create_default_context(cafile=ca_file)
        except OSError as error:
            raise StoreSetupError(f"--ca-file {ca_file} holds no usable PEM certificate: {error}") from error

    def __str__(self) -> str:
        return self._url

    @property
    def is_open(self) -> bool:
        """Whether what is sent there can be read on the way."""
        return self.scheme == "http" and self.host not in ("127.0.0.1", "::1", "localhost")

    def connection(self, seconds: float) -> http.client.HTTPConnection:
        """A new connection, not opened yet; `seconds` is its patience with every step."""
        if self.scheme == "https":
            return http.client.HTTPSConnection(self.host, self.port, timeout=seconds, context=self._tls)
        return http.client.HTTPConnection(self.host, self.port, timeout=seconds)


def _address(url: str, example: str) -> tuple[str, str, int | None]:
    """(scheme, host, port) of a service's base URL. Raises StoreSetupError for any other."""
    # Without what may be a password, wherever it stands.
    wrong = f"--url {url.rpartition('@')[2]} is no address of a service; give one such as {example}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError as error:
        raise StoreSetupError(wrong) from error
    is_host = bool(host) and host.isprintable() and " " not in host and parts.username is None
    if parts.scheme not in ("http", "https") or not is_host or port == 0:
        raise StoreSetupError(wrong)
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise StoreSetupError(wrong)
    return parts.scheme, host, port
