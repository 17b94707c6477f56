-- The hours of [since, until), from the slots; hours of agents that are gone are written as zeros.
INSERT INTO agent_hour
    (tenant_id, hour, agent_id, issued, failed, bins, top_1, second_3, sum_3, rest_6, rest_12, generation)
SELECT tenant_id, hour, agent_id, tokens, refusals, used,
    arrayMax(k -> line[k], range(12, 24)),
    arrayMax(k -> line[k] + line[k - 1] + line[k - 2] - arrayMax(arraySlice(line, k - 2, 3)) - arrayMin(arraySlice(line, k - 2, 3)), range(12, 24)),
    arrayMax(k -> line[k] + line[k - 1] + line[k - 2], range(12, 24)),
    arrayMax(k -> arraySum(arraySlice(line, k - 5, 6)) - arrayMax(arraySlice(line, k - 5, 6)), range(12, 24)),
    arrayMax(k -> arraySum(arraySlice(line, k - 11, 12)) - arrayMax(arraySlice(line, k - 11, 12)), range(12, 24)),
    {generation:UInt64}
FROM
(
    SELECT tenant_id, agent_id, hour,
        sumIf(count, is_own) AS tokens, sumIf(refused, is_own) AS refusals, countIf(is_own AND count > 0) AS used,
        -- The eleven bins before the hour, and its own twelve.
        groupArrayInsertAt(0, 23)(count, toUInt32(place)) AS line, max(is_known) AS was_known
    FROM
    (
        SELECT tenant_id, agent_id, toStartOfHour(slot) + 3600 * later AS hour, later = 0 AS is_own,
            11 + intDiv(toMinute(slot), 5) + number - 12 * later AS place, count,
            if(number = 0, failed, toUInt64(0)) AS refused, 0 AS is_known
        FROM agent_slot FINAL
        ARRAY JOIN
            [toUInt64(issued - issued_5 - issued_10), issued_5, issued_10, toUInt64(issued - issued_5 - issued_10), issued_5, issued_10] AS count,
            [0, 1, 2, 0, 1, 2] AS number, [0, 0, 0, 1, 1, 1] AS later
        WHERE slot >= toDateTime({since:UInt32} - 3600, 'UTC') AND slot < toDateTime({until:UInt32}, 'UTC')
        UNION ALL
        -- Beyond the line: at one place of it the first value stays, and a zero would hide what was counted.
        SELECT tenant_id, agent_id, hour, 1, 23, toUInt64(0), toUInt64(0), 1 FROM agent_hour FINAL
        WHERE hour >= toDateTime({since:UInt32}, 'UTC') AND hour < toDateTime({until:UInt32}, 'UTC')
    )
    WHERE place >= 0 AND hour >= toDateTime({since:UInt32}, 'UTC') AND hour < toDateTime({until:UInt32}, 'UTC')
    GROUP BY tenant_id, agent_id, hour
    HAVING arraySum(line) > 0 OR refusals > 0 OR was_known
)
