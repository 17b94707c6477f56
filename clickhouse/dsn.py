"""The DSN: which store it names, how a server is reached, and what of it may be shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from clickhouse.errors import StoreSetupError

# The scheme alone decides about TLS. The driver would guess from the port, and on any but 443 and 8443 send the
# password of an https:// DSN in the clear.
_INTERFACES: Final = {"http": "http", "clickhouse": "http", "https": "https", "clickhouses": "https"}
_TLS_FILES: Final = frozenset({"ca_cert", "client_cert", "client_cert_key"})
_TLS_OPTIONS: Final = _TLS_FILES | {"verify", "tls_mode", "server_host_name", "https_proxy"}
# How to get to the server, and nothing else: query_limit would cut counts, another time-out would call an insert
# failed that may still land.
_OPTIONS: Final = _TLS_OPTIONS | {
    "secure", "user", "user_name", "access_token", "connect_timeout", "compress", "compression", "client_name",
    "proxy_path", "http_proxy", "dedicated_pool",
}  # fmt: skip
_TRUTH: Final = {"true": True, "1": True, "y": True, "yes": True, "false": False, "0": False, "n": False, "no": False}
_SHORTEST_SECRET: Final = 5


def server_arguments(dsn: str) -> dict[str, Any]:
    """The arguments of `clickhouse_connect.get_client` for a server's DSN.

    Raises StoreSetupError for one that names no server, contradicts itself or has an option that is not about how
    the server is reached.
    """
    interface = _interface(dsn)
    parts = urlsplit(dsn)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name, value in options.items():
        fault = _fault(name, value, uses_tls=interface == "https")
        if fault:
            raise StoreSetupError(f"--dsn {redact(dsn)}?...{name}: {fault}")
    options.pop("secure", None)
    return {"interface": interface, "dsn": urlunsplit(parts._replace(query=urlencode(options)))}


def _fault(name: str, value: str, *, uses_tls: bool) -> str:
    """What is wrong with an option of the query string, "" for nothing. Values that may be secret are not repeated."""
    if name not in _OPTIONS:
        return f"cannot be set in a DSN; known are {', '.join(sorted(_OPTIONS))}"
    if name in {"secure", "verify"} and value.lower() not in _TRUTH:
        return f"{value!r} is neither true nor false"
    if (name == "secure" and _TRUTH[value.lower()] != uses_tls) or (name in _TLS_OPTIONS and not uses_tls):
        return "contradicts the scheme; https:// and clickhouses:// use TLS, http:// and clickhouse:// do not"
    if name in _TLS_FILES and value != "certifi" and not Path(value).is_file():
        return f"{value} is no file that can be read"
    return ""


def embedded_path(dsn: str) -> Path:
    """The directory of an embedded store's DSN. Raises StoreSetupError."""
    parts = urlsplit(dsn)
    path = Path(parts.path)
    if parts.netloc or parts.query or parts.fragment or not path.is_absolute():
        raise StoreSetupError(
            f"--dsn {dsn}: an embedded store needs an absolute path and nothing else, such as chdb:///var/lib/agentidp"
        )
    return path


def database_of(dsn: str) -> str:
    """The database of a server's DSN, "" if it names none."""
    return unquote(urlsplit(dsn).path[1:].partition("/")[0])


def _interface(dsn: str) -> str:
    try:
        parts = urlsplit(dsn)
        port = parts.port
    except ValueError as error:
        raise _unreadable(dsn) from error
    if parts.scheme not in _INTERFACES:
        raise StoreSetupError(
            f"--dsn {redact(dsn)} names no store: give chdb:///absolute/path, clickhouse(s)://host/database "
            "or http(s)://user:password@host:port/database"
        )
    # An @ further on is what a password with / ? or # in it leaves behind.
    if not parts.hostname or port == 0 or "@" in parts.path + parts.query or parts.fragment:
        raise _unreadable(dsn)
    return _INTERFACES[parts.scheme]


def _unreadable(dsn: str) -> StoreSetupError:
    # Without the DSN: which part of it is the password is just what cannot be told.
    return StoreSetupError(
        f"--dsn {dsn.partition('://')[0]}://...: host and port cannot be read; percent-encode special characters of "
        "user and password"
    )


def redact(dsn: str) -> str:
    """A DSN without user, password and query string."""
    if "://" not in dsn:
        return dsn
    parts = urlsplit(dsn)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def redact_text(text: str, dsn: str) -> str:
    """Driver messages may repeat the DSN; this takes password and access token out."""
    parts = urlsplit(dsn)
    text = text.replace(dsn, redact(dsn))
    for secret in (parts.password, dict(parse_qsl(parts.query)).get("access_token")):
        if secret:
            text = text.replace(f":{secret}@", ":***@")
            # A very short one would blot out half of the message, and protects nothing.
            for form in (secret, unquote(secret)):
                text = text.replace(form, "***") if len(form) >= _SHORTEST_SECRET else text
    return text
