"""Kafka: the one home of kafka-python. A producer that waits for acknowledgement, a consumer with manual commits, an admin.

Outside this folder nobody imports kafka; errors of the client come out as ours.
"""

from streams.kafka.access import PARTS, give_rights, grants, principal_of
from streams.kafka.admin import committed_offsets, create_topics, ready, topic_differences, wanted_topics
from streams.kafka.consumer import Consumer, Record, end_offsets, read_between, read_to_end
from streams.kafka.producer import Place, Producer, Publisher
from streams.kafka.settings import KafkaSettings

__all__ = [
    "PARTS",
    "Consumer",
    "KafkaSettings",
    "Place",
    "Producer",
    "Publisher",
    "Record",
    "committed_offsets",
    "create_topics",
    "end_offsets",
    "give_rights",
    "grants",
    "principal_of",
    "read_between",
    "read_to_end",
    "ready",
    "topic_differences",
    "wanted_topics",
]
