"""The routes, and the one door that every request goes in and every answer goes out by."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry

from clickhouse.errors import StoreError, StoreUnavailableError
from query_api.analytics import Analytics, TokenVerifier
from query_api.auth.verifier import AuthError
from query_api.health import Health
from query_api.http.errors import ApiError, internal, method_not_allowed, not_found, unavailable, unreadable
from query_api.http.request_context import Handler, RequestContext
from query_api.http.request_ids import request_id
from query_api.http.responses import REQUEST_ID_HEADER
from query_api.ingest.body import BodyAbandonedError
from query_api.ingest.handler import Ingest
from query_api.ingest.sources import SourceTokens
from query_api.metrics import ApiMetrics, known_method
from query_api.openapi import OpenApi
from query_api.ports import AlertSource, DetailSource, EventWriter, Questions, Readiness
from query_api.settings import ApiSettings

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("query_api.access")

UNMATCHED: Final = "unmatched"
# Asked every few seconds by whoever watches the process: answered under overload too, and kept out of the log.
_PROBES: Final = frozenset({"/healthz", "/readyz"})
_MAX_HEADER_BYTES: Final = 32 * 1024

Routes = Mapping[str, Mapping[str, Handler]]


class Api:
    """Answers every request in the contract's shape, whatever happens behind it."""

    def __init__(
        self,
        routes: Routes,
        health: Health,
        metrics: ApiMetrics,
        max_in_flight: int,
        pools: list[ThreadPoolExecutor],
    ) -> None:
        self.routes = routes
        self.metrics = metrics
        self._health = health
        self._max_in_flight = max_in_flight
        self._pools = pools
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.serves(routes)
        metrics.in_flight.set_function(lambda: self._in_flight)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to a request that the HTTP parser could read."""
        context = RequestContext(request, request_id(request.headers.get(REQUEST_ID_HEADER)))
        route = request.rel_url.raw_path if request.rel_url.raw_path in self.routes else UNMATCHED
        started = time.perf_counter()
        self._in_flight += 1
        self._idle.clear()
        try:
            response = await self._answered(context, route)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()
        if self._health.stopping or not request.content.is_eof():
            # The rest of an unread body would be taken for the next request.
            response.force_close()
        self._finish(context, response, route, time.perf_counter() - started)
        return response

    def unreadable(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to what the HTTP parser could not read; nothing of it is repeated or logged."""
        return self._outside(request, unreadable())

    def broken(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer when this very class failed."""
        logger.exception("a request failed outside its handler")
        return self._outside(request, internal())

    def _outside(self, request: web.BaseRequest, error: ApiError) -> web.StreamResponse:
        response = error.answer()
        response.force_close()
        self._finish(RequestContext(request, request_id(None)), response, UNMATCHED, 0.0)
        return response

    def connection_refused(self) -> None:
        """Counts a connection that was closed because too many were open."""
        self.metrics.connections_refused.inc()

    async def drain(self, seconds: float) -> bool:
        """From now on closes connections after their answer; waits until nothing is in flight.

        Returns whether that came about within `seconds`.
        """
        self._health.stopping = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Lets the threads end; what they still do is not waited for."""
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)

    async def _answered(self, context: RequestContext, route: str) -> web.Response:
        try:
            return await self._handler(context, route)(context)
        except ApiError as error:
            if error.code in ("UNAUTHORIZED", "FORBIDDEN"):
                self.metrics.refused(error.reason)
            return _refused(context, error)
        except AuthError as error:
            self.metrics.refused(error.reason)
            return _refused(
                context, ApiError(error.code, error.message, headers=error.headers, reason=error.reason.value)
            )
        except StoreUnavailableError as error:
            logger.warning("the store is unavailable: %s", error, extra={"fields": {"request_id": context.request_id}})
            return _refused(
                context, unavailable("The store cannot answer now.", error.retry_after, "store_unavailable")
            )
        except StoreError as error:
            logger.error("the store failed: %s", error, extra={"fields": {"request_id": context.request_id}})  # noqa: TRY400
            return _refused(context, internal())
        except BodyAbandonedError:
            context.notes["reason"] = "body_abandoned"
            # No answer: a sender that takes a 4xx for final would drop events that never arrived. The status is for
            # log and metrics only (499, as nginx has it).
            context.request.protocol.force_close()
            return web.Response(status=499)
        except Exception:
            logger.exception("a request failed", extra={"fields": {"route": route, "request_id": context.request_id}})
            return _refused(context, internal())

    def _handler(self, context: RequestContext, route: str) -> Handler:
        if self._in_flight > self._max_in_flight and route not in _PROBES:
            raise unavailable("Too many requests are being answered; try again shortly.", 1, "overload")
        if sum(len(name) + len(value) for name, value in context.request.raw_headers) > _MAX_HEADER_BYTES:
            raise unreadable()
        if route == UNMATCHED:
            raise not_found()
        methods = self.routes[route]
        handler = methods.get(context.request.method)
        if handler is None:
            raise method_not_allowed(methods)
        return handler

    def _finish(self, context: RequestContext, response: web.StreamResponse, route: str, seconds: float) -> None:
        response.headers[REQUEST_ID_HEADER] = context.request_id
        method = known_method(context.request.method)
        self.metrics.answered(route, method, response.status, seconds)
        level = logging.DEBUG if route in _PROBES else logging.INFO
        if access_logger.isEnabledFor(level):
            values = {
                "method": method,
                "route": route,
                "status": response.status,
                "duration_ms": round(seconds * 1000, 2),
                "request_id": context.request_id,
                **context.notes,
            }
            access_logger.log(level, "request", extra={"fields": values})


