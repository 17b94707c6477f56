"""The store, and nothing else. All SQL lives here. In the order of the data's way:

connection           statements on embedded chDB or a server; with dsn, directory (an embedded store's),
                     statement_settings (what no server profile may change), errors
topology             what kind of server it is, and which are refused
schema, migrations   the tables, in versions
event, tenant        what an event and a tenant are
marks, writer        events in: a mark for each slot, then the events; commit gathers senders
rollups, upkeep      marked slots are recounted from the events
queries              the tenant's questions: marked slots from events, all others from rollups
totals, fleet        all tenants for the exporter; with counters_file beside an embedded store
alerts, alert        what the detector has found; with detection, which finds it, and watch, all of it for the exporter
agent_detail         one agent, closely; alert_json is both as JSON
removal              retention and erasure
audit, daily         everything recounted and compared; what is done every night
export               every event, to take elsewhere
budget               a monthly number of tokens, for the detector
store                all of this put together once a process; metrics of it, and its size on disk
cluster, failover    which servers make a shard, which is its primary, and how another becomes it
sharded              a store over several shards
open_store           the store that a DSN leads to
smoke                what holds on a cluster, and what does not
"""
