"""The Prometheus face: a snapshot of all tenants, rendered once and served as bytes."""
