-- Every bin in [since, until), which lie in one hour, of agents that are a week old. A score of 1 is the limit.
INSERT INTO verdicts (tenant_id, kind, agent_id, bin, severity, score, observed, expected, detail, generation)
WITH
    -- A record that stands alone counts as the second best day and a margin, or one incident would hide the next. An
    -- agent that works on few days has no second one to go by.
    active_days <= 10 AS is_rare,
    if(is_rare, record_1, least(record_1, 2 * second_1 - median_1 + sqrt(second_1) + 1)) AS r1,
    if(is_rare, record_2, least(record_2, 2 * second_2 - median_2 + sqrt(second_2) + 3)) AS r2,
    if(is_rare, record_3, least(record_3, 2 * second_3 - median_3 + sqrt(second_3) + 6)) AS r3,
    if(is_rare, record_6, least(record_6, 2 * second_6 - median_6 + sqrt(second_6) + 6)) AS r6,
    if(is_rare, record_12, least(record_12, 2 * second_12 - median_12 + sqrt(second_12) + 6)) AS r12,
    -- How far the record is from an ordinary day.
    r1 - median_1 AS d1, r2 - median_2 AS d2, r3 - median_3 AS d3, r6 - median_6 AS d6, r12 - median_12 AS d12,
    multiIf((is_rare OR burst >= 11) AND empty_hours >= 0.9, 'batch', is_rare OR burst >= 11, 'bursty',
        burst < 3.3, 'steady', 'daily') AS character,
    greatest(w1 - usual, 2 * (least(w1, last) - usual), w3 - 3 * usual) >= 90 AS is_large,
    multiIf(
        is_large AND character = 'steady', greatest(
            least(w1 / (1.25 * r1 + 0.5 * d1 + sqrt(r1) + 12), w1 / (6 * usual)),
            w3 / (1.7 * r3 + 0.25 * d3 + 12)),
        is_large AND character = 'daily', greatest(w1 / (1.6 * r1 + 0.5 * d1), w3 / (1.4 * r3 + 0.5 * d3 + 30)),
        is_large AND character = 'bursty', w1 / (3 * r1 + d1 + 3 * sqrt(r1) + 8),
        is_large, greatest(
            least(w1 / (2 * r1 + 0.5 * d1), w1 / (1.25 * best_1)),
            least(w2 / (1.6 * r2 + d2), w2 / best_2),
            w3 / (1.8 * r3 + 0.5 * d3 + sqrt(r3) + 40)),
        character = 'steady', greatest(
            least(w2 / (1.6 * r2 + 0.25 * d2 + 2), w2 / (6 * usual)),
            w6 / (1.6 * r6 + 0.5 * d6 + 0.5 * sqrt(r6) + 2),
            least(w12 / (1.4 * r12 + 0.25 * d12 + sqrt(r12) + 2), w12 / (44 * usual))),
        character = 'daily', greatest(
            least(w1 / (1.4 * r1 + 0.75 * d1 + sqrt(r1) + 1), w1 / (18 * mean)),
            least(w3 / (1.6 * r3 + 0.5 * d3 + 2), w3 / (18 * usual)),
            w6 / (1.6 * r6 + 0.5 * d6 + 5), w12 / (1.6 * r12 + 0.5 * d12 + sqrt(r12) + 6)),
        character = 'bursty', greatest(
            least(w1 / (1.25 * r1 + d1 + sqrt(r1) + 8), w1 / best_1),
            w6 / (3 * r6 + 0.5 * d6 + 4 * sqrt(r6) + 5)),
        greatest(w3 / (1.8 * r3 + 0.5 * d3 + sqrt(r3) + 3), w12 / (1.8 * r12 + 0.5 * d12 + 4 * sqrt(r12) + 2))
    ) AS page,
    if(w1 - usual < 40, 0, multiIf(
        character = 'steady', least(w1 / (1.25 * r1 + 0.5 * d1 + sqrt(r1) + 4), w1 / (4 * usual)),
        character = 'daily', w1 / (1.4 * r1 + 0.25 * d1),
        character = 'bursty', w1 / (2 * r1 + 0.5 * d1 + sqrt(r1)),
        least(w1 / (1.6 * r1 + 0.25 * d1), w1 / best_1))) AS ticket
SELECT tenant_id, 'spike', agent_id, at, if(page > 1, 'page', 'ticket'), if(page > 1, page, greatest(page, ticket)), w1, usual, '',
    {generation:UInt64}
FROM
(
    SELECT tenant_id, agent_id, hour, hour + 300 * (k - 12) AS at,
        toFloat64(line[k]) AS w1, toFloat64(line[k - 1]) AS last,
        toFloat64(arraySum(arraySlice(line, k - 2, 3))) AS w3,
        w3 - arrayMax(arraySlice(line, k - 2, 3)) - arrayMin(arraySlice(line, k - 2, 3)) AS w2,
        toFloat64(arraySum(arraySlice(line, k - 5, 6))) - arrayMax(arraySlice(line, k - 5, 6)) AS w6,
        toFloat64(arraySum(arraySlice(line, k - 11, 12))) - arrayMax(arraySlice(line, k - 11, 12)) AS w12
    FROM
    (
        SELECT tenant_id, agent_id, toStartOfHour(slot) + 3600 * later AS hour,
            groupArrayInsertAt(0, 23)(count, toUInt32(11 + intDiv(toMinute(slot), 5) + number - 12 * later)) AS line
        FROM agent_slot FINAL
        ARRAY JOIN
            [toUInt64(issued - issued_5 - issued_10), issued_5, issued_10, toUInt64(issued - issued_5 - issued_10), issued_5, issued_10] AS count,
            [0, 1, 2, 0, 1, 2] AS number, [0, 0, 0, 1, 1, 1] AS later
        WHERE slot >= toDateTime({since:UInt32} - 3600, 'UTC') AND slot < toDateTime({until:UInt32}, 'UTC') AND count > 0
            AND hour >= toStartOfHour(toDateTime({since:UInt32}, 'UTC')) AND hour < toDateTime({until:UInt32}, 'UTC')
            AND 11 + intDiv(toMinute(slot), 5) + number >= 12 * later
        GROUP BY tenant_id, agent_id, hour
    )
    ARRAY JOIN range(12, 24) AS k
    WHERE w1 >= 2 AND at >= toDateTime({since:UInt32}, 'UTC') AND at < toDateTime({until:UInt32}, 'UTC')
) AS now
INNER JOIN
(
    SELECT tenant_id, agent_id, mean, active_days, empty_hours, burst, record_1 AS best_1, record_2 AS best_2
    FROM agent_habit FINAL
    WHERE place = intDiv({since:UInt32}, 86400) % 2 AND day = toDate(toDateTime({since:UInt32}, 'UTC')) AND days >= 7
) AS habit USING (tenant_id, agent_id)
LEFT JOIN
(
    SELECT tenant_id, agent_id, hour, mean AS usual, * EXCEPT (place, tenant_id, agent_id, hour, mean, generation)
    FROM agent_norm FINAL
    WHERE place = intDiv({since:UInt32}, 3600) % 24 AND hour = toStartOfHour(toDateTime({since:UInt32}, 'UTC'))
) AS norm USING (tenant_id, agent_id, hour)
WHERE page > 0.5 OR ticket > 0.5 -- what is near the limit shows on a dashboard
