-- A part of agent_wastes and wastes: tokens of each bin in [since, until) that were issued while the same agent, address
-- and scope still held a fresh one, in all and at one address.
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
