"""The claims of a token whose signature holds: types, times, audience, kind of token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from query_api.auth.bearer_token import Reason, RefusedError, bare_type, is_plain_text

# RFC 9068 section 2.2. Of another accepted kind of token only the times are asked for.
_REQUIRED_OF_ACCESS_TOKEN: Final = ("iss", "exp", "aud", "sub", "client_id", "iat", "jti")
_REQUIRED: Final = ("exp", "iat")
_TEXT_CLAIMS: Final = ("iss", "sub", "client_id", "azp", "jti")
_TIME_CLAIMS: Final = ("exp", "iat", "nbf")
_LATEST: Final = 253_402_300_799  # 9999-12-31T23:59:59Z; also keeps huge integers out of float arithmetic

# Signs of an ID token (OpenID Connect Core section 2 and 3.3.2.11), of a logout or security event token (RFC 8417), of
# a DPoP proof (RFC 9449 section 4.2) and of a signed authorisation request (RFC 9101). Such a token is signed by the
# same issuer with the same key, and may have been shown to parties that must not call this service.
_SIGNS_OF_ANOTHER_KIND: Final = frozenset(
    {"nonce", "at_hash", "c_hash", "s_hash", "events", "htm", "htu", "ath", "response_type"}
)
# Claims in which providers name the kind of a token, and what an access token is called there.
_KIND_CLAIMS: Final = ("token_use", "token_type", "typ")
_ACCESS_KINDS: Final = frozenset({"access", "access_token", "bearer", "at+jwt", "jwt"})


def check_kind(claims: Mapping[str, Any]) -> None:
    """Refuses what the issuer signed for another purpose, or bound to a key that a bearer does not prove to hold.

    RFC 8725 section 2.8 (tokens used for what they were not made for), RFC 9449 section 7.1 and RFC 8705 section 3
    (`cnf`). Raises RefusedError.
    """
    if not _SIGNS_OF_ANOTHER_KIND.isdisjoint(claims):
        raise RefusedError(Reason.OTHER_KIND)
    for name in _KIND_CLAIMS:
        if name in claims and (not isinstance(claims[name], str) or bare_type(claims[name]) not in _ACCESS_KINDS):
            raise RefusedError(Reason.OTHER_KIND)
    if "cnf" in claims:
        raise RefusedError(Reason.SENDER_CONSTRAINED)


def check_types(claims: Mapping[str, Any], kind: str) -> None:
    """The claims that `kind` must have are there, each with its type; null is a wrong type. Raises RefusedError."""
    required = _REQUIRED_OF_ACCESS_TOKEN if kind == "at+jwt" else _REQUIRED
    if any(name not in claims for name in required):
        raise RefusedError(Reason.CLAIMS)
    if any(name in claims and not is_plain_text(claims[name]) for name in _TEXT_CLAIMS):
        raise RefusedError(Reason.CLAIMS)
    if any(name in claims and not _is_numeric_date(claims[name]) for name in _TIME_CLAIMS):
        raise RefusedError(Reason.CLAIMS)
    if "aud" in claims and not all(map(is_plain_text, _audiences(claims))):
        raise RefusedError(Reason.CLAIMS)


def check_times(claims: Mapping[str, Any], now: float, max_lifetime: float, leeway: float) -> None:
    """RFC 7519 sections 4.1.4 to 4.1.6, of claims with the right types; all values are in seconds.

    `leeway` forgives an issuer whose clock is ahead. It is not added to `exp`: nobody needs an expired token.
    Raises RefusedError.
    """
    if claims["exp"] <= now:
        raise RefusedError(Reason.EXPIRED)
    if max(claims["iat"], claims.get("nbf", 0)) > now + leeway:
        raise RefusedError(Reason.NOT_YET_VALID)
    if not 0 < claims["exp"] - claims["iat"] <= max_lifetime:
        raise RefusedError(Reason.LIFETIME)


def check_audience(claims: Mapping[str, Any], audiences: frozenset[str]) -> None:
    """RFC 7519 section 4.1.3: one of `audiences`, exactly. Raises RefusedError."""
    if "aud" not in claims or audiences.isdisjoint(_audiences(claims)):
        raise RefusedError(Reason.AUDIENCE)


def read_scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """The scopes of RFC 6749 section 3.3, split at spaces; a `scope` that is no string grants nothing."""
    scope = claims.get("scope")
    return frozenset(scope.split(" ")) - {""} if isinstance(scope, str) else frozenset()


def read_client_id(claims: Mapping[str, Any]) -> str:
    """Who uses the token: `client_id`, else `azp`, else `sub`, else nothing (only an ``at+jwt`` must say)."""
    for name in ("client_id", "azp", "sub"):
        if name in claims:
            return str(claims[name])
    return ""


def _audiences(claims: Mapping[str, Any]) -> list[Any]:
    aud = claims["aud"]
    return aud or [None] if isinstance(aud, list) else [aud]


def _is_numeric_date(value: object) -> bool:
    # bool is an int to Python: `true` would be one second after 1970.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _LATEST
