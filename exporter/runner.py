"""Runs the exporter's application so that malformed requests are neither repeated to the client nor logged."""

from __future__ import annotations

import logging
from http import HTTPStatus

from aiohttp import web

_logger = logging.getLogger(__name__)


class ExporterRunner(web.AppRunner):
    """An AppRunner whose answer to a request that is no HTTP says so and nothing else.

    aiohttp puts the offending bytes into its answer and its log; those of a header line can be a password.
    """

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _QuietServer(
            server.request_handler,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            loop=server._loop,
            **server._kwargs,
        )


class _QuietServer(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _QuietHandler(self, loop=self._loop, **self._kwargs)


class _QuietHandler(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return super().handle_error(request, status, exc, message)
        _logger.debug("answered %d to a malformed request: %s", status, type(exc).__name__)
        response = web.Response(status=status, text=f"{HTTPStatus(status).phrase}\n")
        response.force_close()
        return response
