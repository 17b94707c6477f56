"""Who asks: a bearer token turned into a tenant, or a refusal that says nothing about the token."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import aiohttp
import jwt
from prometheus_client import CollectorRegistry

from clickhouse.tenant import TenantId
from query_api.auth.bearer_token import Reason, RefusedError, Token, parse_token, read_bearer
from query_api.auth.claims import check_audience, check_kind, check_times, check_types, read_client_id, read_scopes
from query_api.auth.jwks import (
    KeySet,
    KeysUnavailableError,
    UnknownKeyError,
    VerificationKey,
    check_algorithms,
    count_fetches,
)
from query_api.auth.token_policy import TokenPolicy

__all__ = ["AuthError", "Principal", "Reason", "Verifier", "open_verifier"]

REALM: Final = "agentidp-analytics"

_JWS: Final = jwt.PyJWS(options={"verify_signature": True, "enforce_minimum_key_length": True})


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

    def __init__(
        self, policy: TokenPolicy, keys: Mapping[str, KeySet] | KeySet, clock: Callable[[], float] = time.time
    ) -> None:
        """`keys`: those of each issuer and no other (RFC 8725 section 3.8), or one set if the check is given up."""
        self._policy = policy
        self._keys = keys
        self._clock = clock
        self._algorithms = check_algorithms(policy.algorithms)
        self._token_types = frozenset(name.lower() for name in policy.token_types)

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
            scope = self._policy.required_scope if refused.reason is Reason.SCOPE else None
            error = AuthError(refused.reason, scope=scope)
        except UnknownKeyError:
            error = AuthError(Reason.UNKNOWN_KEY)
        except KeysUnavailableError as unavailable:
            error = AuthError(Reason.KEYS_UNAVAILABLE, retry_after=unavailable.retry_after)
        # Outside the handlers: an error raised in one would carry the first as its context into a logged traceback.
        raise error

    def _key_set(self, token: Token) -> KeySet:
        issuers = self._keys
        if isinstance(issuers, KeySet):
            return issuers
        issuer = token.claims.get("iss")
        key_set = issuers.get(issuer) if isinstance(issuer, str) else None
        if key_set is None:
            raise RefusedError(Reason.ISSUER)
        return key_set

    def _principal(self, token: Token) -> Principal:
        settings, claims = self._policy, token.claims
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


@asynccontextmanager
async def open_verifier(policy: TokenPolicy, registry: CollectorRegistry) -> AsyncIterator[Verifier]:
    """A verifier whose key sets are kept fresh until the block is left. Raises ValueError naming a wrong setting."""
    async with AsyncExitStack() as stack:
        connector = aiohttp.TCPConnector(ssl=_tls_context(policy.ca_file))
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        on_fetch = count_fetches(registry)
        key_sets = [KeySet(session, url, algorithms=policy.algorithms, on_fetch=on_fetch) for url in policy.jwks_urls]
        keys: dict[str, KeySet] | KeySet = key_sets[0]
        if policy.issuers is not None:
            one_for_each = key_sets if len(key_sets) > 1 else key_sets * len(policy.issuers)
            keys = dict(zip(policy.issuers, one_for_each, strict=True))
        verifier = Verifier(policy, keys)
        for key_set in key_sets:
            await key_set.start()
            stack.push_async_callback(key_set.close)
        yield verifier


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ValueError(f"--ca-file {ca_file} holds no usable PEM certificate: {error}") from error
