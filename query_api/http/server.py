"""The sockets: starts and stops serving, and keeps aiohttp's own answers to the contract's shape."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, Protocol, cast

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from yarl import URL

from query_api.http.listening import first_to_go, listen, origin_of
from query_api.http.tls import ServerCertificate
from query_api.settings import ApiSettings

logger = logging.getLogger(__name__)

_MAX_LINE_BYTES: Final = 8 * 1024
_MAX_HEADERS: Final = 100
# For answers that are ready at the end of a drain to be sent; and for what is cut off then (0 would mean no limit).
_LAST_SECONDS: Final = 2.0
_CUT_OFF_SECONDS: Final = 0.05
_NOWHERE: Final = URL("*", encoded=True)


class Application(Protocol):
    """What is served: it has an answer to everything, and says when it is done. query_api.app.Api is one."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse: ...

    def unreadable(self, request: web.BaseRequest) -> web.StreamResponse: ...

    def broken(self, request: web.BaseRequest) -> web.StreamResponse: ...

    def connection_refused(self) -> None: ...

    async def drain(self, seconds: float) -> bool: ...

    def close(self) -> None: ...


class _Connection(web.RequestHandler):
    """One client connection. What the parser refuses goes to the API too, instead of being echoed as text/plain."""

    def __init__(self, server: _HttpServer, api: Application, settings: ApiSettings) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=settings.keepalive_seconds,
            lingering_time=settings.linger_seconds,
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
            max_headers=_MAX_HEADERS,
            logger=logger,
            access_log=None,  # type: ignore[arg-type]  # None means none, says its own code
            # Unpacking is ours: aiohttp's knows no limit for all of a body, and would take deflate and br as well.
            auto_decompress=False,
        )
        self._api = api
        self._settings = settings

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

    async def start(self) -> None:
        """Serves the connection; closes it if aiohttp itself fails, which would leave it open for ever."""
        try:
            await super().start()
        except Exception:
            logger.exception("a connection failed")
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what never became a request. `exc` and `message` repeat it, so they are not used."""
        return self._api.unreadable(request) if status < 500 else self._api.broken(request)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends the answer; gives up on a client that does not take it."""
        try:
            async with asyncio.timeout(self._settings.answer_seconds):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            self.give_up()
            return resp, True


class _HttpServer(web.Server):
    def __init__(self, api: Application, settings: ApiSettings) -> None:
        super().__init__(api, request_factory=_request)
        self._api = api
        self._settings = settings

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self._api, self._settings)

    def make_room(self, newcomer: str) -> bool:
        """Closes a connection for one of the origin `newcomer`, or says False. Either way one is lost: counted."""
        self._api.connection_refused()
        found = first_to_go(cast("list[_Connection]", self.connections), newcomer)
        if found is not None:
            found.give_up()
        return found is not None


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    if cast("URL | None", message.url) is None:
        # CONNECT without a target passes the parser, with no URL at all.
        message = message._replace(url=_NOWHERE)
    return web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())


class ApiServer:
    """Serves an Api on `settings.host` and `settings.port`."""

    def __init__(self, api: Application, settings: ApiSettings, certificate: ServerCertificate | None) -> None:
        """Without a `certificate` it serves plain HTTP."""
        self._api = api
        self._settings = settings
        self._certificate = certificate
        self._listeners: list[asyncio.Server] = []
        self._http: _HttpServer | None = None

    async def start(self) -> int:
        """Starts to accept connections and returns the port (the bound one for port 0). Raises OSError."""
        self._http = _HttpServer(self._api, self._settings)
        tls: dict[str, Any] = {"ssl": self._certificate.context} if self._certificate else {}
        settings = self._settings
        self._listeners = await listen(
            self._http, settings.host, settings.port, settings.limits.connections, self._http.make_room, **tls
        )
        port: int = self._listeners[0].sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Stops accepting, lets what is in flight finish (within `drain_seconds`), then closes every connection."""
        if self._http is None:
            return
        for listener in self._listeners:
            listener.close()
        # Before aiohttp's own shutdown: that stops reading at once, and a body half received would never be whole.
        drained = await self._api.drain(self._settings.drain_seconds)
        if not drained:
            logger.warning("some requests took longer than the drain time and are cut off")
        self._http.pre_shutdown()
        await self._http.shutdown(_LAST_SECONDS if drained else _CUT_OFF_SECONDS)
        self._api.close()
