-- As of now: what of the month's budgets is used, and what will be at the pace of the last seven days. The pace counts from
-- the third day on.
INSERT INTO verdicts (tenant_id, kind, agent_id, bin, severity, score, observed, expected, detail, generation)
SELECT tenant_id, 'budget', agent_id, {bin:UInt32}, if(used > tokens, 'ticket', 'info'),
    greatest(used, forecast) / tokens AS how, if(used > tokens, used, forecast), tokens,
    if(used > tokens, 'used', 'forecast'), {generation:UInt64}
FROM
(
    SELECT budget.1 AS tenant_id, budget.2 AS agent_id, budget.3 AS tokens,
        toFloat64(sumIf(issued, day >= toDate(toDateTime({month:UInt32}, 'UTC')))) AS used,
        if({bin:UInt32} < {month:UInt32} + 172800, 0,
            used + sumIf(issued, day >= toDate(toDateTime({bin:UInt32} - 604800, 'UTC'))
                AND day < toDate(toDateTime({bin:UInt32}, 'UTC'))) / 7 * ({next_month:UInt32} - {bin:UInt32}) / 86400) AS forecast
    FROM
    (
        SELECT arrayJoin(arrayZip({tenants:Array(String)}, {agents:Array(String)}, {tokens:Array(UInt64)})) AS budget
    ) AS budgets
    INNER JOIN
    (
        SELECT tenant_id AS whose, agent_id AS of_agent, day, issued FROM agent_day FINAL
        WHERE tenant_id IN {tenants:Array(String)} AND day >= toDate(toDateTime({month:UInt32} - 691200, 'UTC'))
            AND day <= toDate(toDateTime({bin:UInt32}, 'UTC'))
        UNION ALL
        SELECT tenant_id, '', day, issued FROM tenant_day FINAL
        WHERE tenant_id IN {tenants:Array(String)} AND day >= toDate(toDateTime({month:UInt32} - 691200, 'UTC'))
            AND day <= toDate(toDateTime({bin:UInt32}, 'UTC'))
    ) AS days ON budget.1 = days.whose AND budget.2 = days.of_agent
    GROUP BY budget
)
WHERE how > 1
