"""The three questions over HTTP. The tenant comes from the verified token and from nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

from aiohttp import web

from clickhouse.alert_json import alert_body, detail_body
from clickhouse.tenant import TenantId
from query_api.auth.verifier import Principal
from query_api.fair_queue import FairQueue, QueueFullError
from query_api.http.errors import invalid, not_found, rate_limited, unavailable
from query_api.http.parameters import (
    Place,
    agent_parameters,
    alert_days_parameter,
    days_parameter,
    page_parameters,
)
from query_api.http.request_context import RequestContext
from query_api.http.responses import body_answer, json_answer, json_bytes
from query_api.metrics import ApiMetrics
from query_api.ports import AlertSource, DetailSource, Questions
from query_api.rate_limit import TokenBuckets, rate_limit_headers
from query_api.settings import ApiSettings

_Answer = TypeVar("_Answer")


class TokenVerifier(Protocol):
    """What tells who asks; query_api.auth.verifier.Verifier is one."""

    async def verify(self, authorization: Sequence[str]) -> Principal:
        """Takes every value of the Authorization header. Raises query_api.auth.verifier.AuthError."""
        ...


class Analytics:
    """The handlers. `clock` gives Unix seconds and decides what today is; `threads` run the queries."""

    def __init__(
        self,
        settings: ApiSettings,
        *,
        verifier: TokenVerifier,
        questions: Questions,
        alerts: AlertSource,
        details: DetailSource,
        metrics: ApiMetrics,
        clock: Callable[[], float],
        timer: Callable[[], float],
        threads: Executor,
    ) -> None:
        limits = settings.limits
        self._verifier = verifier
        self._questions = questions
        self._alerts = alerts
        self._details = details
        self._metrics = metrics
        self._clock = clock
        self._threads = threads
        self._rate = limits.tenant_requests
        self._buckets = TokenBuckets(self._rate, timer) if self._rate else None
        self._queue = FairQueue(settings.query_threads, limits.tenant_queries, limits.tenant_queries_waiting)
        self._query_seconds = settings.query_seconds

    async def tokens(self, context: RequestContext) -> web.Response:
        """GET /api/v1/analytics/tokens."""
        tenant, headers = await self._tenant_of(context)
        days = days_parameter(context.request)
        today = self._now().date()
        trend = await self._run_query(tenant, headers, lambda: self._questions.trend(tenant, today, days))
        data = [{"date": day.isoformat(), "count": count} for day, count in trend]
        return json_answer({"tenantId": tenant, "days": days, "data": data}, headers=headers)

    async def activity(self, context: RequestContext) -> web.Response:
        """GET /api/v1/analytics/agents/activity."""
        tenant, headers = await self._tenant_of(context)
        days = days_parameter(context.request)
        today = self._now().date()
        cells = await self._run_query(tenant, headers, lambda: self._questions.activity(tenant, today, days))
        data = [{"dow": dow, "hour": hour, "count": count} for dow, hour, count in cells]
        return json_answer({"tenantId": tenant, "data": data}, headers=headers)

    async def agents(self, context: RequestContext) -> web.Response:
        """GET /api/v1/analytics/agents."""
        tenant, headers = await self._tenant_of(context)
        page = page_parameters(context.request)
        month = self._now().date().replace(day=1)
        after = page.after
        if after is not None:
            if not (month - timedelta(days=1)).replace(day=1) <= after.month <= month:
                raise invalid("after belongs to a month that is over; begin again without it", parameter="after")
            month = after.month  # pages of one list are of one month, also when a new one has begun meanwhile

        def answer() -> tuple[bytes, str | None]:
            # One more than asked for tells whether there is a next page. Rendered here, where it holds nobody up.
            rows = self._questions.agents(tenant, month, page.limit + 1, after and (after.agent, after.tokens))
            shown = rows[: page.limit]
            data = [{"agentId": agent, "tokenCount": count} for agent, count in shown]
            following = Place(month, *shown[-1]).encoded() if len(rows) > page.limit else None
            return json_bytes({"tenantId": tenant, "month": f"{month:%Y-%m}", "data": data}), following

        body, following = await self._run_query(tenant, headers, answer)
        if following is not None:
            # Relative (RFC 8288 section 3.1), so that it holds behind any host name and path prefix.
            headers |= {"Link": f'<?limit={page.limit}&after={following}>; rel="next"'}
        return body_answer(body, headers=headers)

    async def alerts(self, context: RequestContext) -> web.Response:
        """GET /api/v1/analytics/alerts."""
        tenant, headers = await self._tenant_of(context)
        days = alert_days_parameter(context.request)
        now = int(self._clock())
        found = await self._run_query(tenant, headers, lambda: self._alerts.of_tenant(tenant, now - days * 86_400, now))
        data = [alert_body(alert) for alert in found]
        return json_answer({"tenantId": tenant, "days": days, "data": data}, headers=headers)

    async def agent_detail(self, context: RequestContext) -> web.Response:
        """GET /api/v1/analytics/agents/detail."""
        tenant, headers = await self._tenant_of(context)
        agent, days = agent_parameters(context.request)
        now = self._now()
        detail = await self._run_query(tenant, headers, lambda: self._details.of(tenant, agent, now, days))
        if detail is None:
            raise not_found("The tenant never had this agent.")
        return json_answer(detail_body(tenant, agent, days, detail), headers=headers)

    async def _tenant_of(self, context: RequestContext) -> tuple[TenantId, dict[str, str]]:
        """The tenant that asks, and the headers that tell it what it may still ask.

        Before any look at the parameters: a stranger must learn nothing from which error comes first.
        """
        principal = await self._verifier.verify(context.request.headers.getall("Authorization", []))
        tenant = principal.tenant
        context.notes["tenant"] = tenant
        if self._rate is None or self._buckets is None:
            return tenant, {}
        verdict = self._buckets.take(tenant)
        headers = rate_limit_headers("tenant", self._rate, verdict)
        if not verdict.allowed:
            self._metrics.rate_limited.labels("tenant").inc()
            raise rate_limited("This tenant asks more often than it may.", verdict.more_in, headers)
        return tenant, headers

    async def _run_query(self, tenant: TenantId, headers: dict[str, str], question: Callable[[], _Answer]) -> _Answer:
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
