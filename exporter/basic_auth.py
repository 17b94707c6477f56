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

from exporter.listening import origin_of

# More checks of one address waiting than this are turned away. Few: each holds one of the exporter's connections.
_MAX_WAITING: Final = 4

# bcrypt reads 72 bytes; tools that make the hashes cut longer passwords there, so the check has to.
_BCRYPT_BYTES: Final = 72

_BCRYPT_HASH: Final = re.compile(rb"\$2[aby]\$(?P<cost>0[4-9]|[12][0-9]|3[01])\$(?P<salt_and_digest>[./A-Za-z0-9]{53})")


class TooManyChecksError(Exception):
    """Too many unknown credentials of one address are being checked; the same may be sent again after a second."""


class BasicAuth:
    """Checks credentials; remembers, as a keyed hash, the accepted ones of each user.

    bcrypt runs in one thread of its own: a flood of wrong passwords keeps one core busy, and neither the other
    threads of the process nor those whose password was accepted before. Addresses take turns at it: others wait for
    one check of the flooding address, not for all of them.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._accepted: dict[str, bytes] = {}  # at most one entry for each user of the file
        self._busy = False
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}  # by origin; the first one has the next turn
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="exporter-bcrypt")

    async def allows(self, authorization: str, users: Mapping[str, bytes], address: str) -> bool:
        """Whether the value of an Authorization header names one of `users` (name -> bcrypt hash) and its password.

        A wrong name takes as long as a wrong password. `address` is the client's. Raises TooManyChecksError.
        """
        credentials = _parse(authorization)
        if credentials is None:
            return False
        user, password = credentials
        known = user in users
        hashed = users[user] if known else _decoy(users)
        verdict = self._verdict_key(user, password, hashed)
        if known and self._was_accepted(user, verdict):
            return True
        await self._my_turn(origin_of(address))
        try:
            if known and self._was_accepted(user, verdict):  # by one who asked for the same meanwhile
                return True
            matches = await self._run_bcrypt(password, hashed)
        finally:
            self._next_turn()
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

    def _was_accepted(self, user: str, verdict: bytes) -> bool:
        return hmac.compare_digest(self._accepted.get(user, b""), verdict)

    async def _my_turn(self, origin: str) -> None:
        """Returns when bcrypt is free for this caller, who must call `_next_turn` afterwards."""
        if not self._busy:
            self._busy = True
            return
        turns = self._waiting.setdefault(origin, [])
        if len(turns) >= _MAX_WAITING:
            raise TooManyChecksError
        turn = asyncio.get_running_loop().create_future()
        turns.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it had just been given the turn
                self._next_turn()
            raise

    def _next_turn(self) -> None:
        """Gives the turn to the next origin, which then goes to the end of the line."""
        while self._waiting:
            origin = next(iter(self._waiting))
            turns = [turn for turn in self._waiting.pop(origin) if not turn.done()]
            if turns[1:]:
                self._waiting[origin] = turns[1:]
            if turns:
                turns[0].set_result(None)
                return
        self._busy = False

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
