"""The issuance event: what a provider sends, checked field by field."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, NamedTuple

from clickhouse.tenant import is_tenant_id

MAX_ID_LENGTH: Final = 256
# Metadata beyond this is cut, not refused: losing a count because of a long user agent would be the worse harm.
MAX_TEXT_LENGTH: Final = 2048
MAX_EXPIRES_IN: Final = 2**32 - 1
EARLIEST_MS: Final = 946_684_800_000  # 2000-01-01T00:00:00Z
FUTURE_TOLERANCE_MS: Final = 5 * 60 * 1000
# A number below this is seconds (1e11 s is the year 5138), from it on milliseconds (1e11 ms is 1973, too old).
_MILLISECONDS_FROM: Final = 100_000_000_000

_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
# [0-9], not \d: \d also matches other scripts' digits.
_RFC3339: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
CONTROL_CHARACTERS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")


class Event(NamedTuple):
    """One token issued or refused; (tenant_id, issued_at, event_id) is its identity.

    `issued_at` is in milliseconds since the epoch, `expires_in` in seconds (0: not given). The field order is the
    column order of the table `events`.
    """

    tenant_id: str
    issued_at: int
    event_id: str
    agent_id: str
    outcome: str = "success"
    grant_type: str = ""
    scope: str = ""
    client_ip: str = ""
    user_agent: str = ""
    source: str = ""
    expires_in: int = 0


class FieldError(NamedTuple):
    """Why a field was refused: RFC 6901 pointer, a code from a closed set, a sentence for people."""

    pointer: str
    code: str
    message: str


class EventRejectedError(ValueError):
    """An event that cannot be counted, with every reason at once."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(f"{error.pointer or '/'}: {error.message}" for error in errors))
        self.errors = errors


def parse_event(value: object, now_ms: int) -> Event:
    """Checks one decoded JSON value against the event format; unknown fields are ignored, null means absent.

    `now_ms` (milliseconds since the epoch) bounds the future. Raises EventRejectedError with all field errors.
    """
    if not isinstance(value, dict):
        raise EventRejectedError([FieldError("", "type", "an event is a JSON object")])
    errors: list[FieldError] = []
    event = Event(
        tenant_id=_required(value, "tenant_id", _tenant_id, errors, ""),
        issued_at=_required(value, "issued_at", lambda field: _issued_at(field, now_ms), errors, 0),
        event_id=_required(value, "event_id", _event_id, errors, ""),
        agent_id=_required(value, "agent_id", _agent_id, errors, ""),
        outcome=_optional(value, "outcome", _outcome, errors, "success"),
        grant_type=_optional(value, "grant_type", _text, errors, ""),
        scope=_optional(value, "scope", _text, errors, ""),
        client_ip=_optional(value, "client_ip", _text, errors, ""),
        user_agent=_optional(value, "user_agent", _text, errors, ""),
        source=_optional(value, "source", _text, errors, ""),
        expires_in=_optional(value, "expires_in", _expires_in, errors, 0),
    )
    if errors:
        raise EventRejectedError(errors)
    return event


class _Refused(Exception):  # noqa: N818 - control flow inside this module, never seen outside
    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message


def _required(
    value: dict[str, Any], name: str, check: Callable[[object], Any], errors: list[FieldError], default: Any
) -> Any:
    if value.get(name) is None:
        errors.append(FieldError(f"/{name}", "required", f"{name} is required"))
        return default
    return _optional(value, name, check, errors, default)


def _optional(
    value: dict[str, Any], name: str, check: Callable[[object], Any], errors: list[FieldError], default: Any
) -> Any:
    field = value.get(name)
    if field is None:
        return default
    try:
        return check(field)
    except _Refused as refused:
        errors.append(FieldError(f"/{name}", refused.code, f"{name} {refused.message}"))
        return default


def _tenant_id(field: object) -> str:
    if not isinstance(field, str):
        raise _Refused("type", "must be a string")
    if not is_tenant_id(field):
        raise _Refused("pattern", "must be 1 to 128 characters of A-Z a-z 0-9 . _ : - and start with a letter or digit")
    return field


