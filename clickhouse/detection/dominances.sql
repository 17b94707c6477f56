-- As of the end of some hours of a day: an agent with over 80 % of its tenant's tokens of 24 hours. That it always has
-- them is worth knowing, and no more; that it suddenly has, because it was issued more, is a change.
INSERT INTO verdicts (tenant_id, kind, agent_id, bin, severity, score, observed, expected, detail, generation)
SELECT tenant_id, 'dominance', agent_id, {day:UInt32} + 3600 * target + 3300,
    if(usual_share < 0.4 AND tokens > 5 * 288 * mean AND total >= 500, 'ticket', 'info'), share / 0.8, share, usual_share,
    '', {generation:UInt64}
FROM
(
    SELECT tenant_id, agent_id, target, sum(issued) AS tokens, sum(tokens) OVER (PARTITION BY tenant_id, target) AS total,
        tokens / total AS share
    FROM
    (
        SELECT tenant_id, agent_id, issued, target FROM agent_hour FINAL ARRAY JOIN {targets:Array(UInt16)} AS target
        WHERE hour > toDateTime({day:UInt32} - 86400, 'UTC') AND hour < toDateTime({day:UInt32} + 86400, 'UTC')
            AND toUnixTimestamp(hour) <= {day:UInt32} + 3600 * target
            AND toUnixTimestamp(hour) + 86400 > {day:UInt32} + 3600 * target
    )
    GROUP BY tenant_id, agent_id, target
    HAVING tokens > 0
) AS now
INNER JOIN
(
    SELECT tenant_id, agent_id, mean, mean / sum(mean) OVER (PARTITION BY tenant_id) AS usual_share,
        count() OVER (PARTITION BY tenant_id) AS agents
    FROM agent_habit FINAL
    WHERE place = intDiv({day:UInt32}, 86400) % 2 AND day = toDate(toDateTime({day:UInt32}, 'UTC'))
) AS habit USING (tenant_id, agent_id)
WHERE share > 0.8 AND total >= 100 AND agents >= 3
