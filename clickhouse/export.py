"""The export: every event as NDJSON that `ingest` takes back, to move a store or to keep a copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from clickhouse.connection import Connection

_DAYS: Final = "SELECT DISTINCT toDate(issued_at) AS day FROM events ORDER BY day"

_EVENTS: Final = """
SELECT tenant_id, toUnixTimestamp64Milli(issued_at) AS issued_at, event_id, agent_id, outcome, grant_type, scope,
    client_ip, user_agent, source, expires_in
FROM events FINAL WHERE toDate(events.issued_at) = toDate({day:String})
FORMAT JSONEachRow"""


def export(connection: Connection) -> Iterator[bytes]:
    """The events of one UTC day after the other, as NDJSON; a day has to fit into memory. Raises StoreError."""
    for (day,) in connection.rows(_DAYS):
        yield connection.text(_EVENTS, {"day": day.isoformat()}, output_format_json_quote_64bit_integers=0)
