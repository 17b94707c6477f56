-- As of the start of a day, from the 60 days before it.
INSERT INTO agent_habit
    (place, tenant_id, agent_id, day, days, mean, active_days, empty_hours, burst, record_1, record_2, generation)
SELECT intDiv({day:UInt32}, 86400) % 2, tenant_id, agent_id, toDate(toDateTime({day:UInt32}, 'UTC')), any(age),
    sumIf(tokens, ago <= 28) / (288 * least(28, any(age))), countIf(ago <= 28),
    1 - sumIf(hours, ago <= 28) / (24 * least(28, any(age))),
    arrayReverseSort(groupArray(busiest))[2] / (11 * sumIf(tokens, ago <= 28) / (288 * least(28, any(age))) + 1),
    max(highest), max(second), {generation:UInt64}
FROM
(
    SELECT tenant_id, agent_id, intDiv({day:UInt32} + 86399 - toUnixTimestamp(hour), 86400) AS ago,
        sum(issued) AS tokens, countIf(bins > 0) AS hours, max(rest_12) AS busiest, max(top_1) AS highest,
        max(second_3) AS second
    FROM agent_hour FINAL
    WHERE hour >= toDateTime({day:UInt32} - 5184000, 'UTC') AND hour < toDateTime({day:UInt32}, 'UTC')
    GROUP BY tenant_id, agent_id, ago
    HAVING tokens > 0
) AS work
INNER JOIN
(
    SELECT tenant_id, agent_id, toUInt16(toDate(toDateTime({day:UInt32}, 'UTC')) - min(day)) AS age FROM agent_day FINAL
    WHERE issued > 0 AND day < toDate(toDateTime({day:UInt32}, 'UTC')) GROUP BY tenant_id, agent_id
) AS born USING (tenant_id, agent_id)
GROUP BY tenant_id, agent_id
