"""Turns at the query threads, so that one tenant's flood does not become everybody's wait."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque


class QueueFullError(Exception):
    """This tenant has as many queries waiting as it may."""


class FairQueue:
    """Admits at most `slots` queries at once, `per_tenant` of one tenant; `waiting` more of it wait.

    A free slot goes to the waiting tenants in turn, first come first served within a tenant: another tenant's
    backlog, however long, delays a query by one query at most. Belongs to one event loop.
    """

    def __init__(self, slots: int, per_tenant: int, waiting: int) -> None:
        self._free = slots
        self._per_tenant = per_tenant
        self._max_waiting = waiting
        self._running: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def enter(self, tenant: str) -> None:
        """Returns with a slot, which `leave` gives back. Raises QueueFullError."""
        queue = self._waiting.get(tenant)
        if not queue and self._may_run(tenant):
            self._admit(tenant)
            return
        if queue is None:
            queue = self._waiting[tenant] = deque()
        if len(queue) >= self._max_waiting:
            self._forget_if_empty(tenant)
            raise QueueFullError
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(ticket)
        try:
            await ticket
        except asyncio.CancelledError:
            if ticket.done() and not ticket.cancelled():
                # The slot was given in the same moment as the waiting was given up: it would be lost for ever.
                self.leave(tenant)
            elif ticket in queue:
                queue.remove(ticket)
                self._forget_if_empty(tenant)
            raise

    def leave(self, tenant: str) -> None:
        """Gives a slot back; it goes to the next tenant that waits."""
        self._free += 1
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]
        self._call_next()

    def _call_next(self) -> None:
        while self._free:
            tenant = next((name for name in self._waiting if self._may_run(name)), None)
            if tenant is None:
                return
            ticket = self._waiting[tenant].popleft()
            self._waiting.move_to_end(tenant)
            self._forget_if_empty(tenant)
            if not ticket.done():
                self._admit(tenant)
                ticket.set_result(None)

    def _may_run(self, tenant: str) -> bool:
        return self._free > 0 and self._running[tenant] < self._per_tenant

    def _admit(self, tenant: str) -> None:
        self._free -= 1
        self._running[tenant] += 1

    def _forget_if_empty(self, tenant: str) -> None:
        if tenant in self._waiting and not self._waiting[tenant]:
            del self._waiting[tenant]