def build_app(
    settings: ApiSettings,
    *,
    sources: SourceTokens | None,
    verifier: TokenVerifier,
    questions: Questions,
    alerts: AlertSource,
    details: DetailSource,
    event_writer: EventWriter,
    readiness: Readiness,
    registry: CollectorRegistry,
    clock: Callable[[], float] = time.time,
    timer: Callable[[], float] = time.monotonic,
) -> Api:
    """Wires the API together; must be called on the event loop that will serve it.

    Without `sources` nobody may send events. `clock` gives Unix seconds, `timer` monotonic seconds (rate limits).
    """
    metrics = ApiMetrics(registry)
    query_threads = ThreadPoolExecutor(settings.query_threads, thread_name_prefix="query")
    # One: decoding needs the interpreter, which is the event loop's as well, and two would only make that wait longer.
    decoders = ThreadPoolExecutor(1, thread_name_prefix="decode")
    # Of its own: behind large bodies or slow queries the check would look like a store that does not answer.
    probe = ThreadPoolExecutor(1, thread_name_prefix="probe")
    health = Health(readiness, probe, timer)
    analytics = Analytics(
        settings,
        verifier=verifier,
        questions=questions,
        alerts=alerts,
        details=details,
        metrics=metrics,
        clock=clock,
        timer=timer,
        threads=query_threads,
    )
    ingest = Ingest(
        settings,
        sources=sources,
        event_writer=event_writer,
        metrics=metrics,
        clock=clock,
        timer=timer,
        threads=decoders,
    )
    routes: Routes = {
        "/api/v1/analytics/tokens": _get(analytics.tokens),
        "/api/v1/analytics/agents/activity": _get(analytics.activity),
        "/api/v1/analytics/agents": _get(analytics.agents),
        "/api/v1/analytics/agents/detail": _get(analytics.agent_detail),
        "/api/v1/analytics/alerts": _get(analytics.alerts),
        "/api/v1/events": {"POST": ingest},
        "/healthz": _get(health.healthz),
        "/readyz": _get(health.readyz),
        "/openapi.json": _get(OpenApi()),
    }
    return Api(routes, health, metrics, settings.limits.requests_in_flight, [query_threads, decoders, probe])


def _refused(context: RequestContext, error: ApiError) -> web.Response:
    if error.reason is not None:
        context.notes["reason"] = error.reason
    return error.answer()


def _get(handler: Handler) -> dict[str, Handler]:
    # RFC 9110 section 9.3.2: HEAD is GET without its body, which aiohttp leaves out.
    return {"GET": handler, "HEAD": handler}
