"""HTTP basic authentication (RFC 7617) against bcrypt hashes, at the price of one bcrypt run per user."""

from __future__ import annotations

import asyncio
import binascii
import hashlib
import hmac
import re
import secrets
from base64 import b64decode
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import bcrypt

# More checks waiting than this are turned away: at 60 ms each, the last would wait about a second.
_MAX_WAITING: Final = 16

# bcrypt reads 72 bytes; tools that make the hashes cut longer passwords there, so the check has to.
_BCRYPT_BYTES: Final = 72

_BCRYPT_HASH: Final = re.compile(rb"\$2[aby]\$(?P<cost>0[4-9]|[12][0-9]|3[01])\$(?P<salt_and_digest>[./A-Za-z0-9]{53})")


class TooManyChecksError(Exception):
    """Too many unknown credentials are being checked; the same ones may be sent again after a second."""


class BasicAuth:
    """Checks credentials; remembers, as a keyed hash, the accepted ones of each user.

    bcrypt runs in one thread of its own: a flood of wrong passwords keeps one core busy, and neither the other
    threads of the process nor those whose password was accepted before.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._accepted: dict[str, bytes] = {}  # at most one entry for each user of the file
        self._checks: dict[bytes, asyncio.Task[bool]] = {}
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="exporter-bcrypt")

    async def allows(self, authorization: str, users: Mapping[str, bytes]) -> bool:
        """Whether the value of an Authorization header names one of `users` (name -> bcrypt hash) and its password.

        A wrong name takes as long as a wrong password. Raises TooManyChecksError.
        """
        credentials = _parse(authorization)
        if credentials is None:
            return False
        user, password = credentials
        known = user in users
        hashed = users[user] if known else _decoy(users)
        verdict = self._verdict_key(user, password, hashed)
        if known and hmac.compare_digest(self._accepted.get(user, b""), verdict):
            return True
        matches = await self._matches(verdict, password, hashed)
        if matches and known:
            self._accepted[user] = verdict
        return matches and known

    def close(self) -> None:
        """Gives up the thread."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _verdict_key(self, user: str, password: bytes, hashed: bytes) -> bytes:
        # The hash is part of it: a password changed in the file is forgotten here too.
        parts = (hashlib.sha256(part).digest() for part in (user.encode(), password, hashed))
        return hmac.digest(self._key, b"".join(parts), "sha256")

    async def _matches(self, verdict: bytes, password: bytes, hashed: bytes) -> bool:
        """Runs bcrypt once for all who ask for the same credentials meanwhile."""
        check = self._checks.get(verdict)
        if check is None:
            if len(self._checks) >= _MAX_WAITING:
                raise TooManyChecksError
            check = self._checks[verdict] = asyncio.create_task(self._run_bcrypt(password, hashed))
            check.add_done_callback(lambda _: self._checks.pop(verdict))
        return await asyncio.shield(check)

    async def _run_bcrypt(self, password: bytes, hashed: bytes) -> bool:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, bcrypt.checkpw, password[:_BCRYPT_BYTES], hashed)


def bcrypt_cost(hashed: bytes) -> int | None:
    """The cost (log2 of the rounds) of a bcrypt hash in modular crypt format; None if `hashed` is none."""
    parts = _BCRYPT_HASH.fullmatch(hashed)
    if parts is None:
        return None
    try:
        bcrypt.checkpw(b"", b"$2b$04$" + parts["salt_and_digest"])  # not every 53 characters are a salt and a digest
    except ValueError:
        return None
    return int(parts["cost"])


def _decoy(users: Mapping[str, bytes]) -> bytes:
    """A well-formed hash that is as costly to check as the costliest of `users`."""
    cost = max(bcrypt_cost(hashed) or 0 for hashed in users.values())
    return b"$2b$%02d$" % cost + b"." * 53


def _parse(authorization: str) -> tuple[str, bytes] | None:
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = b64decode(token.strip(), validate=True).partition(b":")
        return (user.decode(), password) if colon else None
    except (binascii.Error, ValueError):
        return None
