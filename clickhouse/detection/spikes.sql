-- Every bin in [since, until), which lie in one day, of agents that are a week old, in which a window holds more than it
-- did on the best day, and what tells a loop from a busy hour. Windows: w1, w3 tokens of one bin and of three; w2 the
-- second largest of three; w6, w12 tokens of six and twelve bins but for the largest.
WITH
    -- A record that stands alone counts as the second best day and a margin, or one incident would hide the next. Who
    -- works on one or two days a month has no second one to go by.
    active_days <= 2 AS is_rare,
    if(is_rare, record_1, least(record_1, 1.25 * second_1 + sqrt(second_1) + 3)) AS r1,
    if(is_rare, record_2, least(record_2, 1.25 * second_2 + sqrt(second_2) + 3)) AS r2,
    if(is_rare, record_3, least(record_3, 1.25 * second_3 + sqrt(second_3) + 6)) AS r3,
    if(is_rare, record_6, least(record_6, 1.25 * second_6 + sqrt(second_6) + 6)) AS r6,
    if(is_rare, record_12, least(record_12, 1.25 * second_12 + sqrt(second_12) + 6)) AS r12
SELECT tenant_id, agent_id, toUnixTimestamp(at) AS bin, w1, w3, w12 + largest AS whole_hour, usual,
    (w3 - r3) / (0.5 * greatest(r3 - median_3, 0) + sqrt(r3) + 2) AS S_z, log((w3 + 4) / (r3 + 4)) AS S_rc,
    log((w3 + 4) / (best_3 + 4)) AS S_R1, log((w3 + 4) / (next_3 + 4)) AS S_R2,
    log((w3 + 4) / (median_3 + 4)) AS S_md,
    (w12 - r12) / (0.5 * greatest(r12 - median_12, 0) + sqrt(r12) + 2) AS H_z, log((w12 + 6) / (r12 + 6)) AS H_rc,
    log((w12 + 6) / (best_12 + 6)) AS H_R1, log((w12 + 6) / (next_12 + 6)) AS H_R2,
    (w1 - r1) / (0.5 * greatest(r1 - median_1, 0) + sqrt(r1) + 2) AS X_z, log((w1 + 2) / (r1 + 2)) AS X_rc,
    log((w1 + 2) / (best_1 + 2)) AS X_R1, log((w1 + 2) / (next_1 + 2)) AS X_R2,
    (w2 - r2) / (0.5 * greatest(r2 - median_2, 0) + sqrt(r2) + 2) AS Q_z, log((w6 + 4) / (r6 + 4)) AS T_rc,
    empty_hours AS fz, burst AS pk, toFloat64(active_days) AS act, log(1 + w3) AS logS, log(usual + 0.05) AS logmu,
    log((w1 + 1) / (before_12 + 1)) AS j12, log((w1 + 1) / (before_6 + 1)) AS j6,
    log((least(w1, last) + 1) / (before_2 + 1)) AS min2, log((w1 + 1) / (mean + 1)) AS X_mean
FROM
(
    SELECT tenant_id, agent_id, hour, hour + 300 * (k - 15) AS at,
        toFloat64(line[k]) AS w1, toFloat64(line[k - 1]) AS last,
        toFloat64(arraySum(arraySlice(line, k - 2, 3))) AS w3,
        w3 - arrayMax(arraySlice(line, k - 2, 3)) - arrayMin(arraySlice(line, k - 2, 3)) AS w2,
        toFloat64(arraySum(arraySlice(line, k - 5, 6))) - arrayMax(arraySlice(line, k - 5, 6)) AS w6,
        toFloat64(arrayMax(arraySlice(line, k - 11, 12))) AS largest,
        toFloat64(arraySum(arraySlice(line, k - 11, 12))) - largest AS w12,
        toFloat64(arrayMax(arraySlice(line, k - 14, 12))) AS before_12,
        toFloat64(arrayMax(arraySlice(line, k - 6, 6))) AS before_6,
        toFloat64(arrayMax(arraySlice(line, k - 6, 5))) AS before_2
    FROM
    (
        -- The fourteen bins before the hour, and its own twelve.
        SELECT tenant_id, agent_id, toStartOfHour(slot) + 3600 * later AS hour,
            groupArrayInsertAt(0, 26)(count, toUInt32(14 + intDiv(toMinute(slot), 5) + number - 12 * later)) AS line
        FROM agent_slot FINAL
        ARRAY JOIN
            arrayFlatten([
                [toUInt64(issued - issued_5 - issued_10), issued_5, issued_10],
                [toUInt64(issued - issued_5 - issued_10), issued_5, issued_10],
                [toUInt64(issued - issued_5 - issued_10), issued_5, issued_10]]) AS count,
            [0, 1, 2, 0, 1, 2, 0, 1, 2] AS number, [0, 0, 0, 1, 1, 1, 2, 2, 2] AS later
        WHERE slot >= toStartOfHour(toDateTime({since:UInt32}, 'UTC')) - 4500
            AND slot < toDateTime({until:UInt32}, 'UTC')
            AND count > 0 AND hour >= toStartOfHour(toDateTime({since:UInt32}, 'UTC'))
            AND hour < toDateTime({until:UInt32}, 'UTC')
            AND 14 + intDiv(toMinute(slot), 5) + number >= 12 * later
        GROUP BY tenant_id, agent_id, hour
    )
    ARRAY JOIN range(15, 27) AS k
    WHERE at >= toDateTime({since:UInt32}, 'UTC') AND at < toDateTime({until:UInt32}, 'UTC')
        AND (w1 >= 3 OR w2 >= 2 OR w3 >= 4 OR w6 >= 5 OR w12 >= 6)
) AS now
INNER JOIN
(
    SELECT tenant_id, agent_id, mean, active_days, empty_hours, burst, record_1 AS best_1, second_1 AS next_1,
        record_3 AS best_3, second_3 AS next_3, record_12 AS best_12, second_12 AS next_12
    FROM agent_habit FINAL
    WHERE place = intDiv({since:UInt32}, 86400) % 2 AND day = toDate(toDateTime({since:UInt32}, 'UTC')) AND days >= 7
) AS habit USING (tenant_id, agent_id)
LEFT JOIN
(
    SELECT tenant_id, agent_id, hour, mean AS usual, * EXCEPT (place, tenant_id, agent_id, hour, mean, generation)
    FROM agent_norm FINAL
    WHERE place BETWEEN intDiv({since:UInt32}, 3600) % 24 AND intDiv({until:UInt32} - 1, 3600) % 24
        AND hour >= toStartOfHour(toDateTime({since:UInt32}, 'UTC')) AND hour < toDateTime({until:UInt32}, 'UTC')
) AS norm USING (tenant_id, agent_id, hour)
WHERE w1 >= 3 AND w1 > 1.15 * r1 + 1 OR w2 >= 2 AND w2 > 1.15 * r2 + 1 OR w3 >= 4 AND w3 > 1.15 * r3 + 1
    OR w6 >= 5 AND w6 > 1.15 * r6 + 1 OR w12 >= 6 AND w12 > 1.15 * r12 + 1
