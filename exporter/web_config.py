"""The web configuration in use: read again whenever it or a certificate file it names has changed."""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from exporter.web_settings import TlsSettings, WebConfigError, WebSettings, read_web_settings

_logger = logging.getLogger(__name__)

# Enough to notice every replacement, and rewriting in place unless within one tick of the file system's clock.
_Stamp = tuple[int, int, int, int] | None


class WebConfig:
    """A web configuration file. A broken new version of any file is logged, and what was read before stays.

    `certificate` is the content of the certificate file in use, None without TLS; `read_at` (Unix seconds) is when what
    is in use was read, `reload_worked` tells whether the last attempt since did. `clock` gives Unix seconds.
    """

    def __init__(self, path: str | os.PathLike[str], clock: Callable[[], float] = time.time) -> None:
        """Raises WebConfigError if the file, or one it names, cannot be used."""
        self._path = Path(path)
        self._stamps: dict[Path, _Stamp] = {}
        self._clock = clock
        self._settings, self._context, self.certificate = self._read()
        self.reload_worked, self.read_at = True, clock()

    def refresh(self) -> None:
        """Reads the files again if one of them has changed."""
        if any(stamp != _stamp(path) for path, stamp in self._stamps.items()):
            self._read_again()

    def settings(self) -> WebSettings:
        """The settings in use, after a look at the files."""
        self.refresh()
        return self._settings

    def ssl_context(self) -> ssl.SSLContext | None:
        """For a listening socket: every new connection gets the certificates of that moment. None: no TLS."""
        return None if self._context is None else _CurrentContext.of(self)

    def current_context(self) -> ssl.SSLContext:
        """The context for one connection, after a look at the files. Only with TLS."""
        self.settings()
        if self._context is None:
            raise RuntimeError("there is no TLS in this web configuration")
        return self._context

    def _read(self) -> tuple[WebSettings, ssl.SSLContext | None, bytes | None]:
        # Stamps are taken before the files are read: a change in between is then noticed by the next look.
        self._stamps = {self._path: _stamp(self._path)}
        settings = read_web_settings(self._path)
        if settings.tls is None:
            return settings, None, None
        self._stamps |= {path: _stamp(path) for path in settings.tls.files}
        return settings, *_server_context(settings.tls, self._path)

    def _read_again(self) -> None:
        try:
            settings, context, certificate = self._read()
            if (context is None) != (self._context is None):
                raise WebConfigError(f"{self._path}: tls_server_config: turning TLS on or off needs a restart")
        except WebConfigError as error:
            self.reload_worked = False
            _logger.error("%s; the web configuration read before stays in use", error)  # noqa: TRY400
        else:
            self._settings, self._context, self.certificate = settings, context, certificate
            self.reload_worked, self.read_at = True, self._clock()
            _logger.info("%s: web configuration read again", self._path)


class _CurrentContext(ssl.SSLContext):
    """Stands for the listening socket and lends each connection the context of the moment.

    Loading a new certificate into a context in use would leave it half changed when the new files are broken,
    and could not change who must show a client certificate.
    """

    _config: WebConfig

    @classmethod
    def of(cls, config: WebConfig) -> _CurrentContext:
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context._config = config
        return context

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        return self._config.current_context().wrap_bio(*args, **options)


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _server_context(tls: TlsSettings, path: Path) -> tuple[ssl.SSLContext, bytes]:
    """The context, and the content of the certificate file, which a context does not tell.

    Raises WebConfigError, naming `path` and the key, if a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(tls.cert_file, tls.key_file, _refuse_password)
        certificate = tls.cert_file.read_bytes()
    except (OSError, _EncryptedKeyError) as error:
        raise _unusable(path, "cert_file and key_file", (tls.cert_file, tls.key_file), error) from None
    if tls.client_ca_file is not None:
        try:
            context.load_verify_locations(tls.client_ca_file)
        except OSError as error:
            raise _unusable(path, "client_ca_file", (tls.client_ca_file,), error) from None
    context.verify_mode = tls.client_auth
    return context, certificate


class _EncryptedKeyError(Exception):
    """The key file asks for a password."""


_ENCRYPTED_KEY: Final = "the key is encrypted; give one without a password, readable by this process only"


def _refuse_password() -> NoReturn:
    # Without this, OpenSSL would ask for the password on the terminal and the server would stand still.
    raise _EncryptedKeyError(_ENCRYPTED_KEY)


def _unusable(path: Path, keys: str, files: tuple[Path, ...], error: Exception) -> WebConfigError:
    missing = [str(file) for file in files if not os.access(file, os.R_OK)]
    reason = f"cannot read {' and '.join(missing)}" if missing else str(error)
    names = " and ".join(map(str, files))
    return WebConfigError(f"{path}: tls_server_config.{keys}: cannot use {names}: {reason}")
