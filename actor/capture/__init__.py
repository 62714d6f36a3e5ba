"""What people and models said, kept as episodes: read from the exchange, redacted, on its way to the outbox."""
