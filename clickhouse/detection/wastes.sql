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
        SELECT tenant_id, agent_id, bin, sum(repeats) AS wasted, max(repeats) AS at_once
        FROM
        (
            SELECT tenant_id, agent_id, address, toStartOfFiveMinutes(at) AS bin, countIf(is_held) AS repeats
            FROM
            (
                SELECT tenant_id, agent_id, scope, address, at, toUnixTimestamp64Milli(at) AS ms,
                    (ms - lagInFrame(ms, 1, 0) OVER chain) < least(500 * lagInFrame(toInt64(lifetime), 1, 0) OVER chain, 3600000) AS is_held
                FROM (
                SELECT tenant_id, issued_at AS at, content.2 AS agent_id, content.3 AS scope, content.4 AS address, content.5 AS lifetime
                FROM
                (
                    -- One event for each identity, under the content that counts.
                    SELECT tenant_id, issued_at, min((outcome, agent_id, scope, client_ip, expires_in)) AS content FROM events
                    WHERE issued_at >= toDateTime64({since:UInt32} - 3600, 3, 'UTC')
                        AND issued_at < toDateTime64({until:UInt32}, 3, 'UTC')
                    GROUP BY tenant_id, issued_at, event_id
                )
                WHERE content.1 = 'success' AND content.5 > 0
            )
                WINDOW chain AS (PARTITION BY tenant_id, agent_id, scope, address ORDER BY at, lifetime ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)
            )
            WHERE at >= toDateTime64({since:UInt32}, 3, 'UTC')
            GROUP BY tenant_id, agent_id, address, bin
        )
        GROUP BY tenant_id, agent_id, bin
    ) AS now
    INNER JOIN
    (
        SELECT tenant_id, agent_id, active_days, waste, second_waste, waste_at_once, second_waste_at_once FROM agent_habit FINAL
        WHERE place = intDiv({since:UInt32}, 86400) % 2 AND day = toDate(toDateTime({since:UInt32}, 'UTC')) AND days >= 7
    ) AS habit USING (tenant_id, agent_id)
)
WHERE page > 1 OR ticket > 1
