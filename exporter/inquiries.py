"""The operators' questions across tenants: who did that. Asked of the store, and never in a scrape's way."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from aiohttp import hdrs, web

from clickhouse.agent_detail import AgentDetail
from clickhouse.alert import Alert
from clickhouse.alert_json import alerts_body, detail_body
from clickhouse.errors import StoreError, StoreUnavailableError
from clickhouse.tenant import TenantId
from exporter.parameters import ParameterError, Parameters
from exporter.settings import ExporterSettings

_logger = logging.getLogger(__name__)

ALERT_DAYS_DEFAULT: Final = 7
DETAIL_DAYS_DEFAULT: Final = 30

# Questions under way at once. Few: scrapes need the processors too, and a person asks one at a time.
_MAX_AT_ONCE: Final = 2

# A question under way when the process ends gets this long to come back: closing the store under it is worse.
_STOP_SECONDS: Final = 10.0

# What is told of tenants is for the one who asked: not for a cache, and not for a browser to take for a page.
_HEADERS: Final = {hdrs.CACHE_CONTROL: "no-store", "X-Content-Type-Options": "nosniff"}


class AlertSource(Protocol):
    """What the detector has found. Blocks, and raises StoreError."""

    def of_tenant(self, tenant: TenantId, since: int, now: int) -> list[Alert]:
        """The tenant's alerts that lasted at `since` or began later (Unix seconds), newest first."""

    def of_all(self, since: int, now: int) -> list[Alert]:
        """The same of every tenant."""


class DetailSource(Protocol):
    """One agent, closely. Blocks, and raises StoreError."""

    def of(self, tenant: TenantId, agent: str, now: datetime, days: int) -> AgentDetail | None:
        """The `days` UTC days that end with today; None for an agent that the tenant never had."""


class TooManyInquiriesError(Exception):
    """As many questions as may be are under way; the same may be asked again after a second."""


class Inquiries:
    """The handlers of /alerts and /agents/detail. `clock` gives Unix seconds; `seconds`: the asker's patience."""

    def __init__(
        self,
        alerts: AlertSource,
        details: DetailSource,
        *,
        clock: Callable[[], float] = time.time,
        seconds: float = ExporterSettings.inquiry_seconds,
    ) -> None:
        self._alerts = alerts
        self._details = details
        self._clock = clock
        self._seconds = seconds
        self._under_way: set[asyncio.Future[Any]] = set()
        self._threads = ThreadPoolExecutor(_MAX_AT_ONCE, thread_name_prefix="exporter-inquiry")

    async def alerts(self, request: web.Request) -> web.Response:
        """GET /alerts: of all tenants, or of one. Raises TooManyInquiriesError."""
        try:
            parameters = Parameters(request, "days", "tenant")
            days, tenant = parameters.days(ALERT_DAYS_DEFAULT), parameters.tenant()
        except ParameterError as error:
            return _text(400, str(error))
        now = int(self._clock())
        since = now - days * 86_400

        def ask() -> bytes:
            found = self._alerts.of_all(since, now) if tenant is None else self._alerts.of_tenant(tenant, since, now)
            return _encoded(alerts_body(days, found))

        return await self._answer(ask, "")

    async def agent_detail(self, request: web.Request) -> web.Response:
        """GET /agents/detail: one agent of a tenant. Raises TooManyInquiriesError."""
        try:
            parameters = Parameters(request, "tenant", "agent", "days")
            (tenant, agent), days = parameters.agent_of_tenant(), parameters.days(DETAIL_DAYS_DEFAULT)
        except ParameterError as error:
            return _text(400, str(error))
        now = datetime.fromtimestamp(self._clock(), UTC)

        def ask() -> bytes | None:
            detail = self._details.of(tenant, agent, now, days)
            return None if detail is None else _encoded(detail_body(tenant, agent, days, detail))

        return await self._answer(ask, "The tenant never had this agent")

    async def stop(self) -> None:
        """Waits up to 10 s for questions under way, so that the store can be closed."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=_STOP_SECONDS)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, ask: Callable[[], bytes | None], nothing: str) -> web.Response:
        """Asks in a thread, where rendering holds nobody up either; `nothing` is said for None."""
        if len(self._under_way) >= _MAX_AT_ONCE:
            raise TooManyInquiriesError
        asked = asyncio.get_running_loop().run_in_executor(self._threads, ask)
        self._under_way.add(asked)
        # The place is free when the thread is, and not when the asker has lost patience.
        asked.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(self._seconds):
                body = await asyncio.shield(asked)
        except TimeoutError:
            return _text(503, "The store did not answer in time", retry_after=5)
        except StoreUnavailableError as error:
            _logger.warning("the store is unavailable: %s", error)
            return _text(503, "The store cannot answer now", retry_after=error.retry_after)
        except StoreError as error:
            _logger.error("the store failed: %s", error)  # noqa: TRY400 - the text is this project's own
            return _text(500, "Internal Server Error")
        if body is None:
            return _text(404, nothing)
        return web.Response(body=body, content_type="application/json", headers=_HEADERS)

    def _ended(self, asked: asyncio.Future[Any]) -> None:
        self._under_way.discard(asked)
        if not asked.cancelled():
            asked.exception()  # looked at, or asyncio would log one that came too late with its message


def _encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode("ascii")


def _text(status: int, message: str, retry_after: int | None = None) -> web.Response:
    headers = _HEADERS if retry_after is None else {**_HEADERS, hdrs.RETRY_AFTER: str(retry_after)}
    return web.Response(status=status, text=f"{message}\n", headers=headers)
