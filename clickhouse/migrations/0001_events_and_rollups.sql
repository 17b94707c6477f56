-- Raw events. The sorting key is the identity of an event followed by what the rollups count of it: a duplicate
-- collapses, and the same identity with other content stays beside the first, visible to `verify` for ever.
-- Which content counts is then a rule (the smallest outcome, agent_id), not an accident of merge order.
CREATE TABLE IF NOT EXISTS events
(
    tenant_id LowCardinality(String),
    issued_at DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    event_id String CODEC(ZSTD(1)),
    agent_id LowCardinality(String),
    outcome Enum8('success' = 0, 'failure' = 1),
    grant_type LowCardinality(String),
    scope LowCardinality(String),
    client_ip String CODEC(ZSTD(1)),
    user_agent LowCardinality(String),
    source LowCardinality(String),
    expires_in UInt32 CODEC(T64, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(issued_at)
ORDER BY (tenant_id, issued_at, event_id, agent_id, outcome)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Which 15-minute slots of a tenant may hold events that the rollups do not know yet. A mark is durable before
-- the first event of its slot is inserted. `open` is 1 each time it is written, and as much less when it is closed:
-- a mark is open while its sum is not 0, and merges forget the closed ones.
CREATE TABLE IF NOT EXISTS marks
(
    tenant_id LowCardinality(String),
    slot DateTime('UTC'),
    segment UInt64,
    open Int64
)
ENGINE = SummingMergeTree(open)
ORDER BY (tenant_id, slot, segment)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Rollups are recomputed, never added to: the row with the highest generation is the whole truth of its key, so a
-- double count cannot be expressed. last_issued_ms: milliseconds since the epoch of the last issued token, 0: none. issued_5,
-- issued_10: tokens of the minutes 5 to 9 and 10 to 14.
CREATE TABLE IF NOT EXISTS agent_slot
(
    tenant_id LowCardinality(String),
    slot DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    agent_id LowCardinality(String),
    issued UInt64 CODEC(T64, ZSTD(1)),
    failed UInt64 CODEC(T64, ZSTD(1)),
    last_issued_ms UInt64 CODEC(T64, ZSTD(1)),
    issued_5 UInt64 CODEC(T64, ZSTD(1)),
    issued_10 UInt64 CODEC(T64, ZSTD(1)),
    generation UInt64 CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(generation)
PARTITION BY toYYYYMM(slot)
ORDER BY (tenant_id, slot, agent_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS tenant_slot
(
    tenant_id LowCardinality(String),
    slot DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    issued UInt64 CODEC(T64, ZSTD(1)),
    failed UInt64 CODEC(T64, ZSTD(1)),
    generation UInt64 CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(generation)
PARTITION BY toYYYYMM(slot)
ORDER BY (tenant_id, slot)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS agent_day
(
    tenant_id LowCardinality(String),
    day Date,
    agent_id LowCardinality(String),
    issued UInt64 CODEC(T64, ZSTD(1)),
    failed UInt64 CODEC(T64, ZSTD(1)),
    generation UInt64 CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(generation)
PARTITION BY toYYYYMM(day)
ORDER BY (tenant_id, day, agent_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS tenant_day
(
    tenant_id LowCardinality(String),
    day Date,
    issued UInt64 CODEC(T64, ZSTD(1)),
    failed UInt64 CODEC(T64, ZSTD(1)),
    last_issued_ms UInt64 CODEC(T64, ZSTD(1)),
    generation UInt64 CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(generation)
PARTITION BY toYYYYMM(day)
ORDER BY (tenant_id, day)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- What the exporter has published: a Prometheus counter that falls reads as a restart, and the whole total as a burst.
CREATE TABLE IF NOT EXISTS counters
(
    tenant_id String,
    issued SimpleAggregateFunction(max, UInt64),
    failed SimpleAggregateFunction(max, UInt64),
    published SimpleAggregateFunction(max, UInt8)
)
ENGINE = AggregatingMergeTree
ORDER BY tenant_id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- What retention and erasure took away from a tenant: its counter is the rollups' sum plus these.
CREATE TABLE IF NOT EXISTS removals
(
    tenant_id String,
    removal_id UInt64,
    agent_id SimpleAggregateFunction(max, String),
    before SimpleAggregateFunction(max, DateTime('UTC')),
    issued SimpleAggregateFunction(max, UInt64),
    failed SimpleAggregateFunction(max, UInt64),
    done SimpleAggregateFunction(max, UInt8)
)
ENGINE = AggregatingMergeTree
ORDER BY (tenant_id, removal_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
