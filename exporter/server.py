"""The HTTP face: /metrics, health, readiness, a landing page, the operators' questions.

No answer repeats anything of its request, but for a tenant and its agent that an operator asked about and that exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Final

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry

from exporter.basic_auth import BasicAuth, TooManyChecksError
from exporter.exposition import EMPTY
from exporter.inquiries import Inquiries, TooManyInquiriesError
from exporter.metrics import ExporterMetrics, render_registry, require_no_tenant_family
from exporter.negotiation import accepts_gzip, choose_format
from exporter.refresher import Refresher
from exporter.web_config import WebConfig
from exporter.web_settings import WebSettings

# Scrapes answered at once; a scraper asks one at a time, so more of them is not a scraper.
_MAX_SCRAPES: Final = 40

# A reader this slow has long passed Prometheus' own timeout; its place is needed.
_WRITE_SECONDS: Final = 60.0

_WRITE_BYTES: Final = 256 * 1024

_LANDING_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>AgentIdP analytics exporter</title></head>
<body>
<h1>AgentIdP analytics exporter</h1>
<ul>
<li><a href="/metrics">Metrics</a></li>
{inquiries}<li><a href="/-/healthy">Health</a></li>
<li><a href="/-/ready">Readiness</a></li>
</ul>
</body>
</html>
"""
_ALERTS_LINK: Final = '<li><a href="/alerts">Alerts of the last seven days</a></li>\n'

_Page = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(
    refresher: Refresher | None,
    registry: CollectorRegistry,
    web_config: WebConfig | None = None,
    inquiries: Inquiries | None = None,
) -> web.Application:
    """The application; it starts and stops `refresher` and `inquiries`. Run it with `exporter.runner.ExporterRunner`.

    Without a refresher it serves what is on `registry` and no tenants: for a process that leaves them to another.
    Without inquiries it has neither /alerts nor /agents/detail.

    For TLS, listen with `web_config.ssl_context()`. Raises ValueError if `registry` has a tenant family.
    """
    require_no_tenant_family(registry)
    pages = _Pages(refresher, registry, web_config, inquiries)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", pages.answer, expect_handler=_ignore_expectation)
    app.on_response_prepare.append(_leave_out_versions)
    app.cleanup_ctx.append(pages.lifetime)
    return app


class _Pages:
    def __init__(
        self,
        refresher: Refresher | None,
        registry: CollectorRegistry,
        web_config: WebConfig | None,
        inquiries: Inquiries | None,
    ) -> None:
        self._refresher = refresher
        # Without tenants there is no `up` to show: it would say that the other process is down.
        self._metrics = refresher.metrics if refresher else ExporterMetrics(CollectorRegistry(), "")
        self._registry = registry
        self._web_config = web_config
        self._basic_auth = BasicAuth()
        self._scrapes = 0
        self._inquiries = inquiries
        self._pages: dict[str, _Page] = {
            "/": self._landing,
            "/metrics": self._scrape,
            "/-/healthy": self._healthy,
            "/-/ready": self._ready,
        }
        if inquiries is not None:
            self._pages |= {
                "/alerts": self._unless_busy(inquiries.alerts),
                "/agents/detail": self._unless_busy(inquiries.agent_detail),
            }

    async def lifetime(self, _: web.Application) -> AsyncIterator[None]:
        if self._refresher:
            await self._refresher.start()
        yield
        self._basic_auth.close()
        if self._inquiries:
            await self._inquiries.stop()
        if self._refresher:
            await self._refresher.stop()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Every request comes here: credentials are asked for before anything else is told."""
        settings = self._web_config.settings() if self._web_config else WebSettings()
        if settings.users:
            refusal = await self._check_credentials(request, settings)
            if refusal is not None:
                return refusal
        page = self._pages.get(request.path)
        if page is None:
            return web.Response(status=404, text="Not Found\n")
        if request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
            return web.Response(status=405, text="Method Not Allowed\n", headers={hdrs.ALLOW: "GET, HEAD"})
        return await page(request)

    async def _check_credentials(self, request: web.Request, settings: WebSettings) -> web.Response | None:
        headers = request.headers.getall(hdrs.AUTHORIZATION, [])
        try:
            if len(headers) == 1 and await self._basic_auth.allows(headers[0], settings.users, request.remote or ""):
                return None
        except TooManyChecksError:
            return self._busy()
        self._metrics.scrapes_refused.labels("credentials").inc()
        challenge = 'Basic realm="metrics", charset="UTF-8"'
        return web.Response(status=401, text="Unauthorized\n", headers={hdrs.WWW_AUTHENTICATE: challenge})

    def _busy(self) -> web.Response:
        self._metrics.scrapes_refused.labels("busy").inc()
        return web.Response(status=503, text="Service Unavailable\n", headers={hdrs.RETRY_AFTER: "1"})

    def _unless_busy(self, page: _Page) -> _Page:
        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                return await page(request)
            except TooManyInquiriesError:
                return self._busy()

        return answer

    async def _landing(self, _: web.Request) -> web.StreamResponse:
        text = _LANDING_PAGE.format(inquiries=_ALERTS_LINK if self._inquiries else "")
        return web.Response(text=text, content_type="text/html")

    async def _healthy(self, _: web.Request) -> web.StreamResponse:
        return web.Response(text="Healthy\n")

    async def _ready(self, _: web.Request) -> web.StreamResponse:
        if self._refresher is None or self._refresher.ready:
            return web.Response(text="Ready\n")
        return web.Response(status=503, text="The store could not be read yet\n", headers={hdrs.RETRY_AFTER: "1"})

    async def _scrape(self, request: web.Request) -> web.StreamResponse:
        if self._scrapes >= _MAX_SCRAPES:
            return self._busy()
        self._scrapes += 1
        try:
            return await self._send_metrics(request)
        finally:
            self._scrapes -= 1

    async def _send_metrics(self, request: web.Request) -> web.StreamResponse:
        format_ = choose_format(_joined(request, hdrs.ACCEPT))
        gzip = accepts_gzip(_joined(request, hdrs.ACCEPT_ENCODING))
        self._metrics.scrapes.labels(format_.name.lower()).inc()
        snapshot = self._refresher.snapshot() if self._refresher else None
        body = EMPTY if snapshot is None else snapshot.bodies[format_]
        own = render_registry(self._registry, format_)
        parts = body.gzipped(own) if gzip else body.plain(own)
        response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: format_.value, hdrs.VARY: "Accept, Accept-Encoding"})
        if gzip:
            response.headers[hdrs.CONTENT_ENCODING] = "gzip"
        response.content_length = sum(map(len, parts))
        with suppress(ConnectionError):  # a client that left is its own affair
            await response.prepare(request)
            sent = request.method == hdrs.METH_GET and await _write(request, response, parts)
            if sent and snapshot is not None and self._refresher is not None:
                self._refresher.scraped(snapshot)
        return response


async def _write(request: web.Request, response: web.StreamResponse, parts: list[bytes]) -> bool:
    """Whether the client took everything in time; one that did not is disconnected."""
    try:
        async with asyncio.timeout(_WRITE_SECONDS):
            for part in parts:
                view = memoryview(part)
                for start in range(0, len(view), _WRITE_BYTES):
                    await response.write(view[start : start + _WRITE_BYTES])
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        return False
    return True


def _joined(request: web.Request, header: str) -> str:
    return ",".join(request.headers.getall(header, []))


async def _ignore_expectation(_: web.Request) -> None:
    """aiohttp would repeat an unknown Expect header in its answer; no request here has a body worth waiting for."""


async def _leave_out_versions(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.pop(hdrs.SERVER, None)  # names the versions of what this is made of
