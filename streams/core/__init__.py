"""What all parts share: events, topics, metrics, errors, settings sections, time, health, traces. It does not depend on Kafka."""
