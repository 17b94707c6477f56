"""Dashboards and provisioning for Grafana, generated: `python -m grafana.build` writes `dashboards/`."""
