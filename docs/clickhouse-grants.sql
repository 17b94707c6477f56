-- A user for the service, with no more than it needs. Change the password, and the database if yours has another name:
--   clickhouse-client --multiquery < clickhouse-grants.sql
CREATE DATABASE IF NOT EXISTS analytics;

-- `agentidp-analytics migrate` once a version; nothing else makes or changes a table.
CREATE USER IF NOT EXISTS agentidp_migrate IDENTIFIED WITH sha256_password BY 'change me';
GRANT SELECT, INSERT, CREATE TABLE, ALTER DELETE, ALTER UPDATE, OPTIMIZE ON analytics.* TO agentidp_migrate;

-- serve, ingest, verify, export, erase.
CREATE USER IF NOT EXISTS agentidp_analytics IDENTIFIED WITH sha256_password BY 'change me too';
GRANT SELECT, INSERT, ALTER DELETE, ALTER UPDATE, OPTIMIZE ON analytics.* TO agentidp_analytics;
-- Of a cluster: to follow a failover.
GRANT SYSTEM SYNC REPLICA ON analytics.* TO agentidp_analytics;
