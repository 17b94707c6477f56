"""Development keys: a key pair, its key set, and tokens signed with it. For trying things out, never for production."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import jwt
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from clickhouse.tenant import TenantId
from query_api.auth.token_policy import TokenPolicy

KEY_ID: Final = "development"
_KEY_BITS: Final = 2048


class DevKey:
    """An RSA key pair for RS256 tokens."""

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> DevKey:
        """A new key pair."""
        return cls(rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS))

    @classmethod
    def load(cls, path: Path) -> DevKey:
        """Reads a PEM file. Raises ValueError naming the file if it holds no RSA private key, OSError if unreadable."""
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (ValueError, TypeError) as error:
            raise ValueError(f"--key {path} holds no unencrypted PEM private key") from error
        if not isinstance(key, rsa.RSAPrivateKey):
            raise ValueError(f"--key {path} is no RSA key; development tokens are signed with RS256")  # noqa: TRY004
        return cls(key)

    def save(self, path: Path) -> None:
        """Writes the private key as PEM, readable by its owner only."""
        pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(pem)

    def key_set(self) -> dict[str, Any]:
        """The public half as a JSON Web Key Set (RFC 7517 section 5)."""
        jwk = json.loads(RSAAlgorithm.to_jwk(self._key.public_key()))
        public = {name: jwk[name] for name in ("kty", "n", "e")}
        return {"keys": [public | {"use": "sig", "alg": "RS256", "kid": KEY_ID}]}

    def token(
        self,
        tenant: TenantId,
        *,
        issuer: str,
        audience: str,
        now: float,
        lifetime: int = 3600,
        scope: str = "analytics:read",
        tenant_claim: str = TokenPolicy.tenant_claim,
    ) -> str:
        """An RFC 9068 access token of `tenant`, valid for `lifetime` seconds from `now` (Unix seconds)."""
        claims = {
            "iss": issuer,
            "aud": audience,
            "sub": "development",
            "client_id": "development",
            "iat": int(now),
            "exp": int(now) + lifetime,
            "jti": secrets.token_urlsafe(16),
            "scope": scope,
            tenant_claim: str(tenant),
        }
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"typ": "at+jwt", "kid": KEY_ID})


@contextlib.asynccontextmanager
async def serve_key_set(key: DevKey) -> AsyncIterator[str]:
    """Serves the key set on loopback, as an issuer would; gives its URL."""
    app = web.Application()

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(key.key_set())

    app.router.add_get("/jwks", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
    finally:
        await runner.cleanup()
