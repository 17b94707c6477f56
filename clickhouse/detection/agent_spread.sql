-- Of each hour in [since, until), as of its end.
INSERT INTO agent_spread (tenant_id, hour, agent_id, bins_6h, bins_nights, tokens_nights, hours_nights, generation)
SELECT tenant_id, at, agent_id, sumIf(used, ago < 6), sumIf(used, is_night), sumIf(tokens, is_night),
    countIf(is_night AND used > 0), {generation:UInt64}
FROM
(
    SELECT tenant_id, agent_id, ago, hour + 3600 * ago AS at, ago % 24 < 12 AS is_night, bins AS used, issued AS tokens
    FROM agent_hour FINAL ARRAY JOIN range(60) AS ago
    WHERE hour >= toDateTime({since:UInt32} - 212400, 'UTC') AND hour < toDateTime({until:UInt32}, 'UTC')
)
WHERE at >= toDateTime({since:UInt32}, 'UTC') AND at < toDateTime({until:UInt32}, 'UTC') AND (is_night OR ago < 6)
GROUP BY tenant_id, at, agent_id
