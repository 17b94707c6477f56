-- Every quarter of an hour in [since, until): requests that fail, in the quarter and in the hour that it ends.
INSERT INTO verdicts (tenant_id, kind, agent_id, bin, severity, score, observed, expected, detail, generation)
SELECT tenant_id, 'failures', agent_id, toUnixTimestamp(slot), 'ticket',
    least(failed_here / 10, failed_hour / 20, failed_here / (failed_here + issued_here) / limit,
        failed_hour / (failed_hour + issued_hour) / limit) AS how,
    failed_hour / (failed_hour + issued_hour), failing, '', {generation:UInt64}
FROM
(
    SELECT tenant_id, agent_id, slot, failed_here, issued_here, sum(failed_here) OVER quarters AS failed_hour,
        sum(issued_here) OVER quarters AS issued_hour
    FROM
    (
        SELECT tenant_id, agent_id, slot, failed AS failed_here, issued AS issued_here FROM agent_slot FINAL
        WHERE slot >= toDateTime({since:UInt32} - 3600, 'UTC') AND slot < toDateTime({until:UInt32}, 'UTC')
    )
    WINDOW quarters AS (PARTITION BY tenant_id, agent_id ORDER BY toUnixTimestamp(slot) RANGE BETWEEN 2700 PRECEDING AND CURRENT ROW)
) AS now
INNER JOIN
(
    SELECT tenant_id, agent_id, failing, greatest(0.2, 3 * failing + 0.1) AS limit FROM agent_habit FINAL
    WHERE place = intDiv({since:UInt32}, 86400) % 2 AND day = toDate(toDateTime({since:UInt32}, 'UTC')) AND days >= 7
) AS habit USING (tenant_id, agent_id)
WHERE slot >= toDateTime({since:UInt32}, 'UTC') AND failed_here > 0 AND how > 1
