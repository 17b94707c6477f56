"""The front door: the only place that knows the store and both faces.

cli                  the commands; one line and an exit status for whatever goes wrong
options, settings    what may be given, and what it means together
files                the files that settings name, and the metrics of them
service              a running service: opened in order, closed in the opposite order
budgets_file         budgets, read again when they change
measuring            the store's size, every minute
store_commands       migrate, ingest, export, verify, erase; with backfill and progress for files,
                     ingest_client for a service that runs
investigation        alerts, investigate: from a store, or by exporter_client from a service; report is their text
service_url          where a running service is, for both clients
demo                 serve on made-up events; with demo_events and dev_keys
logs                 how every room's log lines are written
"""
