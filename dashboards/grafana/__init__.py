"""Grafana dashboards, built from the metric table, and pushing them."""
