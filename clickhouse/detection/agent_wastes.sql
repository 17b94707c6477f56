-- The hours of [since, until), from the events themselves; an hour before them tells what tokens were still held. Hours
-- in which nothing was wasted after all are written as zeros.
INSERT INTO agent_waste (tenant_id, hour, agent_id, wasted, most, most_at_once, generation)
SELECT tenant_id, toStartOfHour(bin) AS hour, agent_id, sum(wasted), max(wasted), max(at_once), {generation:UInt64}
FROM
(
    /*wasted_by_bin*/
    HAVING wasted > 0
    UNION ALL
    SELECT tenant_id, agent_id, hour, 0, 0 FROM agent_waste FINAL
    WHERE hour >= toDateTime({since:UInt32}, 'UTC') AND hour < toDateTime({until:UInt32}, 'UTC') AND wasted > 0
)
GROUP BY tenant_id, hour, agent_id
