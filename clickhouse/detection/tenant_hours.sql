-- The hours of [since, until) of every tenant, from its first day on, empty ones included.
INSERT INTO tenant_hour (tenant_id, hour, issued, filled, silent, generation)
SELECT tenant_id, hour, tokens, bits,
    -- A bin without tokens is as silent as the time from the end of the last one with some to its own end. A tenant is
    -- not silent before its first token.
    arrayMax((i, since) -> if(bitTest(bits, i) OR since = 0, 0, toUnixTimestamp(hour) + 300 * (i + 1) - since),
        range(12),
        arrayMap(i -> if(bitAnd(bits, bitShiftLeft(toUInt16(1), i) - 1) = 0, seen,
            toUnixTimestamp(hour) + 300 * (1 + toUInt32(floor(log2(bitAnd(bits, bitShiftLeft(toUInt16(1), i) - 1)))))),
            range(12))),
    {generation:UInt64}
FROM
(
    SELECT tenant_id, hour, sum(count) AS tokens, groupBitOr(if(count > 0, bitShiftLeft(toUInt16(1), place), toUInt16(0))) AS bits,
        -- End of the last bin with tokens before this hour; 0: none.
        max(if(bits > 0, toUnixTimestamp(hour) + 300 * (1 + toUInt32(floor(log2(bits)))), 0)) OVER before_this AS seen
    FROM
    (
        SELECT tenant_id, toStartOfHour(slot) AS hour, intDiv(toMinute(slot), 5) + number AS place, count
        FROM agent_slot FINAL
        ARRAY JOIN [toUInt64(issued - issued_5 - issued_10), issued_5, issued_10] AS count, [0, 1, 2] AS number
        WHERE slot >= toDateTime({since:UInt32}, 'UTC') AND slot < toDateTime({until:UInt32}, 'UTC')
        UNION ALL
        SELECT tenant_id, toDateTime(start, 'UTC') AS hour, 0, toUInt64(0)
        FROM (SELECT tenant_id, min(day) AS first FROM tenant_day GROUP BY tenant_id)
        ARRAY JOIN range({since:UInt32}, {until:UInt32}, 3600) AS start
        WHERE hour >= toDateTime(first, 'UTC')
        UNION ALL
        -- The last bin with tokens before all of these hours.
        SELECT tenant_id, max(hour) AS last, toUInt8(floor(log2(argMax(filled, hour)))), toUInt64(1) FROM tenant_hour FINAL
        WHERE hour < toDateTime({since:UInt32}, 'UTC') AND hour >= toDateTime({since:UInt32} - 5270400, 'UTC') AND filled > 0
        GROUP BY tenant_id
    )
    GROUP BY tenant_id, hour
    WINDOW before_this AS (PARTITION BY tenant_id ORDER BY hour ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
)
WHERE hour >= toDateTime({since:UInt32}, 'UTC')
