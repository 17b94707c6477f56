-- Every bin in [since, until): tokens issued while the same agent, address and scope still held a fresh one, against the
-- agent's own record of any hour; of one that works on few days a record stands even alone. Caches that share an address waste always; a loop wastes more than ever.
INSERT INTO verdicts (tenant_id, kind, agent_id, bin, severity, score, observed, expected, detail, generation)
SELECT tenant_id, 'waste', agent_id, bin, if(page > 1, 'page', 'ticket'), if(page > 1, page, ticket), wasted,
    record, '', {generation:UInt64}
FROM
(
    SELECT tenant_id, agent_id, bin, wasted,
        if(active_days <= 10, waste, least(waste, 2 * second_waste + 5)) AS record, if(active_days <= 10, waste_at_once, least(waste_at_once, 2 * second_waste_at_once + 5)) AS record_at_once,
        greatest(wasted / greatest(30, 2 * record + 10), at_once / greatest(25, 2 * record_at_once + 10)) AS page,
        greatest(wasted / greatest(10, 1.5 * record + 5), at_once / greatest(8, 1.5 * record_at_once + 4)) AS ticket
    FROM
    (
        /*wasted_by_bin*/
    ) AS now
    INNER JOIN
    (
        SELECT tenant_id, agent_id, active_days, waste, second_waste, waste_at_once, second_waste_at_once FROM agent_habit FINAL
        WHERE place = intDiv({since:UInt32}, 86400) % 2 AND day = toDate(toDateTime({since:UInt32}, 'UTC')) AND days >= 7
    ) AS habit USING (tenant_id, agent_id)
)
WHERE page > 1 OR ticket > 1
