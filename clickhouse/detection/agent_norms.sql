-- For some hours of a day, from each and its neighbours on the same date of the 60 days before; days without tokens are
-- zeros in the median.
INSERT INTO agent_norm
    (place, tenant_id, agent_id, hour, mean, record_1, second_1, median_1, record_2, second_2, median_2, record_3,
    second_3, median_3, record_6, second_6, median_6, record_12, second_12, median_12, generation)
SELECT target, tenant_id, agent_id, toDateTime({day:UInt32} + 3600 * target, 'UTC'), mean_here,
    best_1[1], best_1[2], (best_1[intDiv(days + 1, 2)] + best_1[intDiv(days, 2) + 1]) / 2,
    best_2[1], best_2[2], (best_2[intDiv(days + 1, 2)] + best_2[intDiv(days, 2) + 1]) / 2,
    best_3[1], best_3[2], (best_3[intDiv(days + 1, 2)] + best_3[intDiv(days, 2) + 1]) / 2,
    best_6[1], best_6[2], (best_6[intDiv(days + 1, 2)] + best_6[intDiv(days, 2) + 1]) / 2,
    best_12[1], best_12[2], (best_12[intDiv(days + 1, 2)] + best_12[intDiv(days, 2) + 1]) / 2,
    {generation:UInt64}
FROM
(
    SELECT tenant_id, agent_id, target, toUInt64(least(60, any(age))) AS days,
        arrayMax(sumForEachIf(tokens, ago <= 28)) / (12 * least(28, any(age))) AS mean_here,
        arrayReverseSort(groupArray(day_1)) AS best_1, arrayReverseSort(groupArray(day_2)) AS best_2,
        arrayReverseSort(groupArray(day_3)) AS best_3, arrayReverseSort(groupArray(day_6)) AS best_6,
        arrayReverseSort(groupArray(day_12)) AS best_12
    FROM
    (
        SELECT tenant_id, agent_id, intDiv({day:UInt32} + 86399 - toUnixTimestamp(hour), 86400) AS ago,
            (toHour(hour) + near) % 24 AS target,
            -- Of the hour before, itself and the one after, of which the date has one each.
            groupArrayInsertAt(0, 3)(issued, toUInt32((25 - near) % 24)) AS tokens,
            max(top_1) AS day_1, max(second_3) AS day_2, max(sum_3) AS day_3, max(rest_6) AS day_6,
            max(rest_12) AS day_12
        FROM agent_hour FINAL ARRAY JOIN [23, 0, 1] AS near
        WHERE hour IN {sources:Array(DateTime('UTC'))} AND target IN {targets:Array(UInt16)}
        GROUP BY tenant_id, agent_id, ago, target
    ) AS work
    INNER JOIN
    (
        SELECT tenant_id, agent_id, days AS age FROM agent_habit FINAL
        WHERE place = intDiv({day:UInt32}, 86400) % 2 AND day = toDate(toDateTime({day:UInt32}, 'UTC'))
    ) AS habit USING (tenant_id, agent_id)
    GROUP BY tenant_id, agent_id, target
)
