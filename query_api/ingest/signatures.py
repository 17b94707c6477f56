"""Signed webhooks: `X-AgentIdP-Signature: t=<Unix seconds>,v1=<hex HMAC-SHA256 of "<t>.<body>">`."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

SIGNATURE_HEADER: Final = "X-AgentIdP-Signature"
WINDOW_SECONDS: Final = 300
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


def check_signature(offered: Offered, expected: bytes, now: float) -> None:
    """Raises SignatureError unless `expected` is among the digests and was signed around `now` (Unix seconds).

    A request that comes again within the window is taken again: its events count once however often they come.
    """
    if abs(now - int(offered.moment)) > WINDOW_SECONDS:
        raise SignatureError("signature_stale")
    # A list, not a generator: every digest is compared, so that the time tells nothing.
    if not any([hmac.compare_digest(expected, digest) for digest in offered.digests]):  # noqa: C419
        raise SignatureError("signature_mismatch")