def _event_id(field: object) -> str:
    if not isinstance(field, str):
        raise _Refused("type", "must be a string")
    if not 1 <= len(field) <= MAX_ID_LENGTH:
        raise _Refused("length", f"must be 1 to {MAX_ID_LENGTH} characters long")
    if not field.isascii() and _SURROGATE.search(field):
        raise _Refused("encoding", "must be Unicode text; it has a lone surrogate")
    return field


def _agent_id(field: object) -> str:
    text = _event_id(field)
    if CONTROL_CHARACTERS.search(text):
        raise _Refused("control_character", "must have no control characters")
    return text


def _outcome(field: object) -> str:
    if not isinstance(field, str):
        raise _Refused("type", "must be a string")
    if field not in ("success", "failure"):
        raise _Refused("enum", "must be success or failure")
    return field


def _text(field: object) -> str:
    if not isinstance(field, str):
        raise _Refused("type", "must be a string")
    if len(field) > MAX_TEXT_LENGTH:
        field = field[:MAX_TEXT_LENGTH]
    return field if field.isascii() else _SURROGATE.sub("\ufffd", field)


def _expires_in(field: object) -> int:
    if isinstance(field, bool) or not isinstance(field, (int, float)) or field != field // 1:
        raise _Refused("type", "must be a whole number of seconds")
    if not 0 <= field <= MAX_EXPIRES_IN:
        raise _Refused("range", f"must be between 0 and {MAX_EXPIRES_IN} seconds")
    return int(field)


def _issued_at(field: object, now_ms: int) -> int:
    if isinstance(field, str):
        milliseconds = parse_rfc3339(field)
    elif isinstance(field, (int, float)) and not isinstance(field, bool):
        milliseconds = _unix_milliseconds(field)
    else:
        raise _Refused("type", "must be an RFC 3339 date-time or Unix seconds or milliseconds as a number")
    if milliseconds is None:
        raise _Refused("format", "must be an RFC 3339 date-time with an offset, such as 2026-01-31T23:59:59.999Z")
    if milliseconds < EARLIEST_MS:
        raise _Refused("too_old", "must not be before 2000-01-01T00:00:00Z")
    if milliseconds > now_ms + FUTURE_TOLERANCE_MS:
        raise _Refused("future", "must not be more than 5 minutes in the future")
    return milliseconds


def _unix_milliseconds(number: float) -> int | None:
    if isinstance(number, int):
        return number * 1000 if number < _MILLISECONDS_FROM else number
    if number != number or number in (float("inf"), float("-inf")):
        return None
    # Through its shortest decimal spelling: 1700000000.123 * 1000 in binary is one millisecond short for some values.
    exact = Decimal(repr(number))
    return int(exact * 1000 if exact < _MILLISECONDS_FROM else exact)


def parse_rfc3339(text: str) -> int | None:
    """Milliseconds since the epoch of an RFC 3339 section 5.6 date-time, or None if it is none.

    Digits beyond the millisecond are cut, so that a moment never slides into the next day. A leap second
    (section 5.7, second 60) is the last millisecond of its minute.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        return None
    day, hour, minute, second, fraction, sign, offset_hour, offset_minute = match.groups()
    day_start = _day_start_ms(day)
    seconds = int(hour) * 3600 + int(minute) * 60 + int(second)
    if day_start is None or int(hour) > 23 or int(minute) > 59 or int(second) > 60:
        return None
    milliseconds = day_start + seconds * 1000 + (int(fraction[:3].ljust(3, "0")) if fraction else 0)
    if second == "60":
        milliseconds = day_start + seconds * 1000 - 1
    if sign:
        if int(offset_hour) > 23 or int(offset_minute) > 59:
            return None
        offset = (int(offset_hour) * 60 + int(offset_minute)) * 60_000
        milliseconds += -offset if sign == "+" else offset
    return milliseconds


@lru_cache(maxsize=4096)
def _day_start_ms(day: str) -> int | None:
    try:
        return (date.fromisoformat(day).toordinal() - _EPOCH_ORDINAL) * 86_400_000
    except ValueError:
        return None
