"""The three questions over HTTP. The tenant comes from the verified token and from nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from aiohttp import web

from clickhouse.tenant import TenantId
from query_api.answers import json_answer
from query_api.call import Call
from query_api.errors import rate_limited, unavailable
from query_api.fair_queue import FairQueue, QueueFullError
from query_api.limits import TokenBuckets, rate_limit_headers
from query_api.metrics import ApiMetrics
from query_api.parameters import days_parameter, no_parameters
from query_api.ports import Questions
from query_api.settings import ApiSettings
from query_api.verifier import Principal

_Answer = TypeVar("_Answer")


class TokenVerifier(Protocol):
    """What tells who asks; query_api.verifier.Verifier is one."""

    async def verify(self, authorization: Sequence[str]) -> Principal:
        """Takes every value of the Authorization header. Raises query_api.verifier.AuthError."""
        ...


class Analytics:
    """The handlers. `clock` gives Unix seconds and decides what today is; `threads` run the queries."""

    def __init__(
        self,
        settings: ApiSettings,
        *,
        verifier: TokenVerifier,
        questions: Questions,
        metrics: ApiMetrics,
        clock: Callable[[], float],
        timer: Callable[[], float],
        threads: Executor,
    ) -> None:
        limits = settings.limits
        self._verifier = verifier
        self._questions = questions
        self._metrics = metrics
        self._clock = clock
        self._threads = threads
        self._rate = limits.tenant_requests
        self._buckets = TokenBuckets(self._rate, timer) if self._rate else None
        self._queue = FairQueue(settings.query_threads, limits.tenant_queries, limits.tenant_queries_waiting)
        self._query_seconds = settings.query_seconds

    async def tokens(self, call: Call) -> web.Response:
        """GET /api/v1/analytics/tokens."""
        tenant, headers = await self._admitted(call)
        days = days_parameter(call.request)
        today = self._now().date()
        trend = await self._asked(tenant, headers, lambda: self._questions.trend(tenant, today, days))
        data = [{"date": day.isoformat(), "count": count} for day, count in trend]
        return json_answer({"tenantId": tenant, "days": days, "data": data}, headers=headers)

    async def activity(self, call: Call) -> web.Response:
        """GET /api/v1/analytics/agents/activity."""
        tenant, headers = await self._admitted(call)
        days = days_parameter(call.request)
        today = self._now().date()
        cells = await self._asked(tenant, headers, lambda: self._questions.activity(tenant, today, days))
        data = [{"dow": dow, "hour": hour, "count": count} for dow, hour, count in cells]
        return json_answer({"tenantId": tenant, "data": data}, headers=headers)

    async def agents(self, call: Call) -> web.Response:
        """GET /api/v1/analytics/agents."""
        tenant, headers = await self._admitted(call)
        no_parameters(call.request)
        month = self._now().date().replace(day=1)
        totals = await self._asked(tenant, headers, lambda: self._questions.agents(tenant, month))
        data = [{"agentId": agent, "tokenCount": count} for agent, count in totals]
        return json_answer({"tenantId": tenant, "month": f"{month:%Y-%m}", "data": data}, headers=headers)

    async def _admitted(self, call: Call) -> tuple[TenantId, dict[str, str]]:
        """The tenant that asks, and the headers that tell it what it may still ask.

        Before any look at the parameters: a stranger must learn nothing from which error comes first.
        """
        principal = await self._verifier.verify(call.request.headers.getall("Authorization", []))
        tenant = principal.tenant
        call.notes["tenant"] = tenant
        if self._rate is None or self._buckets is None:
            return tenant, {}
        verdict = self._buckets.take(tenant)
        headers = rate_limit_headers("tenant", self._rate, verdict)
        if not verdict.allowed:
            self._metrics.rate_limited.labels("tenant").inc()
            raise rate_limited("This tenant asks more often than it may.", verdict.more_in, headers)
        return tenant, headers

    async def _asked(self, tenant: TenantId, headers: dict[str, str], question: Callable[[], _Answer]) -> _Answer:
        try:
            async with asyncio.timeout(self._query_seconds):
                await self._queue.enter(tenant)
                answer = asyncio.get_running_loop().run_in_executor(self._threads, question)
                # The turn ends with the query and not with the patience: the thread is busy until then.
                answer.add_done_callback(lambda done: self._ended(tenant, done))
                return await asyncio.shield(answer)
        except QueueFullError:
            self._metrics.rate_limited.labels("tenant").inc()
            raise rate_limited("Too many questions of this tenant are waiting already.", 1, headers) from None
        except TimeoutError:
            raise unavailable("The store did not answer in time.", 5, "query_time") from None

    def _ended(self, tenant: TenantId, done: asyncio.Future[Any]) -> None:
        self._queue.leave(tenant)
        if not done.cancelled():
            done.exception()  # looked at, or asyncio would log one that came too late with its message

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)
