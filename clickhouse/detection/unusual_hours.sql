-- As of the end of some hours of a day: an agent that is spread over more bins or hours, or over more tokens at times at which it
-- rests, than on any of 60 days. A score of 1 is the limit.
INSERT INTO verdicts (tenant_id, kind, agent_id, bin, severity, score, observed, expected, detail, generation)
SELECT tenant_id, 'unusual_hours', agent_id, {day:UInt32} + 3600 * target + 3300, 'ticket',
    -- What the agent did in an incident that is told already stays in the sums of three nights.
    if(arrayExists(at -> at >= {day:UInt32} + 3600 * target - 212400 AND at < {day:UInt32} + 3600 * target + 3600, known),
        (now_1 - r1) / (0.5 * (r1 - best_1[middle]) + sqrt(r1) + 1) / 1.2,
        greatest(
            (now_1 - r1) / (0.5 * (r1 - best_1[middle]) + sqrt(r1) + 1) / 1.2,
            (now_2 - r2) / (0.5 * (r2 - best_2[middle]) + sqrt(r2) + 1) / 0.9,
            (now_3 - r3) / (0.5 * (r3 - best_3[middle]) + sqrt(r3) + 1) / 2.5,
            (now_4 - r4) / (0.5 * (r4 - best_4[middle]) + sqrt(r4) + 1) / 0.8)) AS how,
    now_2, r2, '', {generation:UInt64}
FROM
(
    SELECT tenant_id, agent_id, target, any(known_at) AS known, intDiv(least(60, any(age)), 2) + 1 AS middle,
        toFloat64(maxIf(day_1, ago = 0)) AS now_1, toFloat64(maxIf(day_2, ago = 0)) AS now_2,
        toFloat64(maxIf(day_3, ago = 0)) AS now_3, toFloat64(maxIf(day_4, ago = 0)) AS now_4,
        arrayReverseSort(groupArrayIf(toFloat64(day_1), ago > 0)) AS best_1, arrayReverseSort(groupArrayIf(toFloat64(day_2), ago > 0)) AS best_2,
        arrayReverseSort(groupArrayIf(toFloat64(day_3), ago > 0)) AS best_3, arrayReverseSort(groupArrayIf(toFloat64(day_4), ago > 0)) AS best_4,
        least(best_1[1], 1.25 * best_1[2] + sqrt(best_1[2]) + 1) AS r1,
        least(best_2[1], 1.25 * best_2[2] + sqrt(best_2[2]) + 1) AS r2,
        least(best_3[1], 1.25 * best_3[2] + sqrt(best_3[2]) + 1) AS r3,
        least(best_4[1], 1.25 * best_4[2] + sqrt(best_4[2]) + 1) AS r4
    FROM
    (
        SELECT tenant_id, agent_id, intDiv(toUnixTimestamp(hour) + 3600 * near - 3600, 3600) % 24 AS target,
            intDiv(toInt64({day:UInt32}) + 86399 - (toUnixTimestamp(hour) + 3600 * near - 3600), 86400) AS ago,
            max(bins_6h) AS day_1, max(bins_nights) AS day_2, max(tokens_nights) AS day_3, max(hours_nights) AS day_4
        FROM agent_spread FINAL ARRAY JOIN [0, 1, 2] AS near
        WHERE hour IN {sources:Array(DateTime('UTC'))} AND target IN {targets:Array(UInt16)}
            AND (ago BETWEEN 1 AND 60 OR ago = 0 AND near = 1)
        GROUP BY tenant_id, agent_id, ago, target
    ) AS work
    INNER JOIN
    (
        SELECT tenant_id, agent_id, days AS age FROM agent_habit FINAL
        WHERE place = intDiv({day:UInt32}, 86400) % 2 AND day = toDate(toDateTime({day:UInt32}, 'UTC')) AND days >= 20
    ) AS habit USING (tenant_id, agent_id)
    LEFT JOIN
    (
        SELECT tenant_id, agent_id, groupArray(toUnixTimestamp(bin)) AS known_at FROM verdicts FINAL
        WHERE kind IN ('spike', 'waste') AND severity = 'page' AND score > 1 AND bin >= toDateTime({day:UInt32} - 216000, 'UTC')
            AND bin < toDateTime({day:UInt32} + 86400, 'UTC')
        GROUP BY tenant_id, agent_id
    ) AS incidents USING (tenant_id, agent_id)
    GROUP BY tenant_id, agent_id, target
)
WHERE how > 1
