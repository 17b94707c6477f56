"""The JSON face: ingest and the three tenant-scoped questions over HTTP."""
