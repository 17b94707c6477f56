"""Signed webhooks: `X-AgentIdP-Signature: t=<Unix seconds>,v1=<hex HMAC-SHA256 of "<t>.<body>">`."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

SIGNATURE_HEADER: Final = "X-AgentIdP-Signature"
WINDOW_SECONDS: Final = 300
# At 300 seconds each this is room for 300 requests a second; beyond, the oldest are forgotten first. A replay that
# slips through then changes no count, because an event counts once.
MAX_REMEMBERED: Final = 100_000
# Several v1 let a sender change its secret without a gap.
_FORM: Final = re.compile(r"t=([0-9]{1,12})((?:,v1=[0-9a-fA-F]{64}){1,4})")
_DIGEST: Final = re.compile(r"=([0-9a-fA-F]{64})")


class SignatureError(Exception):
    """A request whose signature does not hold; `reason` is from a closed set."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Offered(NamedTuple):
    """What a signature header says: the moment as it was written (it is part of what was signed) and the digests."""

    moment: str
    digests: tuple[bytes, ...]


def read_signature(headers: Sequence[str]) -> Offered:
    """Takes every value of the signature header. Raises SignatureError unless there is one, well formed."""
    if not headers:
        raise SignatureError("signature_missing")
    match = _FORM.fullmatch(headers[0]) if len(headers) == 1 else None
    if match is None:
        raise SignatureError("signature_malformed")
    return Offered(match[1], tuple(bytes.fromhex(digest) for digest in _DIGEST.findall(match[2])))


def sign(key: bytes, moment: str, body: bytes) -> bytes:
    """The HMAC-SHA256 of the moment, a dot and the body as it was sent."""
    digest = hmac.new(key, moment.encode("ascii") + b".", hashlib.sha256)
    digest.update(body)
    return digest.digest()


class UsedSignatures:
    """Remembers the signatures that were used, while they could be used again. `clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._used: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._used)

    def claim(self, offered: Offered, expected: bytes) -> None:
        """Uses `expected` up if it is among the offered digests. Raises SignatureError."""
        now = self._clock()
        signed_at = int(offered.moment)
        if abs(now - signed_at) > WINDOW_SECONDS:
            raise SignatureError("signature_stale")
        # A list, not a generator: every digest is compared, so that the time tells nothing.
        if not any([hmac.compare_digest(expected, digest) for digest in offered.digests]):  # noqa: C419
            raise SignatureError("signature_mismatch")
        self._forget(now)
        if expected in self._used:
            raise SignatureError("signature_replayed")
        self._used[expected] = signed_at + WINDOW_SECONDS

    def release(self, expected: bytes) -> None:
        """Gives a signature back whose request failed: its exact repetition after a 503 must get through, or its
        events are lost.
        """
        self._used.pop(expected, None)

    def _forget(self, now: float) -> None:
        while self._used:
            digest, until = next(iter(self._used.items()))
            if until >= now and len(self._used) < MAX_REMEMBERED:
                return
            del self._used[digest]
