"""What the bridge refuses, and the HTTP status ClickHouse gives each of its error codes."""

from __future__ import annotations

import re
from typing import Final

SYNTAX_ERROR: Final = 62
NOT_IMPLEMENTED: Final = 48
UNKNOWN_SETTING: Final = 115
TIMEOUT: Final = 159
READONLY: Final = 164
TOO_MANY_PARTS: Final = 252
CANNOT_DECOMPRESS: Final = 271
TOO_FEW_LIVE_REPLICAS: Final = 285
UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE: Final = 286
REPLICA_IS_NOT_IN_QUORUM: Final = 289
UNKNOWN_STATUS_OF_INSERT: Final = 319
SESSION_NOT_FOUND: Final = 372
SESSION_IS_LOCKED: Final = 373
AUTHENTICATION_FAILED: Final = 516
_UNNUMBERED: Final = 1001  # STD_EXCEPTION

_NAMES: Final = {
    SYNTAX_ERROR: "SYNTAX_ERROR",
    NOT_IMPLEMENTED: "NOT_IMPLEMENTED",
    UNKNOWN_SETTING: "UNKNOWN_SETTING",
    TIMEOUT: "TIMEOUT_EXCEEDED",
    READONLY: "READONLY",
    TOO_FEW_LIVE_REPLICAS: "TOO_FEW_LIVE_REPLICAS",
    UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE: "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE",
    REPLICA_IS_NOT_IN_QUORUM: "REPLICA_IS_NOT_IN_QUORUM",
    TOO_MANY_PARTS: "TOO_MANY_PARTS",
    CANNOT_DECOMPRESS: "CANNOT_DECOMPRESS",
    UNKNOWN_STATUS_OF_INSERT: "UNKNOWN_STATUS_OF_INSERT",
    SESSION_NOT_FOUND: "SESSION_NOT_FOUND",
    SESSION_IS_LOCKED: "SESSION_IS_LOCKED",
    AUTHENTICATION_FAILED: "AUTHENTICATION_FAILED",
    _UNNUMBERED: "STD_EXCEPTION",
}

# As ClickHouse maps them (bad values and texts, credentials, unknown names, ...); every other code is a 500.
_STATUS_CODES: Final = {
    400: (6, 8, 15, 25, 26, 27, 36, 37, 38, 41, 44, 53, 62, 72, 117, 123, 167, 168, 223, 321, 376, 427, 441, 675, 676),
    401: (194,),
    403: (192, 193, 497, 512, 516),
    404: (46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 511),
    408: (159,),
    411: (381,),
    413: (229,),
    415: (779,),
    501: (48,),
    503: (76, 209, 439),
}
_STATUS: Final = {code: status for status, codes in _STATUS_CODES.items() for code in codes}
_CODE: Final = re.compile(r"Code: (\d+)\.")


class EngineError(Exception):
    """A refusal as ClickHouse words it: `code` is its error code, the text starts with `Code: N. DB::Exception: `."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code

    @property
    def status(self) -> int:
        """The HTTP status ClickHouse answers with."""
        return _STATUS.get(self.code, 500)


def refusal(code: int, message: str) -> EngineError:
    """An error of the bridge's own, worded as ClickHouse words its errors."""
    return EngineError(code, f"Code: {code}. DB::Exception: {message} ({_NAMES[code]})")


def from_engine(error: Exception) -> EngineError:
    """The engine's own error; the binding puts words of its own in front of it."""
    text = str(error)
    match = _CODE.search(text)
    return EngineError(int(match[1]), text[match.start() :]) if match else refusal(_UNNUMBERED, text)
