"""Topics of a broker that several test modules share in turn."""

import kafka

from streams.kafka import KafkaSettings
from tests.support.running import wait_for


def delete_topics(settings: KafkaSettings) -> None:
    """Delete every topic that is not Kafka's own; what groups had committed there goes with them. The next ones begin at offset 0."""
    admin = kafka.KafkaAdminClient(**settings.client_options())

    def left() -> list[str]:
        return [name for name in admin.list_topics() if not name.startswith("__")]

    try:
        if there := left():
            admin.delete_topics(there)
            wait_for(lambda: not left(), within_s=60)
    finally:
        admin.close()
