-- As of the start of a day, from the 60 days before it.
INSERT INTO agent_habit
    (place, tenant_id, agent_id, day, days, mean, active_days, empty_hours, burst, failing, record_1, second_1,
    record_3, second_3, record_12, second_12, waste,
    second_waste, waste_at_once, second_waste_at_once, generation)
SELECT intDiv({day:UInt32}, 86400) % 2, tenant_id, agent_id, toDate(toDateTime({day:UInt32}, 'UTC')), any(age),
    sumIf(tokens, ago <= 28) / (288 * least(28, any(age))) AS mean_bin, countIf(ago <= 28 AND tokens > 0),
    1 - sumIf(hours, ago <= 28) / 672,
    arrayReverseSort(groupArray(most_12))[2] / (11 * mean_bin + 1),
    sumIf(refused, ago <= 28) / greatest(1, sumIf(tokens + refused, ago <= 28)), 
    arrayReverseSort(groupArray(most_1))[1], arrayReverseSort(groupArray(most_1))[2],
    arrayReverseSort(groupArray(most_3))[1], arrayReverseSort(groupArray(most_3))[2],
    arrayReverseSort(groupArray(most_12))[1], arrayReverseSort(groupArray(most_12))[2],
    any(held[1]), any(held[2]), any(held_at_once[1]), any(held_at_once[2]), {generation:UInt64}
FROM
(
    SELECT tenant_id, agent_id, intDiv({day:UInt32} + 86399 - toUnixTimestamp(hour), 86400) AS ago,
        sum(issued) AS tokens, sum(failed) AS refused, countIf(bins > 0) AS hours, max(top_1) AS most_1,
        max(sum_3) AS most_3, max(rest_12) AS most_12
    FROM agent_hour FINAL
    WHERE hour >= toDateTime({day:UInt32} - 5184000, 'UTC') AND hour < toDateTime({day:UInt32}, 'UTC')
    GROUP BY tenant_id, agent_id, ago
) AS work
INNER JOIN
(
    SELECT tenant_id, agent_id, toUInt16(toDate(toDateTime({day:UInt32}, 'UTC')) - min(day)) AS age FROM agent_day FINAL
    WHERE issued > 0 AND day < toDate(toDateTime({day:UInt32}, 'UTC')) GROUP BY tenant_id, agent_id
) AS born USING (tenant_id, agent_id)
LEFT JOIN
(
    SELECT tenant_id, agent_id, arrayReverseSort(groupArray(day_most)) AS held,
        arrayReverseSort(groupArray(day_at_once)) AS held_at_once
    FROM
    (
        SELECT tenant_id, agent_id, toDate(hour) AS work_day, max(most) AS day_most, max(most_at_once) AS day_at_once
        FROM agent_waste FINAL
        WHERE hour >= toDateTime({day:UInt32} - 5184000, 'UTC') AND hour < toDateTime({day:UInt32}, 'UTC')
        GROUP BY tenant_id, agent_id, work_day
    )
    GROUP BY tenant_id, agent_id
) AS reuse USING (tenant_id, agent_id)
GROUP BY tenant_id, agent_id
