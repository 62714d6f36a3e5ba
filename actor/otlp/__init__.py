"""Telemetry that agents already emit, taken in as episodes: OTLP/HTTP spans by OpenTelemetry's conventions for generative AI."""
