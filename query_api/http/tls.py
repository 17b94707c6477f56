"""TLS with a certificate that can be renewed under a running server."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from query_api.file_watch import FileWatch

logger = logging.getLogger(__name__)


class TlsFilesError(ValueError):
    """A certificate or key that cannot be used; the message names the files."""


class ServerCertificate:
    """The server's TLS context; each handshake uses the files as they are then, or as they last worked.

    `certificate` is the content of the file that is in use, `read_at` (Unix seconds) when it was read; `reload_worked`
    tells whether the last attempt since did. `clock` gives Unix seconds.
    """

    def __init__(self, cert: Path, key: Path, clock: Callable[[], float] = time.time) -> None:
        """Loads the PEM files (`cert` with its chain). Raises TlsFilesError."""
        self._cert = cert
        self._key = key
        self._watch = FileWatch(cert, key)
        self._clock = clock
        self._current, self.certificate = self._load()
        self.reload_worked, self.read_at = True, clock()
        self.context = self._current
        self.context.sni_callback = self._choose

    def refresh(self) -> None:
        """Reads the files again if they have changed."""
        # A context of its own for each version: loading a half-renewed pair into the live one would leave it with a
        # certificate and a key that do not belong together, and every handshake would fail.
        if not self._watch.changed():
            return
        try:
            self._current, self.certificate = self._load()
        except TlsFilesError as error:
            self.reload_worked = False
            logger.error("the TLS certificate stays as it was: %s", error)  # noqa: TRY400 - the message says it all
        else:
            self.reload_worked, self.read_at = True, self._clock()
            logger.info("the TLS certificate was read again")

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        self.refresh()
        connection.context = self._current

    def _load(self) -> tuple[ssl.SSLContext, bytes]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            # An empty password: OpenSSL would otherwise ask for one on the terminal and stop the server there.
            context.load_cert_chain(self._cert, self._key, password="")
            certificate = self._cert.read_bytes()  # a context does not tell what it was given
        except (OSError, ssl.SSLError) as error:
            reason = (error.reason if isinstance(error, ssl.SSLError) else error.strerror) or "not usable"
            raise TlsFilesError(
                f"--tls-cert {self._cert} and --tls-key {self._key} cannot be used ({reason}); give a PEM certificate "
                "and its unencrypted PEM key"
            ) from None
        return context, certificate
