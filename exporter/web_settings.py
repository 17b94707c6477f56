"""What a web configuration file of Prometheus' exporter-toolkit may say, read strictly.

Format: https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from exporter.basic_auth import bcrypt_cost

# One check takes 4 s at cost 16 and twice that at the next; Prometheus gives a scrape 10 s.
_MAX_BCRYPT_COST: Final = 16

_CLIENT_AUTH_TYPES: Final = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
# Keys of the format that are refused with a way out: ignoring one would protect less than its file asks for.
_TLS_CHOICE: Final = "remove it: TLS 1.2 and 1.3 are spoken, with OpenSSL's own choice of ciphers"
_UNSUPPORTED: Final = {
    "rate_limit": "limit requests in a proxy in front of the exporter",
    "http_server_config": "remove it; if headers are wanted, let a proxy add them",
    "tls_server_config.cert": "put the certificate into a file and name it in cert_file",
    "tls_server_config.key": "put the key into a file and name it in key_file",
    "tls_server_config.client_ca": "put the certificates into a file and name it in client_ca_file",
    "tls_server_config.client_allowed_sans": "name a CA that signs only the scrapers in client_ca_file",
    "tls_server_config.min_version": _TLS_CHOICE,
    "tls_server_config.max_version": _TLS_CHOICE,
    "tls_server_config.cipher_suites": _TLS_CHOICE,
    "tls_server_config.prefer_server_cipher_suites": _TLS_CHOICE,
    "tls_server_config.curve_preferences": _TLS_CHOICE,
}


class WebConfigError(Exception):
    """The web configuration cannot be used; the message names the file, the key and the way out."""


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """`tls_server_config`, with its paths resolved."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None
    client_auth: ssl.VerifyMode

    @property
    def files(self) -> tuple[Path, ...]:
        """All files named."""
        files = (self.cert_file, self.key_file, self.client_ca_file)
        return tuple(file for file in files if file is not None)


@dataclass(frozen=True, slots=True)
class WebSettings:
    """What a web configuration file says."""

    tls: TlsSettings | None = None
    users: Mapping[str, bytes] = field(default_factory=dict)  # name -> bcrypt hash; empty: no authentication


def read_web_settings(path: Path) -> WebSettings:
    """Reads the file. Raises WebConfigError if it cannot be read or says anything that is not understood."""
    root = _Section(path, "", _load(path))
    root.only("tls_server_config", "basic_auth_users")
    tls = root.section("tls_server_config")
    users = root.section("basic_auth_users")
    return WebSettings(
        tls=_tls_settings(tls) if tls.names else None,
        users={name: _bcrypt_hash(users, name) for name in users.names},
    )


class _Section:
    """A mapping of the file that knows where it stands."""

    def __init__(self, file: Path, name: str, content: object) -> None:
        self.file = file
        self._name = name
        if content in ("", None):  # a key without a value
            content = {}
        if not isinstance(content, dict):
            raise WebConfigError(f"{file}: {name or 'the file'} must be a mapping of keys to values")
        self._content: dict[str, Any] = content

    @property
    def names(self) -> list[str]:
        return list(self._content)

    def section(self, key: str) -> _Section:
        return _Section(self.file, self.path_of(key), self._content.get(key))

    def text(self, key: str) -> str:
        """The value of `key`; empty if it is not there."""
        value = self._content.get(key, "")
        if not isinstance(value, str):
            raise self.error(key, "must be a single value")
        return value

    def only(self, *known: str) -> None:
        """Refuses any other key: a misspelt one would silently protect nothing."""
        for key in self._content:
            if self.path_of(key) in _UNSUPPORTED:
                raise self.error(key, f"is not supported here; {_UNSUPPORTED[self.path_of(key)]}")
            if key not in known:
                raise self.error(key, f"unknown key; known here: {', '.join(known)}")

    def path_of(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def error(self, key: str, problem: str) -> WebConfigError:
        return WebConfigError(f"{self.file}: {self.path_of(key)}: {problem}")


def _tls_settings(section: _Section) -> TlsSettings:
    section.only("cert_file", "key_file", "client_auth_type", "client_ca_file")
    client_auth = section.text("client_auth_type") or "NoClientCert"
    if client_auth not in _CLIENT_AUTH_TYPES:
        raise section.error("client_auth_type", f"{client_auth!r} must be one of {', '.join(_CLIENT_AUTH_TYPES)}")
    settings = TlsSettings(
        cert_file=_path(section, "cert_file"),
        key_file=_path(section, "key_file"),
        client_ca_file=_path(section, "client_ca_file") if section.text("client_ca_file") else None,
        client_auth=_CLIENT_AUTH_TYPES[client_auth],
    )
    if settings.client_auth is ssl.CERT_NONE and settings.client_ca_file is not None:
        raise section.error("client_ca_file", "needs client_auth_type RequireAndVerifyClientCert to have an effect")
    if settings.client_auth is not ssl.CERT_NONE and settings.client_ca_file is None:
        raise section.error("client_auth_type", "needs client_ca_file, the CA that signs the client certificates")
    return settings


def _path(section: _Section, key: str) -> Path:
    """Relative paths start from the directory of the configuration file, as in the toolkit."""
    value = section.text(key)
    if not value:
        raise section.error(key, "is missing; TLS needs cert_file and key_file")
    return section.file.parent / value


def _bcrypt_hash(section: _Section, user: str) -> bytes:
    """The hash is never repeated in a message."""
    hashed = section.text(user).encode()
    cost = bcrypt_cost(hashed)
    if cost is None:
        raise section.error(user, "is no bcrypt hash; `htpasswd -nBC 10 NAME` makes one")
    if cost > _MAX_BCRYPT_COST:
        raise section.error(user, f"has bcrypt cost {cost}; above {_MAX_BCRYPT_COST} a check outlasts a scrape")
    if ":" in user:
        raise section.error(user, "a user name with a colon cannot be sent in basic authentication")
    return hashed


class _StrictLoader(yaml.BaseLoader):
    """YAML with strings as its only scalars, so that no user is called False, and without repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is there twice", node.start_mark)
        return mapping


def _load(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise WebConfigError(f"{path}: cannot read the web configuration: {reason}") from None
    loader = None
    try:
        loader = _StrictLoader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:  # its own text quotes the file, hashes included
        line = f" in the part from line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise WebConfigError(f"{path}: no valid YAML{line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise WebConfigError(f"{path}: no valid YAML: {type(error).__name__}") from None
    finally:
        if loader is not None:
            loader.dispose()
