"""Runs the exporter's application so that malformed requests are neither repeated to the client nor logged."""

from __future__ import annotations

import asyncio
import logging
import ssl
from http import HTTPStatus
from typing import Any, Final, cast

from aiohttp import web

from exporter.listening import first_to_go, listen, origin_of

_logger = logging.getLogger(__name__)

# Scrapes at once, and some that are waiting. They come out of the file descriptors that the store writes with.
MAX_CONNECTIONS: Final = 64

# For a request to come, its headers included, and for the next one: longer than the usual scrape interval.
_KEEPALIVE_SECONDS: Final = 75.0
_LINGER_SECONDS: Final = 5.0

# For the answer to be taken.
_ANSWER_SECONDS: Final = 60.0


class ExporterRunner(web.AppRunner):
    """An AppRunner that bounds what clients can hold, and says of a request that is no HTTP nothing but that.

    aiohttp puts the offending bytes into its answer and its log; those of a header line can be a password.
    """

    def __init__(self, app: web.Application, *, max_connections: int = MAX_CONNECTIONS, **options: Any) -> None:
        options = {"keepalive_timeout": _KEEPALIVE_SECONDS, "lingering_time": _LINGER_SECONDS} | options
        super().__init__(app, access_log=None, **options)
        self._max_connections = max_connections

    async def listen(self, host: str, port: int, context: ssl.SSLContext | None = None) -> int:
        """Accepts connections, with TLS if there is a `context`; returns the port. After setup(). Raises OSError."""
        server = cast("_QuietServer", self.server)
        tls: dict[str, Any] = {"ssl": context} if context else {}
        for listener in await listen(server, host, port, self._max_connections, server.make_room, **tls):
            await _Listening(self, listener).start()
        found: int = self.addresses[0][1]
        return found

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _QuietServer(
            server.request_handler,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            loop=server._loop,
            **server._kwargs,
        )


class _Listening(web.BaseSite):
    """Lets the runner close a listener with the rest."""

    def __init__(self, runner: ExporterRunner, listener: asyncio.Server) -> None:
        super().__init__(runner)
        self._server = listener

    @property
    def name(self) -> str:
        return "exporter"

    async def start(self) -> None:
        await super().start()


class _QuietServer(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _QuietHandler(self, loop=self._loop, **self._kwargs)

    def make_room(self, newcomer: str) -> bool:
        """Closes a connection for one of the origin `newcomer`; False if none gives way."""
        found = first_to_go(cast("list[_QuietHandler]", self.connections), newcomer)
        if found is not None:
            found.give_up()
        return found is not None


class _QuietHandler(web.RequestHandler):
    __slots__ = ("origin",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.origin = origin_of(str((self.peername or ("",))[0]))

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request or the rest of its headers."""
        waits = self._waiter is not None and not self._waiter.done()
        return waits and self.transport is not None and not self.transport.is_closing()

    @property
    def idle_until(self) -> float:
        """When it is closed for being idle."""
        return self._next_keepalive_close_time

    def give_up(self) -> None:
        """Closes at once. Not close(): that would wait for ever to send what this client does not take."""
        if self.transport is not None:
            self.transport.abort()
        self.force_close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends the answer; gives up on a client that does not take it."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            self.give_up()
            return resp, True

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
