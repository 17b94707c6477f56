"""The store's size is asked for in the background: no scrape waits for it, no failure ends it."""

from __future__ import annotations

import asyncio
import threading

import pytest
from prometheus_client import CollectorRegistry

from agentidp_analytics.measuring import every_minute
from clickhouse.errors import StoreUnavailableError
from clickhouse.metrics import StoreMetrics
from clickhouse.size import Size

BYTES = "agentidp_analytics_store_bytes"


class Store:
    """Answers as the test says, one after the other, and then not at all."""

    def __init__(self, *answers: Size | Exception) -> None:
        self.registry = CollectorRegistry()
        self.metrics = StoreMetrics(self.registry)
        self.answers = list(answers)
        self.asked_in_vain = threading.Event()
        self.go_on = threading.Event()

    def size(self) -> Size:
        if not self.answers:
            self.asked_in_vain.set()
            assert self.go_on.wait(20)
            raise StoreUnavailableError("it is over")
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def measured(self) -> float | None:
        """What is shown once all answers were given and the store hangs."""
        task = asyncio.create_task(every_minute(self, pause=0))
        assert await asyncio.to_thread(self.asked_in_vain.wait, 20)
        shown = self.registry.get_sample_value(BYTES)
        self.go_on.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return shown


def test_a_scrape_does_not_wait_for_a_store_that_hangs() -> None:
    assert asyncio.run(Store().measured()) is None
    assert asyncio.run(Store(Size(7, 1, 1, 0.1)).measured()) == 7


def test_failures_are_told_once_and_the_next_answer_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    away, strange = StoreUnavailableError("away"), RuntimeError("strange")
    store = Store(away, away, Size(7, 1, 1, 0.1), away, strange, strange)
    assert asyncio.run(store.measured()) == 7
    told = [
        record.getMessage().rpartition(": ")[2] for record in caplog.records if "size cannot" in record.getMessage()
    ]
    assert told[:3] == ["away", "away", "strange"]
    assert told[3:] in ([], ["it is over"])
