"""The operator's page, for those without Grafana: pages rendered on the server, facts from the log, nothing from a network."""
