"""The Prometheus exporter. In the order of a refresh's way:

refresher            reads all tenants every few seconds, records, renders
counters             what is shown: no counter falls, a new one is 0 first, the rest is `_other`
families, exposition the series, as bytes; with watch_lines, what the detector says; snapshot is one rendered state
inquiries            operators' questions across tenants, asked of the store; with parameters
server, runner       /metrics and its neighbours; with negotiation, listening, basic_auth, web_config, web_settings
metrics, settings    the exporter's own
rules                Prometheus alerts
"""
