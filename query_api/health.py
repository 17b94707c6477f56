"""Whether the process lives, and whether it can be given work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

from aiohttp import web

from clickhouse.errors import StoreError
from query_api.http.errors import unavailable
from query_api.http.request_context import RequestContext
from query_api.http.responses import json_answer
from query_api.ports import Readiness

logger = logging.getLogger(__name__)

# Anybody may ask: without a memory every question would be one to the store.
_REMEMBER_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 5.0


class Health:
    """The two handlers. `threads` run the check; `timer` is a monotonic clock in seconds."""

    def __init__(self, readiness: Readiness, threads: Executor, timer: Callable[[], float]) -> None:
        self._readiness = readiness
        self._threads = threads
        self._timer = timer
        self._check: asyncio.Future[bool] | None = None
        self._checked_at = 0.0
        self._was_ready = True
        self.stopping = False

    async def healthz(self, _context: RequestContext) -> web.Response:
        """GET /healthz: the process answers."""
        return json_answer({"status": "ok"})

    async def readyz(self, _context: RequestContext) -> web.Response:
        """GET /readyz: the store is reachable, its schema current, and no shutdown under way."""
        if self.stopping:
            raise unavailable("The service is stopping.", 5, "stopping")
        if not await self._is_ready():
            raise unavailable("The store is not ready.", 5, "not_ready")
        return json_answer({"status": "ready"})

    async def _is_ready(self) -> bool:
        """The answer of one check shared by all who ask at the same time, or of the last second's."""
        now = self._timer()
        if self._check is None or (self._check.done() and now - self._checked_at >= _REMEMBER_SECONDS):
            self._check = asyncio.get_running_loop().run_in_executor(self._threads, self._checked)
            self._checked_at = now
        try:
            # Shielded: one that hangs is waited for by all, and not started again beside itself.
            return await asyncio.wait_for(asyncio.shield(self._check), _PATIENCE_SECONDS)
        except TimeoutError:
            return False

    def _checked(self) -> bool:
        try:
            self._readiness.check()
        except StoreError as error:
            if self._was_ready:
                logger.warning("not ready: %s", error, extra={"fields": {"error": type(error).__name__}})
            self._was_ready = False
            return False
        if not self._was_ready:
            logger.info("ready again")
        self._was_ready = True
        return True
