-- A user for the service, with no more than it needs. Change the password, and the database if yours has another name:
--   clickhouse-client --multiquery < clickhouse-grants.sql
CREATE DATABASE IF NOT EXISTS analytics;

-- `agentidp-analytics migrate` once a version; nothing else makes or changes a table.
CREATE USER IF NOT EXISTS agentidp_migrate IDENTIFIED WITH sha256_password BY 'change me';
GRANT SELECT, INSERT, CREATE TABLE, ALTER DELETE, ALTER UPDATE, OPTIMIZE ON analytics.* TO agentidp_migrate;

-- serve, ingest, verify, export, erase.
CREATE USER IF NOT EXISTS agentidp_analytics IDENTIFIED WITH sha256_password BY 'change me too';
GRANT SELECT, INSERT, ALTER DELETE, ALTER UPDATE, OPTIMIZE ON analytics.* TO agentidp_analytics;
-- Servers that ask for grants on the database system, as the default configuration does: to wait for a deletion; to show
-- the store's size and the free room, which goes without.
GRANT SELECT ON system.mutations TO agentidp_analytics;
GRANT SELECT ON system.parts TO agentidp_analytics;
GRANT SELECT ON system.disks TO agentidp_analytics;
-- Of a cluster: to find its servers, and to follow a failover.
GRANT SELECT ON system.clusters TO agentidp_migrate, agentidp_analytics;
GRANT SYSTEM SYNC REPLICA ON analytics.* TO agentidp_analytics;
