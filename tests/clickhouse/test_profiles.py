"""A server's profiles may hold anything: no answer depends on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import clickhouse_connect
import pytest

from clickhouse import connection as store_module
from clickhouse.audit import verify
from clickhouse.connection import Connection
from clickhouse.errors import StoreSetupError
from clickhouse.export import export
from clickhouse.statement_settings import NEUTRAL, SETTINGS
from clickhouse.tenant import TenantId
from tests.clickhouse.test_upkeep import A, B, event, spread
from tests.conftest import empty
from tests.support.bridge.process import Bridge
from tests.support.oracle import Oracle
from tests.support.rig import NOW, Rig

HOSTILE: dict[str, dict[str, str]] = {
    "read_overflow_mode": {"read_overflow_mode": "break", "max_rows_to_read": "1"},
    "read_overflow_mode_leaf": {"read_overflow_mode_leaf": "break", "max_rows_to_read_leaf": "1"},
    "group_by_overflow_mode": {"group_by_overflow_mode": "any", "max_rows_to_group_by": "1"},
    "sort_overflow_mode": {"sort_overflow_mode": "break", "max_rows_to_sort": "1"},
    "result_overflow_mode": {"result_overflow_mode": "break", "max_result_rows": "1", "max_block_size": "1"},
    "set_overflow_mode": {"set_overflow_mode": "break", "max_rows_in_set": "1"},
    "join_overflow_mode": {"join_overflow_mode": "break", "max_rows_in_join": "1"},
    "distinct_overflow_mode": {"distinct_overflow_mode": "break", "max_rows_in_distinct": "1"},
    "transfer_overflow_mode": {"transfer_overflow_mode": "break", "max_rows_to_transfer": "1"},
    "timeout_overflow_mode": {"timeout_overflow_mode": "break", "max_execution_time": "0.001"},
    "timeout_overflow_mode_leaf": {"timeout_overflow_mode_leaf": "break", "max_execution_time_leaf": "0.001"},
    "limit": {"limit": "1"},
    "offset": {"offset": "1"},
    "page": {"page": "2", "limit": "1"},
    "select": {"select": "1"},
    "order": {"order": "rand()"},
    "sort": {"sort": "-1"},
    "format": {"format": "CSV"},
    "output_format": {"output_format": "CSV"},
    "additional_result_filter": {"additional_result_filter": "0"},
    "additional_table_filters": {"additional_table_filters": "{'agent_slot': '0', 'tenant_day': '0'}"},
    "use_query_cache": {"use_query_cache": "1", "query_cache_system_table_handling": "save"},
    "session_timezone": {"session_timezone": "America/New_York"},
    "apply_deleted_mask": {"apply_deleted_mask": "0"},
    "insert_deduplication_token": {"insert_deduplication_token": "always the same"},
    "deduplicate_insert": {"deduplicate_insert": "enable"},
    "deduplicate_insert_select": {"deduplicate_insert_select": "force_enable"},
    "alter_update_mode": {"alter_update_mode": "lightweight"},
    "async_insert": {"async_insert": "1", "wait_for_async_insert": "0"},
    "max_memory_usage": {"max_memory_usage": "1000"},
    "max_partitions_per_insert_block": {"max_partitions_per_insert_block": "1"},
}


# Flags are turned round, a maximum is 1: by itself it makes an error, which is the wrong answer too.
HOSTILE |= {name: {name: "1" if value == 0 else "0"} for name, value in NEUTRAL.items() if name not in HOSTILE}
ALL_AT_ONCE = {name: value for profile in reversed(HOSTILE.values()) for name, value in profile.items()}


@pytest.fixture
def profiled(bridge: Bridge, server_store: Connection) -> Iterator[Bridge]:
    bridge.reset()
    empty(server_store)
    yield bridge
    bridge.profile()


@pytest.mark.parametrize("profile", HOSTILE.values(), ids=list(HOSTILE))
def test_no_profile_changes_an_answer(profile: dict[str, str], profiled: Bridge) -> None:
    profiled.profile(**profile)
    with closing(Connection(profiled.dsn_of("analytics"))) as connection:
        rig = Rig(connection)
        events = [*spread(8), *spread(4, B), *(event(100 + i, hours_ago=i, outcome="failure") for i in range(3))]
        rig.writer.write(events)
        rig.agree(Oracle(events))
        rig.upkeep.settle()
        rig.writer.write(events)
        rig.agree(Oracle(events))
        assert rig.shown().tokens_issued == [8, 4]


@pytest.mark.parametrize("condition", ["0", "rowNumberInAllBlocks() < 1"])
def test_a_profile_that_filters_every_answer_is_refused(profiled: Bridge, condition: str) -> None:
    profiled.profile(filter=condition)  # a server joins it with what a request sends: nothing sent can undo it
    with pytest.raises(StoreSetupError, match=r"settings profile|server version query"):
        Connection(profiled.dsn_of("analytics"))


def test_every_setting_is_sent_at_its_neutral_value(profiled: Bridge) -> None:
    assert HOSTILE.keys() >= NEUTRAL.keys()
    profiled.profile(**ALL_AT_ONCE)
    with closing(Connection(profiled.dsn_of("analytics"))) as connection:
        found = dict(connection.rows("SELECT name, value FROM system.settings"))
        wanted = {name: str(value) for name, value in {**NEUTRAL, **SETTINGS}.items()}
        assert {name: found.get(name) for name in wanted} == wanted


def test_all_that_a_profile_can_do_at_once(profiled: Bridge) -> None:
    profiled.profile(**ALL_AT_ONCE)
    with closing(Connection(profiled.dsn_of("analytics"))) as connection:
        rig = Rig(connection)
        events = [*spread(40), *spread(30, B), *(event(1000 + i, hours_ago=i, outcome="failure") for i in range(5))]
        for _ in range(2):
            rig.writer.write(events)
            rig.agree(Oracle(events))
            rig.upkeep.settle()
            rig.agree(Oracle(events))
        assert rig.shown().tokens_issued == [40, 30]
        assert rig.shown().token_failures == [5, 0]
        exported = [json.loads(line) for part in export(connection) for line in part.splitlines()]
        assert len({row["event_id"] + row["tenant_id"] for row in exported}) == len(exported) == 75
        rig.removal.retain(30, NOW)
        rig.removal.erase(TenantId(B), None, NOW)
        oldest = datetime(2026, 10, 25, tzinfo=UTC).timestamp() * 1000
        rig.agree(Oracle(one for one in events if one.tenant_id == A and one.issued_at >= oldest))
        assert rig.removal.resume() == 0
        assert verify(connection).differences == []


def test_other_users_of_the_driver_keep_their_own_settings(server_store: Connection, bridge: Bridge) -> None:
    assert server_store.rows("SELECT getSetting('max_execution_time') > 0") == [(1,)]
    with clickhouse_connect.get_client(dsn=bridge.dsn) as other:
        assert other.query("SELECT getSetting('max_execution_time')").result_rows == [(0,)]


def test_a_server_that_is_too_old_for_a_setting_is_not_sent_it(
    profiled: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "NEUTRAL", {**NEUTRAL, "of_a_later_version": 0, "of_another": 1})
    profiled.profile(limit="1")
    with closing(Connection(profiled.dsn_of("analytics"))) as connection:
        assert connection.rows("SELECT number FROM numbers(3)") == [(0,), (1,), (2,)]
    monkeypatch.setattr(store_module, "SETTINGS", {**SETTINGS, "that_must_hold": 1})
    with pytest.raises(StoreSetupError, match="that_must_hold"):
        Connection(profiled.dsn_of("analytics"))
