"""The id that ties an answer to its log lines."""

from __future__ import annotations

import re
import secrets
from typing import Final

# fullmatch: `$` would let a trailing newline through, into the log and into a response header.
_SAFE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request_id(offered: str | None) -> str:
    """The caller's own id (its X-Request-Id header) if it is safe to repeat, else 32 random hex digits."""
    if offered is not None and _SAFE.fullmatch(offered):
        return offered
    return secrets.token_hex(16)
