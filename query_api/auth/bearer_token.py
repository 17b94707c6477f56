"""A bearer token as text: what it must look like before any key is asked for, and why a token is refused."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

MAX_TOKEN_LENGTH: Final = 8192
# Far below the interpreter's recursion limit, so that the answer does not depend on how deep the caller already is.
MAX_JSON_DEPTH: Final = 16
MAX_KID_LENGTH: Final = 256

_SHAPE: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# crit and b64 change what is signed (RFC 7515 section 4.1.11, RFC 7797); enc and zip belong to encrypted tokens
# (RFC 7516 section 9); the others bring a key, or the address of one, chosen by whoever wrote the token (RFC 8725
# section 3.10). x5t and x5t#S256 only name a certificate and are ignored.
_REFUSED_HEADERS: Final = frozenset({"crit", "b64", "enc", "zip", "jwk", "jku", "x5u", "x5c"})


class Reason(StrEnum):
    """Why a request was refused: the closed set of values of the label `reason` of the counter of such requests."""

    NO_CREDENTIALS = "no_credentials"
    OTHER_SCHEME = "other_scheme"
    SEVERAL_HEADERS = "several_headers"
    TOO_LONG = "too_long"
    MALFORMED = "malformed"
    ALGORITHM = "algorithm"
    TOKEN_TYPE = "token_type"  # noqa: S105 - a label value
    HEADER = "header"
    ISSUER = "issuer"
    UNKNOWN_KEY = "unknown_key"
    KEYS_UNAVAILABLE = "keys_unavailable"
    SIGNATURE = "signature"
    CLAIMS = "claims"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    LIFETIME = "lifetime"
    AUDIENCE = "audience"
    OTHER_KIND = "other_kind"
    SENDER_CONSTRAINED = "sender_constrained"
    SCOPE = "scope"
    TENANT = "tenant"


class RefusedError(Exception):
    """A request that fails one check; carries nothing of the token."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True)
class Token:
    """A token that is well formed; nothing in it is true before its signature holds.

    `kind` is the media type in lower case without ``application/``; `kid` is None if the header has none.
    """

    text: str
    alg: str
    kind: str
    kid: str | None
    claims: dict[str, Any]


def read_bearer(authorization: Sequence[str]) -> str:
    """The credentials of the one Authorization header (RFC 6750 section 2.1), not looked at further.

    `authorization` is every value of that header. Taking the first of two would let a proxy check one token and this
    service another. Raises RefusedError.
    """
    if not authorization:
        raise RefusedError(Reason.NO_CREDENTIALS)
    if len(authorization) > 1:
        raise RefusedError(Reason.SEVERAL_HEADERS)
    scheme, _, credentials = authorization[0].partition(" ")
    if scheme.lower() != "bearer":
        raise RefusedError(Reason.OTHER_SCHEME)
    return credentials


def parse_token(text: str, algorithms: frozenset[str], token_types: frozenset[str]) -> Token:
    """Takes a compact JWS (RFC 7515 section 7.1) apart; `token_types` are in lower case.

    One token has one accepted spelling: no padding, no stray bits, no member twice (RFC 8725 section 2.4 and RFC 7515
    section 4: a parser that takes the first and one that takes the last would see two different tokens).
    Raises RefusedError.
    """
    if len(text) > MAX_TOKEN_LENGTH:
        raise RefusedError(Reason.TOO_LONG)
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise RefusedError(Reason.MALFORMED)
    try:
        header_bytes, payload_bytes, _ = map(decode_base64url, match.groups())
        header = parse_json_object(header_bytes)
        claims = parse_json_object(payload_bytes)
    except ValueError:
        raise RefusedError(Reason.MALFORMED) from None
    alg = _algorithm(header, algorithms)
    kind = _kind(header, token_types)
    if not _REFUSED_HEADERS.isdisjoint(header):
        raise RefusedError(Reason.HEADER)
    return Token(text, alg, kind, _kid(header), claims)


def bare_type(media_type: str) -> str:
    """A `typ` in lower case and without ``application/``, which RFC 7515 section 4.1.9 lets a writer leave out."""
    return media_type.lower().removeprefix("application/")


def is_plain_text(value: object) -> bool:
    """Whether `value` is a string with something to see in it, and neither control characters nor lone surrogates."""
    return isinstance(value, str) and bool(value.strip()) and _UNPRINTABLE.search(value) is None


def decode_base64url(segment: str) -> bytes:
    """RFC 7515 section 2 base64url, in its one canonical spelling. Raises ValueError."""
    data = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != segment:
        raise ValueError("not the canonical base64url spelling")
    return data


def parse_json_object(data: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8 without repeated members, NaN, infinities or more than `MAX_JSON_DEPTH` levels.

    Raises ValueError, never RecursionError or OverflowError.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_members,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - the caller wants one error for bad bytes
    if not _is_shallow(value):
        raise ValueError("nested too deeply")
    return value


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is given twice")
    return members


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _is_shallow(value: dict[str, Any]) -> bool:
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        children = (child for node in level for child in (node.values() if isinstance(node, dict) else node))
        level = [child for child in children if isinstance(child, (dict, list))]
        if not level:
            return True
    return False


def _algorithm(header: dict[str, Any], algorithms: frozenset[str]) -> str:
    alg = header.get("alg")
    if not isinstance(alg, str) or alg not in algorithms:
        raise RefusedError(Reason.ALGORITHM)
    return alg


def _kind(header: dict[str, Any], token_types: frozenset[str]) -> str:
    typ = header.get("typ")
    # ASCII first: lower() turns some other scripts' letters into ASCII ones.
    if not isinstance(typ, str) or not typ.isascii() or typ.lower() not in token_types:
        raise RefusedError(Reason.TOKEN_TYPE)
    return bare_type(typ)


def _kid(header: dict[str, Any]) -> str | None:
    if "kid" not in header:
        return None
    kid = header["kid"]
    if not isinstance(kid, str) or not 1 <= len(kid) <= MAX_KID_LENGTH or _UNPRINTABLE.search(kid):
        raise RefusedError(Reason.HEADER)
    return kid
