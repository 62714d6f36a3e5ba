"""Kafka: the one home of kafka-python. A producer that waits for acknowledgement, a consumer with manual commits, an admin.

Outside this folder nobody imports kafka; errors of the client come out as ours.
"""

from streams.kafka.access_rights import PARTS, grant_rights, grants, principal_of
from streams.kafka.consumer import Assigned, Consumer, end_offsets, read_between, read_to_end
from streams.kafka.kafka_settings import KafkaSettings
from streams.kafka.producer import Producer, Publisher, RecordPlace
from streams.kafka.record_reading import Record
from streams.kafka.topic_admin import await_kafka, committed_offsets, create_topics, kafka_answers, retentions, topic_differences, wanted_topics

__all__ = [
    "PARTS",
    "Assigned",
    "Consumer",
    "KafkaSettings",
    "Producer",
    "Publisher",
    "Record",
    "RecordPlace",
    "await_kafka",
    "committed_offsets",
    "create_topics",
    "end_offsets",
    "grant_rights",
    "grants",
    "kafka_answers",
    "principal_of",
    "read_between",
    "read_to_end",
    "retentions",
    "topic_differences",
    "wanted_topics",
]
