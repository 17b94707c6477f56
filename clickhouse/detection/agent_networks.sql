-- Of the hours in [since, until).
INSERT INTO agent_network (tenant_id, agent_id, network, wide, first_seen, last_seen)
SELECT tenant_id, agent_id, network, wide, min(at), max(at)
FROM
(
    SELECT tenant_id, agent_id, toDateTime(issued_at, 'UTC') AS at,
                multiIf(
                    isIPv4String(client_ip), concat(substringIndex(client_ip, '.', 3), '.0/24'),
                    isIPv6String(client_ip), concat(toString(IPv6CIDRToRange(toIPv6OrDefault(client_ip), 48).1), '/48'),
                    '') AS network,
                multiIf(
                    isIPv4String(client_ip), concat(substringIndex(client_ip, '.', 2), '.0.0/16'),
                    isIPv6String(client_ip), concat(toString(IPv6CIDRToRange(toIPv6OrDefault(client_ip), 32).1), '/32'),
                    '') AS wide
    FROM events
    WHERE outcome = 'success' AND client_ip != '' AND issued_at >= toDateTime64({since:UInt32}, 3, 'UTC')
        AND issued_at < toDateTime64({until:UInt32}, 3, 'UTC')
)
WHERE network != ''
GROUP BY tenant_id, agent_id, network, wide
