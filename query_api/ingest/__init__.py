"""Events in. In the order of a request's way:

handler              POST /api/v1/events
sources              whose bearer token it is, and for which tenants
body, signatures     the bytes, within bounds, and who signed them
formats              bytes become events, for `ingest FILE` too; with json_text and cloud_events
"""
