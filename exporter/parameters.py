"""Query parameters of the operators' questions, taken strictly: a mistyped one must not silently mean the default."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from clickhouse.event import CONTROL_CHARACTERS, MAX_ID_LENGTH
from clickhouse.tenant import TenantId

DAYS_MAX: Final = 90

# [0-9], not \d or int(): both take other scripts' digits, and int() also signs, blanks and underscores.
_WHOLE_NUMBER: Final = re.compile(r"[1-9][0-9]?")


class ParameterError(ValueError):
    """A parameter that cannot be meant. The text is for the asker, and repeats nothing of the request."""


class Parameters:
    """The query parameters of `request`, of which only those named in `known` may be there, each once."""

    def __init__(self, request: web.Request, *known: str) -> None:
        """Raises ParameterError for an unknown parameter, or one that is given twice."""
        query = request.query
        if any(name not in known for name in query):
            raise ParameterError(f"a query parameter is unknown here; known: {', '.join(known)}")
        for name in known:
            if len(query.getall(name, [])) > 1:
                raise ParameterError(f"{name} was given more than once")
        self._values = {name: query[name] for name in known if name in query}

    def days(self, default: int) -> int:
        """`days`, a canonical decimal from 1 to 90. Raises ParameterError."""
        text = self._values.get("days")
        if text is None:
            return default
        if not _WHOLE_NUMBER.fullmatch(text) or int(text) > DAYS_MAX:
            raise ParameterError(f"days must be a whole number from 1 to {DAYS_MAX}")
        return int(text)

    def tenant(self) -> TenantId | None:
        """`tenant`, None if it is not there. Raises ParameterError."""
        text = self._values.get("tenant")
        try:
            return None if text is None else TenantId(text)
        except ValueError as error:
            raise ParameterError(f"tenant: {error}") from None

    def agent_of_tenant(self) -> tuple[TenantId, str]:
        """`tenant` and `agent`, both required. Raises ParameterError."""
        tenant, agent = self.tenant(), self._values.get("agent")
        if tenant is None or agent is None:
            raise ParameterError("tenant and agent are required: whose agent is asked about")
        if not 1 <= len(agent) <= MAX_ID_LENGTH or CONTROL_CHARACTERS.search(agent):
            raise ParameterError(f"agent must be 1 to {MAX_ID_LENGTH} characters, none of them a control character")
        return tenant, agent
