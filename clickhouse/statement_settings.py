"""The settings that go along with every statement: a count must not depend on a server's or a user's profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SETTINGS: Final[Mapping[str, str | int]] = {
    # An asynchronous insert is answered from memory: a crash would lose what we called durable.
    "async_insert": 0,
    # Block deduplication drops an insert by its hash; identity is our own affair, and its window has lost inserts.
    "insert_deduplicate": 0,
    # A backfill batch may span every month since 2000; the default of 100 partitions would refuse it.
    "max_partitions_per_insert_block": 0,
    "max_memory_usage": 4 * 1024**3,
    "max_execution_time": 300,
}
# With several replicas: an insert is answered by two, so it outlives either. In parallel, because a sequential quorum
# refuses what is inserted beside. Reads go to the one replica that is written to, and see everything.
QUORUM: Final[Mapping[str, str | int]] = {
    "insert_quorum": 2,
    "insert_quorum_parallel": 1,
    "insert_quorum_timeout": 15_000,  # ms; below the time after which an insert counts as given up
}

_OVERFLOW_MODES: Final = (
    "distinct", "group_by", "join", "read", "result", "set", "sort", "timeout", "transfer",
)  # fmt: skip
_MAXIMA: Final = (
    "max_bytes_in_distinct", "max_bytes_in_join", "max_bytes_in_set", "max_bytes_to_read", "max_bytes_to_read_leaf",
    "max_bytes_to_sort", "max_bytes_to_transfer", "max_result_bytes", "max_result_rows", "max_rows_in_distinct",
    "max_rows_in_join", "max_rows_in_set", "max_rows_to_group_by", "max_rows_to_read", "max_rows_to_read_leaf",
    "max_rows_to_sort", "max_rows_to_transfer",
)  # fmt: skip

# What a profile may hold that would change an answer without a word, at the value that changes nothing. A server that
# is too old for one of them is not sent it: what it does not know cannot be in its profiles.
NEUTRAL: Final[Mapping[str, str | int]] = {
    # Parts of an answer left out.
    **{f"{what}_overflow_mode": "throw" for what in _OVERFLOW_MODES},
    "read_overflow_mode_leaf": "throw",
    "timeout_overflow_mode_leaf": "throw",
    **dict.fromkeys(_MAXIMA, 0),
    "limit": 0,
    "offset": 0,
    "page": 0,
    "additional_result_filter": "",
    "additional_table_filters": "{}",
    "partial_result_on_first_cancel": 0,
    "skip_unavailable_shards": 0,
    "ignore_cold_parts_seconds": 0,
    # An answer of a minute ago, or of a replica that lags.
    "use_query_cache": 0,
    "fallback_to_stale_replicas_for_distributed_queries": 0,
    # One insert in several parts at once, which a crash may cut in two.
    "max_insert_threads": 1,
    # Several replicas, or a shard each, of which one row is read twice or none.
    "enable_parallel_replicas": 0,
    "parallel_replicas_count": 0,
    "distributed_group_by_no_merge": 0,
    # Another meaning of the same SQL.
    "select": "",
    "order": "",
    "sort": "",
    "format": "",
    "output_format": "",
    "aggregate_functions_null_for_empty": 0,
    "apply_deleted_mask": 1,
    "do_not_merge_across_partitions_select_final": 0,
    "empty_result_for_aggregation_by_empty_set": 0,
    "enable_extended_results_for_datetime_functions": 0,
    "group_by_use_nulls": 0,
    "prefer_column_name_to_alias": 0,
    "session_timezone": "",
    "transform_null_in": 0,
    # Inserts and removals that do not happen. The first two took over from insert_deduplicate.
    "deduplicate_insert": "disable",
    "deduplicate_insert_select": "disable",
    "insert_deduplication_token": "",
    "alter_update_mode": "heavy",  # an erasure rewrites the parts
    "ignore_drop_queries_probability": 0,
    "run_query_in_background": 0,  # answered before it is done, as an asynchronous insert is
}
