"""A durable spool between a part that must not wait and a Kafka that may be away."""
