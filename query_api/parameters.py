"""Query parameters, taken strictly: a mistyped one must not silently mean the default."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from query_api.errors import ApiError, invalid

DAYS_DEFAULT: Final = 30
DAYS_MAX: Final = 90

# [0-9], not \d or int(): both take other scripts' digits, and int() also signs, blanks and underscores.
_DAYS: Final = re.compile(r"[1-9][0-9]?")
# The names that are repeated in an answer; anything else could carry markup or control characters back.
_SAFE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def days_parameter(request: web.BaseRequest) -> int:
    """The number of days asked for, 1 to 90. Raises ApiError (400) for anything but one canonical decimal."""
    _only(request, "days")
    values = request.rel_url.query.getall("days", None)
    if values is None:
        return DAYS_DEFAULT
    if len(values) > 1:
        raise _bad_days("days was given more than once")
    if not _DAYS.fullmatch(values[0]) or int(values[0]) > DAYS_MAX:
        raise _bad_days(f"days must be a whole number from 1 to {DAYS_MAX}")
    return int(values[0])


def no_parameters(request: web.BaseRequest) -> None:
    """Raises ApiError (400) if there is any query parameter."""
    _only(request)


def _only(request: web.BaseRequest, *known: str) -> None:
    for name in request.rel_url.query:
        if name not in known:
            shown = name if _SAFE_NAME.fullmatch(name) else None
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise invalid(f"This path does not know a query parameter that was given; {takes}.", parameter=shown)


def _bad_days(message: str) -> ApiError:
    return invalid(message, parameter="days", minimum=1, maximum=DAYS_MAX)
