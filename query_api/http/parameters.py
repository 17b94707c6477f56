"""Query parameters, taken strictly: a mistyped one must not silently mean the default."""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import date, datetime
from typing import Final, NamedTuple

from aiohttp import web

from clickhouse.event import CONTROL_CHARACTERS, MAX_ID_LENGTH
from query_api.http.errors import invalid

DAYS_DEFAULT: Final = 30
DAYS_MAX: Final = 90
AGENTS_MAX: Final = 10_000

# [0-9], not \d or int(): both take other scripts' digits, and int() also signs, blanks and underscores.
_WHOLE_NUMBER: Final = re.compile(r"[1-9][0-9]{0,4}")
# The names that are repeated in an answer; anything else could carry markup or control characters back.
_SAFE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def days_parameter(request: web.BaseRequest) -> int:
    """The number of days asked for, 1 to 90. Raises ApiError (400) for anything but one canonical decimal."""
    _only(request, "days")
    return _whole_number(request, "days", default=DAYS_DEFAULT, maximum=DAYS_MAX)


ALERT_DAYS_DEFAULT: Final = 7


def alert_days_parameter(request: web.BaseRequest) -> int:
    """The number of days of alerts asked for, 1 to 90. Raises ApiError (400) as `days_parameter` does."""
    _only(request, "days")
    return _whole_number(request, "days", default=ALERT_DAYS_DEFAULT, maximum=DAYS_MAX)


def agent_parameters(request: web.BaseRequest) -> tuple[str, int]:
    """`agent` (required: an agent id of an event) and `days`. Raises ApiError (400) for anything else."""
    _only(request, "agent", "days")
    values = request.rel_url.query.getall("agent", [])
    if len(values) != 1:
        must = "was given more than once" if values else "is required: the agent that is asked about"
        raise invalid(f"agent {must}", parameter="agent")
    agent = values[0]
    if not 1 <= len(agent) <= MAX_ID_LENGTH or CONTROL_CHARACTERS.search(agent):
        raise invalid(
            f"agent must be 1 to {MAX_ID_LENGTH} characters, none of them a control character", parameter="agent"
        )
    return agent, _whole_number(request, "days", default=DAYS_DEFAULT, maximum=DAYS_MAX)


class Page(NamedTuple):
    """Which part of a list is asked for: at most `limit` rows, after the place `after` (None: from the start)."""

    limit: int
    after: Place | None


class Place(NamedTuple):
    """A place in the agents' list of a month: the last agent of the page before, and its tokens then."""

    month: date
    agent: str
    tokens: int

    def encoded(self) -> str:
        """The opaque value of `after`."""
        text = json.dumps([f"{self.month:%Y-%m}", self.tokens, self.agent], separators=(",", ":"))
        return urlsafe_b64encode(text.encode("ascii")).decode("ascii").rstrip("=")

    @classmethod
    def decoded(cls, text: str) -> Place:
        """Raises ValueError for anything that `encoded` does not write."""
        month, tokens, agent = json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        place = cls(datetime.strptime(month, "%Y-%m").date(), agent, tokens)
        is_place = isinstance(agent, str) and type(tokens) is int and 0 < tokens < 2**64
        if is_place:
            agent.encode()  # a lone surrogate is a ValueError here, and would be one of the engine's later
        if not is_place or place.encoded() != text:
            raise ValueError(text)
        return place


def page_parameters(request: web.BaseRequest) -> Page:
    """`limit` (1 to `AGENTS_MAX`, the default) and `after`. Raises ApiError (400) for anything else."""
    _only(request, "limit", "after")
    limit = _whole_number(request, "limit", default=AGENTS_MAX, maximum=AGENTS_MAX)
    after = request.rel_url.query.getall("after", [])
    if len(after) > 1:
        raise invalid("after was given more than once", parameter="after")
    try:
        place = Place.decoded(after[0]) if after else None
    except (ValueError, TypeError, RecursionError):
        raise invalid("after must be taken from the Link header of the page before", parameter="after") from None
    return Page(limit, place)


def no_parameters(request: web.BaseRequest) -> None:
    """Raises ApiError (400) if there is any query parameter."""
    _only(request)


def _only(request: web.BaseRequest, *known: str) -> None:
    for name in request.rel_url.query:
        if name not in known:
            shown = name if _SAFE_NAME.fullmatch(name) else None
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise invalid(f"This path does not know a query parameter that was given; {takes}.", parameter=shown)


def _whole_number(request: web.BaseRequest, name: str, *, default: int, maximum: int) -> int:
    values = request.rel_url.query.getall(name, None)
    if values is None:
        return default
    if len(values) == 1 and _WHOLE_NUMBER.fullmatch(values[0]) and int(values[0]) <= maximum:
        return int(values[0])
    must = "was given more than once" if len(values) > 1 else f"must be a whole number from 1 to {maximum}"
    raise invalid(f"{name} {must}", parameter=name, minimum=1, maximum=maximum)
