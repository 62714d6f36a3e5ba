"""Prometheus rules, built from the metric table."""
