-- Every bin in [since, until), which lie in one day, of tenants that are ten days old. What is missing since the last
-- token has to be surprising, has to be tokens enough, and the silence longer than any. A score of 1 is the limit.
INSERT INTO verdicts (tenant_id, kind, agent_id, bin, severity, score, observed, expected, detail, generation)
SELECT tenant_id, 'silence', '', at, if(how > 2, 'page', 'ticket'),
    least(sum(surprise * missed) / 9, sum(lacking * missed) / 7, any(silent) / any(limit)) AS how,
    0, sum(usual * missed), toString(any(since_last)), {generation:UInt64}
FROM
(
    -- The bins that are empty, and since when.
    SELECT last.tenant_id AS tenant_id, at, since_last, at + 300 - since_last AS silent,
        least(longest, second + 1800) + 1800 AS limit
    FROM
    (
        SELECT tenant_id, {since:UInt32} + 300 * number AS at, intDiv(at, 3600) * 3600 AS hour_of,
            -- End of the last bin with tokens before the end of this one.
            maxIf(ended, ended <= at + 300) AS since_last
        FROM
        (
            SELECT tenant_id, max(toUnixTimestamp(hour) + 300 * (1 + toUInt32(floor(log2(filled))))) AS ended
            FROM tenant_hour FINAL
            WHERE hour >= toStartOfHour(toDateTime({since:UInt32}, 'UTC')) - 1382400
                AND hour < toStartOfHour(toDateTime({since:UInt32}, 'UTC')) AND filled > 0
            GROUP BY tenant_id
            UNION ALL
            SELECT DISTINCT tenant_id, toUnixTimestamp(slot) + 300 * (1 + place)
            FROM agent_slot FINAL
            ARRAY JOIN [toUInt64(issued - issued_5 - issued_10), issued_5, issued_10] AS count, [0, 1, 2] AS place
            WHERE slot >= toStartOfHour(toDateTime({since:UInt32}, 'UTC')) AND slot < toDateTime({until:UInt32}, 'UTC') AND count > 0
        )
        ARRAY JOIN range(intDiv({until:UInt32} - {since:UInt32}, 300)) AS number
        GROUP BY tenant_id, at
    ) AS last
    INNER JOIN
    (
        SELECT tenant_id, toUnixTimestamp(hour) AS hour_of, longest_silence AS longest, second_silence AS second
        FROM tenant_norm FINAL
        WHERE hour >= toStartOfHour(toDateTime({since:UInt32}, 'UTC')) AND hour < toDateTime({until:UInt32}, 'UTC')
            AND days >= 10
    ) AS norm ON last.tenant_id = norm.tenant_id AND last.hour_of = norm.hour_of
    WHERE since_last > 0 AND silent > limit / 2
) AS empty
INNER JOIN
(
    SELECT tenant_id, toUnixTimestamp(hour) AS start, surprise, lacking, usual FROM tenant_norm FINAL
    WHERE hour >= toStartOfHour(toDateTime({since:UInt32}, 'UTC')) - 1296000 AND hour < toDateTime({until:UInt32}, 'UTC')
) AS hours USING (tenant_id)
ARRAY JOIN [greatest(0, least(toInt64(start) + 3600, toInt64(at) + 300) - greatest(toInt64(start), toInt64(since_last))) / 300] AS missed
WHERE missed > 0
GROUP BY tenant_id, at
HAVING how > 0.5
