"""Trust: whose tokens are accepted, and the verifier that comes of it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from prometheus_client import CollectorRegistry

from query_api.keys import KeySet
from query_api.metrics import jwks_fetches
from query_api.verifier import DEFAULT_TOKEN_TYPES, Verifier, VerifierSettings


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Settings of the token check, as the command line gives them.

    No `issuers`, or `audiences` of None, give that check up. One of `jwks_urls` serves all issuers, several serve one
    each, in order. `max_token_lifetime` is in seconds.
    """

    issuers: tuple[str, ...]
    audiences: frozenset[str] | None
    jwks_urls: tuple[str, ...]
    algorithms: tuple[str, ...] = ("RS256",)
    tenant_claim: str = "organization_id"
    token_types: tuple[str, ...] = DEFAULT_TOKEN_TYPES
    max_token_lifetime: float = 24 * 3600
    required_scope: str | None = None
    ca_file: Path | None = None  # authorities to trust for the key sets; None: the system's

    def __post_init__(self) -> None:
        """Raises ValueError for a number of key sets that cannot be matched with the issuers."""
        if not self.jwks_urls:
            raise ValueError("--jwks-url is missing; give the URL of the issuer's key set")
        if len(self.jwks_urls) > 1 and len(self.jwks_urls) != len(self.issuers):
            raise ValueError(
                f"--jwks-url is given {len(self.jwks_urls)} times for {len(self.issuers)} --issuer; "
                "give it once, or once for each"
            )


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ValueError(f"--ca-file {ca_file} holds no usable PEM certificate: {error}") from error


@asynccontextmanager
async def verifying(trust: Trust, registry: CollectorRegistry) -> AsyncIterator[Verifier]:
    """A verifier whose key sets are kept fresh until the block is left. Raises ValueError naming a wrong setting."""
    async with AsyncExitStack() as stack:
        connector = aiohttp.TCPConnector(ssl=_tls_context(trust.ca_file))
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        on_fetch = jwks_fetches(registry)
        key_sets = [KeySet(session, url, algorithms=trust.algorithms, on_fetch=on_fetch) for url in trust.jwks_urls]
        issuers: dict[str, KeySet] | KeySet = key_sets[0]
        if trust.issuers:
            one_for_each = key_sets if len(key_sets) > 1 else key_sets * len(trust.issuers)
            issuers = dict(zip(trust.issuers, one_for_each, strict=True))
        verifier = Verifier(
            VerifierSettings(
                issuers=issuers,
                audiences=trust.audiences,
                algorithms=trust.algorithms,
                tenant_claim=trust.tenant_claim,
                token_types=trust.token_types,
                max_token_lifetime=trust.max_token_lifetime,
                required_scope=trust.required_scope,
            )
        )
        for key_set in key_sets:
            await key_set.start()
            stack.push_async_callback(key_set.close)
        yield verifier
