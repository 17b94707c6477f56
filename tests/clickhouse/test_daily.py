"""What the daily round publishes of itself."""

from __future__ import annotations

import pytest

from clickhouse.connection import Connection
from clickhouse.errors import StoreError
from clickhouse.event import Event
from tests.support.rig import NOW, Rig

LAST = "agentidp_analytics_retention_last_success_timestamp_seconds"
OLD = Event("org-a", int(NOW.timestamp() * 1000) - 50 * 86_400_000, "old", "agent")


def test_the_last_retention_is_shown_from_the_first_that_ended(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = [NOW.timestamp()]
    rig = Rig(connection, clock=lambda: moments[0])
    rig.writer.write([OLD])
    rig.daily(retention_days=None).run()
    assert rig.registry.get_sample_value(LAST) is None
    daily = rig.daily(retention_days=30)
    assert rig.registry.get_sample_value(LAST) is None
    daily.run()
    assert rig.value(LAST) == moments[0]
    first = moments[0]

    def fail(days: int, now: object) -> None:
        raise StoreError("no room")

    moments[0] += 86_400
    with monkeypatch.context() as broken:
        broken.setattr(rig.removal, "retain", fail)
        with pytest.raises(StoreError, match="no room"):
            daily.run()
    assert rig.value(LAST) == first
    # Nothing is left to remove, and that is a success; the check after it is another matter.
    with monkeypatch.context() as broken:
        broken.setattr(rig, "verify", fail)
        with pytest.raises(StoreError, match="no room"):
            daily.run()
    assert rig.value(LAST) == moments[0]
