-- For one hour, from it and its neighbours on the same date of the 60 days before; days without tokens are zeros in the
-- median.
INSERT INTO agent_norm
    (place, tenant_id, agent_id, hour, mean, record_1, second_1, median_1, record_2, second_2, median_2, record_3,
    second_3, median_3, record_6, second_6, median_6, record_12, second_12, median_12, generation)
SELECT intDiv({hour:UInt32}, 3600) % 24, tenant_id, agent_id, toDateTime({hour:UInt32}, 'UTC'), mean_here,
    best_1[1], best_1[2], (best_1[intDiv(days + 1, 2)] + best_1[intDiv(days, 2) + 1]) / 2,
    best_2[1], best_2[2], (best_2[intDiv(days + 1, 2)] + best_2[intDiv(days, 2) + 1]) / 2,
    best_3[1], best_3[2], (best_3[intDiv(days + 1, 2)] + best_3[intDiv(days, 2) + 1]) / 2,
    best_6[1], best_6[2], (best_6[intDiv(days + 1, 2)] + best_6[intDiv(days, 2) + 1]) / 2,
    best_12[1], best_12[2], (best_12[intDiv(days + 1, 2)] + best_12[intDiv(days, 2) + 1]) / 2,
    {generation:UInt64}
FROM
(
    SELECT tenant_id, agent_id, toUInt64(least(60, any(age))) AS days,
        arrayMax(sumForEachIf(tokens, ago <= 28)) / (12 * least(28, any(age))) AS mean_here,
        arrayReverseSort(groupArray(day_1)) AS best_1, arrayReverseSort(groupArray(day_2)) AS best_2,
        arrayReverseSort(groupArray(day_3)) AS best_3, arrayReverseSort(groupArray(day_6)) AS best_6,
        arrayReverseSort(groupArray(day_12)) AS best_12
    FROM
    (
        SELECT tenant_id, agent_id, intDiv({hour:UInt32}, 86400) - intDiv(toUnixTimestamp(hour), 86400) AS ago,
            -- Of the hour before, itself and the one after, of which the day has one each.
            groupArrayInsertAt(0, 3)(
                issued, toUInt32((25 + toHour(hour) - intDiv({hour:UInt32}, 3600) % 24) % 24)) AS tokens,
            max(top_1) AS day_1, max(second_3) AS day_2, max(sum_3) AS day_3, max(rest_6) AS day_6,
            max(rest_12) AS day_12
        FROM agent_hour FINAL
        WHERE hour IN {hours:Array(DateTime('UTC'))}
        GROUP BY tenant_id, agent_id, ago
    ) AS work
    INNER JOIN
    (
        SELECT tenant_id, agent_id, days AS age FROM agent_habit FINAL
        WHERE place = intDiv({hour:UInt32}, 86400) % 2 AND day = toDate(toDateTime({hour:UInt32}, 'UTC'))
    ) AS habit USING (tenant_id, agent_id)
    GROUP BY tenant_id, agent_id
)
