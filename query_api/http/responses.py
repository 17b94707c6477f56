"""How an answer is put on the wire: JSON, never cached, never sniffed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

REQUEST_ID_HEADER = "X-Request-Id"


def json_bytes(value: object) -> bytes:
    """`value` as compact JSON; ASCII only, so that no text can fail to encode."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def json_answer(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON response. A count may change with the very next event, so nothing may be kept by a cache."""
    return body_answer(json_bytes(value), status=status, headers=headers)


def body_answer(body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """The same for JSON that is bytes already."""
    all_headers: dict[str, Any] = {
        "Content-Type": "application/json",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        # Set here because aiohttp would otherwise tell its and Python's exact version.
        "Server": "agentidp-analytics",
    }
    if headers:
        all_headers.update(headers)
    return web.Response(body=body, status=status, headers=all_headers)
