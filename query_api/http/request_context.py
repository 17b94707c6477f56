"""One request on its way through the API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web


@dataclass(slots=True)
class RequestContext:
    """A request with its id and the notes that its log line will carry.

    `notes` are for verified or closed-set values only (a tenant id from a valid token, a reason code, a number):
    whatever a caller can write freely stays out of the log.
    """

    request: web.BaseRequest
    request_id: str
    notes: dict[str, str | int] = field(default_factory=dict)


Handler = Callable[[RequestContext], Awaitable[web.Response]]
