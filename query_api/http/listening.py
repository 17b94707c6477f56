"""A listening socket with a bound on its connections, so that callers cannot use up the process's file descriptors."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakSet

_BACKLOG: Final = 1_024
# Accepted in one turn of the event loop: what is over the limit is closed only some turns later.
ACCEPTED_AT_ONCE: Final = 16
_HANDSHAKE_SECONDS: Final = 10.0
_SHUTDOWN_SECONDS: Final = 2.0


async def listen(
    factory: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    limit: int,
    make_room: Callable[[], bool],
    **tls: Any,
) -> list[asyncio.Server]:
    """Servers on all addresses of `host`, with at most `limit` connections each, TLS handshakes included.

    A connection beyond it is closed at once unless `make_room` could close another one. Raises OSError.
    """
    loop = asyncio.get_running_loop()
    binding = await loop.create_server(asyncio.Protocol, host, port, start_serving=False)
    opened: WeakSet[socket.socket] = WeakSet()
    bound = [_LimitedSocket(found.dup(), opened, limit, make_room) for found in binding.sockets]
    binding.close()
    if tls:
        tls |= {"ssl_handshake_timeout": _HANDSHAKE_SECONDS, "ssl_shutdown_timeout": _SHUTDOWN_SECONDS}
    return [await loop.create_server(factory, sock=sock, backlog=ACCEPTED_AT_ONCE, **tls) for sock in bound]


class _LimitedSocket(socket.socket):
    def __init__(
        self, bound: socket.socket, opened: WeakSet[socket.socket], limit: int, make_room: Callable[[], bool]
    ) -> None:
        super().__init__(fileno=bound.detach())
        self.setblocking(False)
        self._opened = opened
        self._limit = limit
        self._make_room = make_room

    def listen(self, backlog: int = _BACKLOG, /) -> None:
        # The event loop's backlog is also how many it accepts in a turn; clients may queue for longer than that.
        super().listen(max(backlog, _BACKLOG))

    def accept(self) -> tuple[socket.socket, Any]:
        accepted, address = super().accept()
        connection = _Connection(self._opened, accepted)
        if len(self._opened) > self._limit and not self._make_room():
            connection.close()
            raise BlockingIOError("no room for another connection")
        return connection, address


class _Connection(socket.socket):
    """Is in `opened` until it is closed."""

    def __init__(self, opened: WeakSet[socket.socket], accepted: socket.socket) -> None:
        super().__init__(fileno=accepted.detach())
        self._opened = opened
        opened.add(self)

    def close(self) -> None:
        self._opened.discard(self)
        super().close()
