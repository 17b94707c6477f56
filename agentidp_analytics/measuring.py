"""The store's size, asked for beside everything else: a scrape must not wait for a store that does not answer."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol

from clickhouse.metrics import StoreMetrics
from clickhouse.size import Size

logger = logging.getLogger(__name__)

EVERY_SECONDS: Final = 60.0


class Measured(Protocol):
    """A store, of one shard or several."""

    @property
    def metrics(self) -> StoreMetrics: ...

    def size(self) -> Size: ...


async def every_minute(store: Measured, pause: float = EVERY_SECONDS) -> None:
    """Shows the store's size. While the store does not answer, what was last known stays: a nearly full disk does."""
    trouble = ""
    while True:
        try:
            store.metrics.measured(await asyncio.to_thread(store.size))
            trouble = ""
        except Exception as error:  # whatever it was, the next time must come
            if str(error) != trouble:
                logger.warning("the store's size cannot be found out, will be tried again: %s", error)
            trouble = str(error)
        await asyncio.sleep(pause)
