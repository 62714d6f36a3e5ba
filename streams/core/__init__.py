"""What every part speaks and stands on: events, topics, metrics, errors, settings sections, time, health, traces. It has never heard of Kafka."""
