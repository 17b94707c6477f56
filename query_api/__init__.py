"""The query API and the ingest endpoint. In the order of a request's way:

http                 sockets, TLS, parameters, answers, errors
app                  routes, and the one door that every request goes in and every answer goes out by
auth                 a tenant's bearer token becomes a tenant
analytics            the questions; with rate_limit and fair_queue between tenants
ingest               a source's events
health, openapi      for watchers and for programs
ports                what it needs of the store, by role
settings, metrics    every knob; what is counted. file_watch: files that are read again when they change
"""
