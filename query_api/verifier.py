"""Who asks: a bearer token turned into a tenant, or a refusal that says nothing about the token."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import jwt

from clickhouse.tenant import TenantId
from query_api.claims import check_audience, check_kind, check_times, check_types, read_client_id, read_scopes
from query_api.keys import KeySet, KeysUnavailableError, UnknownKeyError, VerificationKey, check_algorithms
from query_api.token_shape import Reason, RefusedError, Token, parse_token, read_bearer

__all__ = ["AuthError", "Principal", "Reason", "Verifier", "VerifierSettings"]

REALM: Final = "agentidp-analytics"
DEFAULT_TOKEN_TYPES: Final = ("at+jwt", "application/at+jwt", "JWT")

# RFC 6749 section 3.3: a scope may hold neither quotes nor spaces, so it can stand in a header as it is.
_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
_JWS: Final = jwt.PyJWS(options={"verify_signature": True, "enforce_minimum_key_length": True})


@dataclass(frozen=True)
class VerifierSettings:
    """What a token must be to be accepted.

    `issuers` maps each accepted `iss` to the keys of that issuer and no other (RFC 8725 section 3.8); a single KeySet
    gives the check of `iss` up. `audiences` of None gives the check of `aud` up. `max_token_lifetime` (`exp` - `iat`)
    and `leeway` (for `iat` and `nbf`) are in seconds.
    """

    issuers: Mapping[str, KeySet] | KeySet
    audiences: frozenset[str] | None
    algorithms: Sequence[str] = ("RS256",)
    tenant_claim: str = "organization_id"
    token_types: Sequence[str] = DEFAULT_TOKEN_TYPES
    max_token_lifetime: float = 24 * 3600
    required_scope: str | None = None
    leeway: float = 0

    def __post_init__(self) -> None:
        """Raises ValueError for a value with which everything, or nothing, would be accepted."""
        check_algorithms(self.algorithms)
        if not isinstance(self.issuers, KeySet) and (not self.issuers or not all(self.issuers)):
            raise ValueError("--issuer is empty; give the issuer's exact iss, or --no-issuer-check")
        if self.audiences is not None and (not self.audiences or not all(self.audiences)):
            raise ValueError("--audience is empty; give this service's aud, or --no-audience-check")
        if not self.token_types or not all(self.token_types):
            raise ValueError(f"--token-types has an empty value; give one or more, such as {DEFAULT_TOKEN_TYPES[0]}")
        if not self.tenant_claim:
            raise ValueError("--tenant-claim is empty; give the name of a claim, such as organization_id")
        if self.max_token_lifetime <= 0:
            raise ValueError(f"--max-token-lifetime {self.max_token_lifetime} is not above 0; give one such as 24h")
        if self.leeway < 0:
            raise ValueError(f"leeway {self.leeway} is below 0; give 0 or some seconds")
        if self.required_scope is not None and _SCOPE.fullmatch(self.required_scope) is None:
            raise ValueError(f"--required-scope {self.required_scope!r} is not one scope; leave out blanks and quotes")


@dataclass(frozen=True)
class Principal:
    """Who asks, and until when (`expires_at`, Unix seconds, rounded down)."""

    tenant: TenantId
    client_id: str
    scopes: frozenset[str]
    expires_at: int


class _Answer(NamedTuple):
    status: int
    code: str
    error: str | None  # RFC 6750 section 3.1; None: the challenge has no error, or there is no challenge
    message: str


def _invalid(message: str) -> _Answer:
    return _Answer(401, "UNAUTHORIZED", "invalid_token", message)


_NO_TOKEN: Final = _Answer(401, "UNAUTHORIZED", None, "A bearer token is required")
_ANSWERS: Final[Mapping[Reason, _Answer]] = {
    Reason.NO_CREDENTIALS: _NO_TOKEN,
    Reason.OTHER_SCHEME: _NO_TOKEN,
    Reason.SEVERAL_HEADERS: _Answer(
        400, "VALIDATION_ERROR", "invalid_request", "There must be one Authorization header only"
    ),
    Reason.TOO_LONG: _invalid("The token is too long"),
    Reason.MALFORMED: _invalid("The token is not a well-formed signed JWT"),
    Reason.ALGORITHM: _invalid("The token's algorithm is not accepted"),
    Reason.TOKEN_TYPE: _invalid("The token's type is not accepted, an access token is required"),
    Reason.HEADER: _invalid("The token's header is not accepted"),
    Reason.ISSUER: _invalid("The token's issuer is not accepted"),
    Reason.UNKNOWN_KEY: _invalid("The token's key is not known"),
    Reason.KEYS_UNAVAILABLE: _Answer(503, "UNAVAILABLE", None, "The issuer's keys cannot be fetched now"),
    Reason.SIGNATURE: _invalid("The token's signature does not hold"),
    Reason.CLAIMS: _invalid("The token lacks a required claim or has one of the wrong type"),
    Reason.EXPIRED: _invalid("The token has expired"),
    Reason.NOT_YET_VALID: _invalid("The token is not valid yet"),
    Reason.LIFETIME: _invalid("The token's lifetime is too long"),
    Reason.AUDIENCE: _invalid("The token is for another audience"),
    Reason.OTHER_KIND: _invalid("The token is not an access token"),
    Reason.SENDER_CONSTRAINED: _invalid("The token is bound to a key and not valid as a bearer token"),
    Reason.SCOPE: _Answer(403, "FORBIDDEN", "insufficient_scope", "The token lacks the required scope"),
    Reason.TENANT: _Answer(403, "FORBIDDEN", "insufficient_scope", "The token names no valid tenant"),
}


class AuthError(Exception):
    """A refused request: the answer to give and the `reason` to count. All texts are fixed, none comes from the token.

    `www_authenticate` is the challenge of RFC 6750 section 3 (None on 503), `retry_after` is in seconds (503 only).
    """

    def __init__(self, reason: Reason, *, scope: str | None = None, retry_after: int | None = None) -> None:
        answer = _ANSWERS[reason]
        super().__init__(answer.message)
        self.reason = reason
        self.status = answer.status
        self.code = answer.code
        self.message = answer.message
        self.retry_after = retry_after
        self.www_authenticate = None if answer.status == 503 else _challenge(answer, scope)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer; it must not be cached, as the next token from the same place may be good."""
        headers = {"Cache-Control": "no-store"}
        if self.www_authenticate is not None:
            headers["WWW-Authenticate"] = self.www_authenticate
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return headers


