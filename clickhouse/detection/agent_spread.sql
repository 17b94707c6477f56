-- Of each hour in [since, until), as of its end.
INSERT INTO agent_spread (tenant_id, hour, agent_id, bins_6h, bins_nights, tokens_nights, hours_nights, generation)
SELECT tenant_id, at, agent_id, sumIf(used, ago < 6), sumIf(used, is_night), sumIf(tokens, is_night),
    countIf(is_night AND used > 0), {generation:UInt64}
FROM
(
    SELECT tenant_id, agent_id, intDiv(start - toUnixTimestamp(hour), 3600) AS ago, toDateTime(start, 'UTC') AS at,
        ago % 24 < 12 AS is_night, bins AS used, issued AS tokens
    FROM agent_hour FINAL ARRAY JOIN range({since:UInt32}, {until:UInt32}, 3600) AS start
    WHERE hour >= toDateTime({since:UInt32} - 212400, 'UTC') AND hour < toDateTime({until:UInt32}, 'UTC')
        AND start >= toUnixTimestamp(hour) AND start < toUnixTimestamp(hour) + 216000
)
WHERE is_night OR ago < 6
GROUP BY tenant_id, at, agent_id
