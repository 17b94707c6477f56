"""A listening socket with a bound on its connections, so that callers cannot use up the process's file descriptors."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakSet

_BACKLOG: Final = 1_024
# Accepted in one turn of the event loop: what is over the limit is closed only some turns later.
ACCEPTED_AT_ONCE: Final = 16
_HANDSHAKE_SECONDS: Final = 10.0
_SHUTDOWN_SECONDS: Final = 2.0
# What one subscriber usually has of IPv6: all of it is one origin.
_IPV6_NETWORK_BITS: Final = 64


class Peer(Protocol):
    """A connection."""

    origin: str

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request or the rest of its headers."""

    @property
    def idle_until(self) -> float:
        """When it is closed for that; a later time has been idle for less."""


_Peer = TypeVar("_Peer", bound=Peer)


def origin_of(address: str) -> str:
    """What counts as one client: an IPv4 address, a network of IPv6; "" for an unknown address."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return ""
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or IPv6Network((int(parsed), _IPV6_NETWORK_BITS), strict=False))


def first_to_go(connections: Sequence[_Peer], newcomer: str) -> _Peer | None:
    """The connection that gives way to one of the origin `newcomer`; None: the newcomer itself.

    It is of the origin that has most, so one client that opens many closes its own: the longest idle; without an idle
    one any, if the newcomer's origin has fewer.
    """
    held = Counter(connection.origin for connection in connections)
    most = max(held.values(), default=0)
    large = [connection for connection in connections if held[connection.origin] == most]
    idle = [connection for connection in large if connection.is_idle]
    if idle:
        return min(idle, key=lambda connection: connection.idle_until)
    return large[0] if held[newcomer] + 1 < most else None


async def listen(
    factory: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    limit: int,
    make_room: Callable[[str], bool],
    **tls: Any,
) -> list[asyncio.Server]:
    """Servers on all addresses of `host`, with at most `limit` connections each, TLS handshakes included.

    One beyond is closed at once unless `make_room`, given its origin, could close another. Raises OSError.
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
        self, bound: socket.socket, opened: WeakSet[socket.socket], limit: int, make_room: Callable[[str], bool]
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
        if len(self._opened) > self._limit and not self._make_room(origin_of(address[0])):
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
