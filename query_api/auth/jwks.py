"""An issuer's published keys (RFC 7517 JWK Set), fetched without ever making a valid request wait for a stranger's."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import aiohttp
import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as MetricCounter
from yarl import URL

from query_api.auth.bearer_token import parse_json_object

logger = logging.getLogger(__name__)

_RSA_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
ALGORITHMS: Final = _RSA_ALGORITHMS | {"ES256", "ES384", "ES512", "EdDSA"}
_SYMMETRIC: Final = frozenset({"none", "hs256", "hs384", "hs512"})

# Below 2048 bits a key can be factored (NIST SP 800-131A); above 8192 one verification holds the event loop too long.
_RSA_BITS: Final = range(2048, 8192 + 1)
_MAX_KEYS: Final = 100
_PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_PUBLIC_MEMBERS: Final = frozenset({"kty", "n", "e", "crv", "x", "y"})
_CHUNK_BYTES: Final = 16 * 1024
_LOOPBACK: Final = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey


@dataclass(frozen=True)
class VerificationKey:
    """A public key and the algorithms it may be used with; `kid` is None if the key set gives it no name."""

    kid: str | None
    key: PublicKey
    algorithms: frozenset[str]


class FetchResult(StrEnum):
    """How a fetch ended: the closed set of values handed to `on_fetch`."""

    OK = "ok"
    UNREACHABLE = "unreachable"
    STATUS = "status"
    INVALID = "invalid"
    TOO_LARGE = "too_large"


def count_fetches(registry: CollectorRegistry) -> Callable[[str], None]:
    """Registers the counter of key set fetches; what it returns is called with a `FetchResult`."""
    counter = MetricCounter(
        "agentidp_analytics_jwks_fetches_total", "Fetches of a key set, by result.", ("result",), registry=registry
    )
    for result in FetchResult:
        counter.labels(result.value)
    return lambda result: counter.labels(result).inc()


class UnknownKeyError(Exception):
    """The issuer publishes no such key for this algorithm; the token cannot be verified (401)."""


class KeysUnavailableError(Exception):
    """No keys are held and none can be fetched (503); worth another try after `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("no verification keys")
        self.retry_after = retry_after


class _FetchError(Exception):
    def __init__(self, result: FetchResult, detail: str) -> None:
        super().__init__(detail)
        self.result = result


def check_algorithms(algorithms: Iterable[str]) -> frozenset[str]:
    """The values of --jwt-algorithms, each an asymmetric signature algorithm of RFC 7518 section 3.1 or RFC 8037.

    A symmetric one would make every published key a signing key. Raises ValueError with a sentence for people.
    """
    chosen = frozenset(algorithms)
    allowed = ", ".join(sorted(ALGORITHMS))
    if not chosen:
        raise ValueError(f"--jwt-algorithms is empty; give one or more of {allowed}")
    for name in sorted(chosen - ALGORITHMS):
        why = "would let anyone sign" if name.lower() in _SYMMETRIC else "is not known"
        raise ValueError(f"--jwt-algorithms: {name!r} {why}; give one or more of {allowed}")
    return chosen


def check_jwks_url(url: str) -> URL:
    """The value of --jwks-url: https, or http to 127.0.0.0/8, ::1 or localhost, without credentials or fragment.

    Whoever can change the answer can sign tokens. Raises ValueError with a sentence for people.
    """
    if any(character.isspace() or not character.isprintable() for character in url):
        raise ValueError("--jwks-url has a blank or a control character in it; give a plain URL")
    try:
        parts = URL(url)
        host, port = parts.host, parts.port
    except ValueError:
        raise ValueError("--jwks-url is not a URL; give one such as https://idp.example/jwks") from None
    if parts.user is not None or parts.password is not None:
        raise ValueError("--jwks-url has credentials in it; a key set is public, leave them out")
    if "#" in url:
        raise ValueError(f"--jwks-url {url!r} has a fragment, which is never sent; leave it out")
    if parts.scheme not in ("https", "http") or not host or not port:
        raise ValueError(f"--jwks-url {url!r} is not an https URL with a host, such as https://idp.example/jwks")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ValueError(
            f"--jwks-url {url!r} is plain http, so anyone on the way could replace the keys; use https"
            " (http only for 127.0.0.1, ::1 or localhost)"
        )
    return parts


def parse_key_set(body: bytes, algorithms: frozenset[str]) -> tuple[list[VerificationKey], list[str]]:
    """The keys of a JWK Set that may verify tokens signed with one of `algorithms`, and why others were left out.

    A bad key never spoils its neighbours (RFC 7517 section 5), unless it shares their `kid`: nothing says which of two
    keys of one name a token means, and one of them may be a private key published by mistake. Raises ValueError for a
    document that is no key set.
    """
    published = parse_json_object(body).get("keys")
    if not isinstance(published, list):
        raise ValueError("it has no array `keys`")  # noqa: TRY004 - one error for everything wrong with a document
    if len(published) > _MAX_KEYS:
        raise ValueError(f"it has more than {_MAX_KEYS} keys")
    names = Counter(jwk["kid"] for jwk in published if isinstance(jwk, dict) and isinstance(jwk.get("kid"), str))
    keys, refused = [], []
    for index, jwk in enumerate(published):
        try:
            key = _verification_key(jwk, algorithms)
            if key.kid is not None and names[key.kid] > 1:
                raise ValueError("its kid is given twice")
            keys.append(key)
        except ValueError as error:
            refused.append(f"key {index}: {error}")
    return keys, refused


class KeySet:
    """One issuer's keys, refreshed in the background and on demand.

    A held key is answered at once, whatever fetch is under way. Held keys are served for `ttl` seconds, and beyond it
    while refreshing fails, up to `stale_limit` seconds after the last good answer. An unknown `kid` causes a fetch, but
    fetches, failed ones too, start at least `min_gap` seconds apart and one at a time, so that strangers cannot make
    this service attack the issuer. Nothing in a token chooses the URL, and redirects are not followed.

    `clock` gives seconds; only differences are used. `on_fetch` is called with a `FetchResult` after each fetch.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        *,
        algorithms: Iterable[str],
        clock: Callable[[], float] = time.monotonic,
        ttl: float = 300,
        min_gap: float = 10,
        stale_limit: float = 24 * 3600,
        max_bytes: int = 256 * 1024,
        timeout: float = 5,
        on_fetch: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Raises ValueError as `check_jwks_url` and `check_algorithms` do."""
        self._session = session
        self._url = check_jwks_url(url)
        self._shown_url = self._url.with_query(None)  # some issuers take an access key in the query
        self._algorithms = check_algorithms(algorithms)
        self._clock = clock
        self._ttl = ttl
        self._min_gap = min_gap
        self._stale_limit = stale_limit
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._on_fetch = on_fetch
        self._keys: list[VerificationKey] = []
        self._by_kid: dict[str, VerificationKey] = {}
        self._refused: list[str] = []
        self._loaded_at = -math.inf
        self._attempted_at = -math.inf
        self._fetch: asyncio.Task[None] | None = None
        self._refresher: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Begins to fetch and does not wait for it: an issuer that is down must not keep this service from starting."""
        self._refresher = asyncio.create_task(self._keep_fresh())

    async def close(self) -> None:
        """Ends the background work; held keys stay usable, nothing is fetched any more."""
        self._closed = True
        tasks = [task for task in (self._refresher, self._fetch) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def key(self, kid: str | None, alg: str) -> VerificationKey:
        """The key named `kid`, if it may be used with `alg`; without a name, the only key of the set.

        Waits at most `timeout` seconds, and only if no keys are held or this `kid` is unknown. Raises UnknownKeyError
        or KeysUnavailableError.
        """
        if not self._is_within(self._stale_limit):
            await self._fetched()
            if not self._is_within(self._stale_limit):
                raise KeysUnavailableError(self._retry_after())
        elif not self._is_within(self._ttl):
            self._begin_fetch()
        if kid is not None and kid not in self._by_kid:
            await self._fetched()
        found = self._find(kid)
        if found is None or alg not in found.algorithms:
            raise UnknownKeyError
        return found

    def _find(self, kid: str | None) -> VerificationKey | None:
        if kid is not None:
            return self._by_kid.get(kid)
        return self._keys[0] if len(self._keys) == 1 else None

    def _is_within(self, seconds: float) -> bool:
        # 0 <=: a clock set back must look like age, not like eternal youth.
        return 0 <= self._clock() - self._loaded_at < seconds

    def _retry_after(self) -> int:
        remaining = self._attempted_at + self._min_gap - self._clock()
        return math.ceil(max(1.0, min(remaining, self._min_gap)))

    async def _keep_fresh(self) -> None:
        # Without this, the first request after a quiet night would be judged by last night's keys.
        while True:
            await self._fetched()
            await asyncio.sleep(self._ttl if self._is_within(self._ttl) else self._min_gap)

    async def _fetched(self) -> None:
        """Waits for the fetch under way or a new one; returns at once within the gap after the last."""
        fetch = self._begin_fetch()
        if fetch is not None:
            # wait(), because a caller that is cancelled must not cancel the fetch of all the others.
            await asyncio.wait({fetch}, timeout=self._timeout)

    def _begin_fetch(self) -> asyncio.Task[None] | None:
        if self._fetch is not None and not self._fetch.done():
            return self._fetch
        now = self._clock()
        if self._closed or 0 <= now - self._attempted_at < self._min_gap:
            return None
        self._attempted_at = now
        self._fetch = asyncio.create_task(self._refresh(now))
        return self._fetch

    async def _refresh(self, started_at: float) -> None:
        try:
            body = await self._download()
            try:
                keys, refused = parse_key_set(body, self._algorithms)
            except ValueError as error:
                raise _FetchError(FetchResult.INVALID, f"the answer is no key set: {error}") from None
        except _FetchError as error:
            held = "serving the keys held" if self._is_within(self._stale_limit) else "no keys are held"
            logger.warning("--jwks-url %s: %s; %s", self._shown_url, error, held)
            self._on_fetch(error.result)
            return
        if refused != self._refused:
            logger.warning("--jwks-url %s: keys left out: %s", self._shown_url, "; ".join(refused) or "none any more")
        self._keys, self._refused = keys, refused
        self._by_kid = {key.kid: key for key in keys if key.kid is not None}
        # The start, not the end: a key withdrawn while the answer was on its way is not counted as seen later.
        self._loaded_at = started_at
        self._on_fetch(FetchResult.OK)

    async def _download(self) -> bytes:
        try:
            async with self._session.get(
                self._url,
                allow_redirects=False,
                raise_for_status=False,
                auto_decompress=True,
                headers={"Accept": "application/jwk-set+json, application/json"},
                timeout=aiohttp.ClientTimeout(total=self._timeout),
            ) as response:
                if response.status != 200:
                    raise _FetchError(FetchResult.STATUS, f"status {response.status} where 200 is needed")
                return await self._read(response)
        except _FetchError:
            raise
        except Exception as error:
            # Anything at all: an error that escaped here would be raised to nobody, and would be a 500 to callers.
            raise _FetchError(FetchResult.UNREACHABLE, f"cannot be read ({type(error).__name__})") from None

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > self._max_bytes:
                response.close()
                raise _FetchError(FetchResult.TOO_LARGE, f"the answer is longer than {self._max_bytes} bytes")
        return bytes(body)


def _verification_key(jwk: object, algorithms: frozenset[str]) -> VerificationKey:
    if not isinstance(jwk, dict):
        raise ValueError("not an object")  # noqa: TRY004 - caught beside the others
    kid = jwk.get("kid")
    if "kid" in jwk and not (isinstance(kid, str) and kid):
        raise ValueError("its kid is no string")
    if not _PRIVATE_MEMBERS.isdisjoint(jwk):
        raise ValueError("it is a private or shared key, so anyone can sign with it")
    if jwk.get("use", "sig") != "sig":
        raise ValueError("its use is not sig")
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise ValueError("its key_ops lack verify")
    usable = _bound_algorithms(jwk) & algorithms
    if not usable:
        raise ValueError("it is for none of the accepted algorithms")
    return VerificationKey(kid, _public_key(jwk, min(usable)), usable)


def _bound_algorithms(jwk: dict[str, Any]) -> frozenset[str]:
    """RFC 7518 sections 3.3 to 3.5 and RFC 8037 section 3.1, narrowed by the key's own `alg` (RFC 8725 section 3.1)."""
    match jwk.get("kty"), jwk.get("crv"):
        case "RSA", _:
            fitting = _RSA_ALGORITHMS
        case "EC", "P-256":
            fitting = frozenset({"ES256"})
        case "EC", "P-384":
            fitting = frozenset({"ES384"})
        case "EC", "P-521":
            fitting = frozenset({"ES512"})
        case "OKP", "Ed25519":
            fitting = frozenset({"EdDSA"})
        case _:
            return frozenset()
    if "alg" not in jwk:
        return fitting
    return frozenset(name for name in fitting if name == jwk["alg"])


def _public_key(jwk: dict[str, Any], alg: str) -> PublicKey:
    try:
        key = jwt.PyJWK({name: jwk[name] for name in _PUBLIC_MEMBERS & jwk.keys()}, alg).key
    except Exception:
        # PyJWT and cryptography raise more classes than either documents, and their texts repeat the key.
        raise ValueError("it cannot be read") from None
    if not isinstance(key, PublicKey):
        raise ValueError("it is no public key")  # noqa: TRY004 - caught beside the others
    if isinstance(key, RSAPublicKey) and key.key_size not in _RSA_BITS:
        raise ValueError(f"its {key.key_size} bits are not between {_RSA_BITS.start} and {_RSA_BITS.stop - 1}")
    return key


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in _LOOPBACK)
