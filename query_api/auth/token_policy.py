"""The token policy: what a token must be to be accepted, and the one place of its defaults."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from query_api.auth.jwks import check_algorithms

# RFC 6749 section 3.3: a scope may hold neither quotes nor spaces, so it can stand in a header as it is.
_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")


@dataclass(frozen=True, kw_only=True)
class TokenPolicy:
    """Whose tokens are accepted, and which.

    `issuers` or `audiences` of None give that check up. One of `jwks_urls` serves all issuers, several serve one each,
    in order (RFC 8725 section 3.8). `max_token_lifetime` (`exp` - `iat`) and `leeway` (for `iat` and `nbf`) are in
    seconds. `ca_file`: authorities to trust for the key sets, None: the system's.
    """

    issuers: tuple[str, ...] | None
    audiences: frozenset[str] | None
    jwks_urls: tuple[str, ...]
    algorithms: tuple[str, ...] = ("RS256",)
    tenant_claim: str = "organization_id"
    token_types: tuple[str, ...] = ("at+jwt", "application/at+jwt", "JWT")
    max_token_lifetime: float = 24 * 3600
    required_scope: str | None = None
    leeway: float = 0
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a value with which everything, or nothing, would be accepted."""
        check_algorithms(self.algorithms)
        if self.issuers is not None and (not self.issuers or not all(self.issuers)):
            raise ValueError("--issuer is empty; give the issuer's exact iss, or --no-issuer-check")
        if self.audiences is not None and (not self.audiences or not all(self.audiences)):
            raise ValueError("--audience is empty; give this service's aud, or --no-audience-check")
        if not self.jwks_urls:
            raise ValueError("--jwks-url is missing; give the URL of the issuer's key set")
        if len(self.jwks_urls) > 1 and len(self.jwks_urls) != len(self.issuers or ()):
            raise ValueError(
                f"--jwks-url is given {len(self.jwks_urls)} times for {len(self.issuers or ())} --issuer; "
                "give it once, or once for each"
            )
        if not self.token_types or not all(self.token_types):
            raise ValueError("--token-types has an empty value; give one or more, such as at+jwt")
        if not self.tenant_claim:
            raise ValueError("--tenant-claim is empty; give the name of a claim, such as organization_id")
        if self.max_token_lifetime <= 0:
            raise ValueError(f"--max-token-lifetime {self.max_token_lifetime} is not above 0; give one such as 24h")
        if self.leeway < 0:
            raise ValueError(f"leeway {self.leeway} is below 0; give 0 or some seconds")
        if self.required_scope is not None and _SCOPE.fullmatch(self.required_scope) is None:
            raise ValueError(f"--required-scope {self.required_scope!r} is not one scope; leave out blanks and quotes")
