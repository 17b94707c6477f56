-- Every bin in [since, until), which lie in one hour: tokens of the hour before it from a network that neither the agent
-- nor another agent of its tenant was seen from until a day ago. An agent whose networks change by themselves, as in a
-- cloud, is looked at by wider ones; one whose wider ones change as well says nothing.
INSERT INTO verdicts (tenant_id, kind, agent_id, bin, severity, score, observed, expected, detail, generation)
SELECT tenant_id, 'new_network', agent_id, bin, argMax(level, how), max(how), argMax(tokens, how), 0, argMax(network, how),
    {generation:UInt64}
FROM
(
    SELECT tenant_id, agent_id, bin, network, tokens,
        arrayMin(arrayFilter((f, n) -> n = network, firsts, networks)) AS seen_before,
        least(if(seen_before = 0, 4294967295, seen_before), first_here) AS novel_since,
        arrayMin(firsts) AS born,
        -- New ones a day, as they come to it by themselves; not those of its first days, nor of this very incident.
        arrayCount(f -> f > born + 259200 AND f > novel_since - 2419200 AND f < novel_since - 43200, firsts) AS changes,
        has(arrayFilter((w, f) -> f < novel_since, wides, firsts), wide) AS is_near,
        arrayUniq(arrayFilter((w, f) -> f > novel_since - 2419200 AND f < novel_since - 43200 AND f > born + 259200, wides, firsts)) AS wide_changes,
        multiIf(
            novel_since + 86400 <= toUnixTimestamp(bin) OR novel_since < born + 864000, 0,
            changes = 0 AND arrayCount(f -> f < novel_since, firsts) < 3, tokens / 2.5,
            is_near, 0,
            changes <= 3, tokens / 10,
            wide_changes <= 2, tokens / 10,
            0) AS page,
        multiIf(page > 1, page, page > 0, 1.01, 0) AS how, if(page > 1, 'page', 'ticket') AS level
    FROM
    (
        SELECT tenant_id, agent_id, network, wide, bin, first_here,
            sum(here) OVER (PARTITION BY tenant_id, agent_id, network ORDER BY toUnixTimestamp(bin) RANGE BETWEEN 3300 PRECEDING AND CURRENT ROW) AS tokens
        FROM
        (
            SELECT tenant_id, agent_id, network, wide, toStartOfFiveMinutes(at) AS bin, count() AS here,
                min(toUnixTimestamp(min(at))) OVER (PARTITION BY tenant_id, agent_id, network) AS first_here
            FROM
            (
                SELECT DISTINCT tenant_id, agent_id, event_id, toDateTime(issued_at, 'UTC') AS at,
                multiIf(
                    isIPv4String(client_ip), concat(substringIndex(client_ip, '.', 3), '.0/24'),
                    isIPv6String(client_ip), concat(toString(IPv6CIDRToRange(toIPv6OrDefault(client_ip), 48).1), '/48'),
                    '') AS network,
                multiIf(
                    isIPv4String(client_ip), concat(substringIndex(client_ip, '.', 2), '.0.0/16'),
                    isIPv6String(client_ip), concat(toString(IPv6CIDRToRange(toIPv6OrDefault(client_ip), 32).1), '/32'),
                    '') AS wide
                FROM events
                WHERE outcome = 'success' AND client_ip != ''
                    AND issued_at >= toDateTime64({since:UInt32} - 3600, 3, 'UTC')
                    AND issued_at < toDateTime64({until:UInt32}, 3, 'UTC')
            )
            WHERE network != ''
            GROUP BY tenant_id, agent_id, network, wide, bin
        )
    ) AS now
    INNER JOIN
    (
        SELECT tenant_id, agent_id, groupArray(network) AS networks, groupArray(wide) AS wides,
            groupArray(toUnixTimestamp(first)) AS firsts
        FROM
        (
            SELECT tenant_id, agent_id, network, wide, min(first_seen) AS first FROM agent_network
            WHERE first_seen < toDateTime({until:UInt32}, 'UTC')
            GROUP BY tenant_id, agent_id, network, wide
        )
        GROUP BY tenant_id, agent_id
    ) AS known USING (tenant_id, agent_id)
    WHERE bin >= toDateTime({since:UInt32}, 'UTC') AND how > 0 AND (tenant_id, network) NOT IN
    (
        -- Those that another agent of the tenant had first.
        SELECT tenant_id, network FROM agent_network
        WHERE first_seen < toDateTime({since:UInt32} - 86400, 'UTC')
    )
)
GROUP BY tenant_id, agent_id, bin
