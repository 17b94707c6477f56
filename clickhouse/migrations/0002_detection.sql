-- Five-minute resolution for the detector, without a row more. Stores of today have these columns from the first step on:
-- a replica that joins later has to make its tables as the others are.
ALTER TABLE agent_slot
    ADD COLUMN IF NOT EXISTS issued_5 UInt64 CODEC(T64, ZSTD(1)) AFTER last_issued_ms,
    ADD COLUMN IF NOT EXISTS issued_10 UInt64 CODEC(T64, ZSTD(1)) AFTER issued_5;

-- What of an hour the detector compares with later: for each window the largest value that a bin of the hour ends.
--   top_1      tokens of a bin
--   second_3   the second largest of three bins in a row
--   sum_3      tokens of three bins
--   rest_6     tokens of six bins but for the largest, which a restart fills
--   rest_12    tokens of twelve bins but for the largest
-- bins: how many of the twelve have tokens. A table by hours first: what is read is the same hour of many days.
CREATE TABLE IF NOT EXISTS agent_hour
(
    tenant_id LowCardinality(String),
    hour DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    agent_id LowCardinality(String),
    issued UInt64 CODEC(T64, ZSTD(1)),
    failed UInt64 CODEC(T64, ZSTD(1)),
    bins UInt8,
    top_1 UInt64 CODEC(T64, ZSTD(1)),
    second_3 UInt64 CODEC(T64, ZSTD(1)),
    sum_3 UInt64 CODEC(T64, ZSTD(1)),
    rest_6 UInt64 CODEC(T64, ZSTD(1)),
    rest_12 UInt64 CODEC(T64, ZSTD(1)),
    generation UInt64 CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(generation)
PARTITION BY toYYYYMM(hour)
ORDER BY (hour, tenant_id, agent_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- The same for a tenant: a bit for each bin with tokens, and the longest silence in seconds that a bin of it ends.
CREATE TABLE IF NOT EXISTS tenant_hour
(
    tenant_id LowCardinality(String),
    hour DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    issued UInt64 CODEC(T64, ZSTD(1)),
    filled UInt16 CODEC(T64, ZSTD(1)),
    silent UInt32 CODEC(T64, ZSTD(1)),
    generation UInt64 CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(generation)
PARTITION BY toYYYYMM(hour)
ORDER BY (hour, tenant_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Of an hour, by the addresses and scopes that tokens were asked for: tokens issued while an earlier one of the same
-- agent, address and scope had over half of its lifetime left. most: in one bin; most_at_once: in one bin at one address.
CREATE TABLE IF NOT EXISTS agent_waste
(
    tenant_id LowCardinality(String),
    hour DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    agent_id LowCardinality(String),
    wasted UInt64 CODEC(T64, ZSTD(1)),
    most UInt64 CODEC(T64, ZSTD(1)),
    most_at_once UInt64 CODEC(T64, ZSTD(1)),
    generation UInt64 CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(generation)
PARTITION BY toYYYYMM(hour)
ORDER BY (hour, tenant_id, agent_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- The networks an agent was seen from: /24 of IPv4 and /48 of IPv6, and the wider /16 and /32 around them.
CREATE TABLE IF NOT EXISTS agent_network
(
    tenant_id LowCardinality(String),
    agent_id LowCardinality(String),
    network String,
    wide String,
    first_seen SimpleAggregateFunction(min, DateTime('UTC')),
    last_seen SimpleAggregateFunction(max, DateTime('UTC'))
)
ENGINE = AggregatingMergeTree
ORDER BY (tenant_id, agent_id, network, wide)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- How far an agent's work is spread, as of the end of an hour: bins with tokens of the last 6 hours; and of the 12 hours
-- that end here, a day and two days before together: bins with tokens, tokens, hours with tokens.
CREATE TABLE IF NOT EXISTS agent_spread
(
    tenant_id LowCardinality(String),
    hour DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    agent_id LowCardinality(String),
    bins_6h UInt16 CODEC(T64, ZSTD(1)),
    bins_nights UInt16 CODEC(T64, ZSTD(1)),
    tokens_nights UInt64 CODEC(T64, ZSTD(1)),
    hours_nights UInt16 CODEC(T64, ZSTD(1)),
    generation UInt64 CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(generation)
PARTITION BY toYYYYMM(hour)
ORDER BY (hour, tenant_id, agent_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Of the tables below, which hold what is usual, a row is written over after a while: `place` says where it stands, so
-- that none has to be removed. No clock of the engine decides what goes.

-- An agent's character, from the days before `day`; place: the day of the epoch modulo 2. mean: tokens a bin; burst: its busiest hours against its
-- mean; failing: share of its requests; of windows, the best and the second best day.
CREATE TABLE IF NOT EXISTS agent_habit
(
    place UInt16,
    tenant_id LowCardinality(String),
    agent_id LowCardinality(String),
    day Date,
    days UInt16,
    mean Float64,
    active_days UInt16,
    empty_hours Float64,
    burst Float64,
    failing Float64,
    record_1 Float64,
    second_1 Float64,
    record_3 Float64,
    second_3 Float64,
    record_12 Float64,
    second_12 Float64,
    waste Float64,
    second_waste Float64,
    waste_at_once Float64,
    second_waste_at_once Float64,
    generation UInt64
)
ENGINE = ReplacingMergeTree(generation)
ORDER BY (place, tenant_id, agent_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- What is usual for an agent in one hour, from the same hour and its neighbours on earlier days: for each window the
-- best day, the second best and the median of the days. mean: tokens a bin; place: the hour of the day.
CREATE TABLE IF NOT EXISTS agent_norm
(
    place UInt16,
    tenant_id LowCardinality(String),
    agent_id LowCardinality(String),
    hour DateTime('UTC'),
    mean Float64,
    record_1 Float64,
    second_1 Float64,
    median_1 Float64,
    record_2 Float64,
    second_2 Float64,
    median_2 Float64,
    record_3 Float64,
    second_3 Float64,
    median_3 Float64,
    record_6 Float64,
    second_6 Float64,
    median_6 Float64,
    record_12 Float64,
    second_12 Float64,
    median_12 Float64,
    generation UInt64
)
ENGINE = ReplacingMergeTree(generation)
ORDER BY (place, tenant_id, agent_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- What is usual for a tenant in one hour. Of an empty bin: how surprising it is (nats), and how many tokens it lacks by
-- the second lowest of four same weekdays. usual: tokens a bin. Seconds of the longest silence of 60 days, and of the
-- longest on another day; place: the hour of the epoch modulo those of 16 days.
CREATE TABLE IF NOT EXISTS tenant_norm
(
    place UInt16,
    tenant_id LowCardinality(String),
    hour DateTime('UTC'),
    days UInt16,
    surprise Float64,
    lacking Float64,
    usual Float64,
    longest_silence UInt32,
    second_silence UInt32,
    generation UInt64
)
ENGINE = ReplacingMergeTree(generation)
ORDER BY (place, tenant_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- What the detector said of a bin (its start); one row more with score 0 takes it back. An alert is a row of such bins.
CREATE TABLE IF NOT EXISTS verdicts
(
    tenant_id LowCardinality(String),
    kind LowCardinality(String),
    agent_id String,
    bin DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    severity LowCardinality(String),
    score Float64,
    observed Float64,
    expected Float64,
    detail String,
    generation UInt64 CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(generation)
PARTITION BY toYYYYMM(bin)
ORDER BY (tenant_id, kind, agent_id, bin)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- How far the detector has come, by name, in Unix seconds or generations.
CREATE TABLE IF NOT EXISTS detection
(
    name LowCardinality(String),
    reached UInt64,
    generation UInt64
)
ENGINE = ReplacingMergeTree(generation)
ORDER BY name
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Slots that were counted before this step have no bins yet: those that the detector looks back at are counted anew. As
-- marks of a segment that is older than any process, so that whoever comes first takes them up.
INSERT INTO marks (tenant_id, slot, segment, open)
SELECT tenant_id, slot, 1, 1 FROM agent_slot
WHERE slot >= (SELECT max(slot) - 5356800 FROM agent_slot) GROUP BY tenant_id, slot