class Verifier:
    """Checks bearer tokens. Results are not cached: a withdrawn key must not live on in accepted tokens.

    `clock` gives Unix seconds.
    """

    def __init__(self, settings: VerifierSettings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._algorithms = check_algorithms(settings.algorithms)
        self._token_types = frozenset(name.lower() for name in settings.token_types)

    async def verify(self, authorization: Sequence[str]) -> Principal:
        """Turns all values of the Authorization header into a principal. Raises AuthError, and nothing else.

        401 comes before 403 and both before any look at parameters, so a stranger learns nothing from the order.
        """
        try:
            token = parse_token(read_bearer(authorization), self._algorithms, self._token_types)
            key = await self._key_set(token).key(token.kid, token.alg)
            if not _signature_holds(token, key):
                raise RefusedError(Reason.SIGNATURE)
            return self._principal(token)
        except RefusedError as refused:
            scope = self._settings.required_scope if refused.reason is Reason.SCOPE else None
            error = AuthError(refused.reason, scope=scope)
        except UnknownKeyError:
            error = AuthError(Reason.UNKNOWN_KEY)
        except KeysUnavailableError as unavailable:
            error = AuthError(Reason.KEYS_UNAVAILABLE, retry_after=unavailable.retry_after)
        # Outside the handlers: an error raised in one would carry the first as its context into a logged traceback.
        raise error

    def _key_set(self, token: Token) -> KeySet:
        issuers = self._settings.issuers
        if isinstance(issuers, KeySet):
            return issuers
        issuer = token.claims.get("iss")
        key_set = issuers.get(issuer) if isinstance(issuer, str) else None
        if key_set is None:
            raise RefusedError(Reason.ISSUER)
        return key_set

    def _principal(self, token: Token) -> Principal:
        settings, claims = self._settings, token.claims
        check_types(claims, token.kind)
        check_times(claims, self._clock(), settings.max_token_lifetime, settings.leeway)
        if settings.audiences is not None:
            check_audience(claims, settings.audiences)
        check_kind(claims)
        scopes = read_scopes(claims)
        if settings.required_scope is not None and settings.required_scope not in scopes:
            raise RefusedError(Reason.SCOPE)
        try:
            tenant = TenantId(claims.get(settings.tenant_claim))
        except ValueError:
            raise RefusedError(Reason.TENANT) from None
        return Principal(tenant, read_client_id(claims), scopes, int(claims["exp"]))


def _signature_holds(token: Token, key: VerificationKey) -> bool:
    try:
        _JWS.decode_complete(token.text, key=key.key, algorithms=[token.alg])
    except Exception:
        # PyJWT raises more than its own classes for hostile input; whatever it is, the signature is not proved.
        return False
    return True


def _challenge(answer: _Answer, scope: str | None) -> str:
    parts = [f'Bearer realm="{REALM}"']
    if answer.error is not None:
        parts += [f'error="{answer.error}"', f'error_description="{answer.message}"']
    if scope is not None:
        parts.append(f'scope="{scope}"')
    return ", ".join(parts)
