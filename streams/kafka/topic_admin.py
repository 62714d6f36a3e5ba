"""Topic administration: create the topics of the table, compare them with the cluster, and read the offsets of groups."""

import threading
import time
from datetime import timedelta
from typing import Any

import kafka
import structlog
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    KafkaError,
    NoError,
    NotCoordinatorError,
    TopicAlreadyExistsError,
    for_code,
)

from streams.core.errors import ConfigError, Unavailable
from streams.core.topics import DAY_MS, TOPICS
from streams.kafka.client_errors import translated_errors
from streams.kafka.kafka_settings import KafkaSettings
from streams.kafka.login import connecting

log = structlog.get_logger()
NOT_YET = (CoordinatorLoadInProgressError, CoordinatorNotAvailableError, NotCoordinatorError)
"""What a broker answers that does not know its groups' offsets yet."""


def committed_offsets(settings: KafkaSettings, group: str) -> dict[tuple[str, int], int]:
    """A group's committed offsets by (topic, partition)."""
    admin, until = admin_client(settings), time.monotonic() + settings.request_timeout_s
    try:
        while True:
            try:
                with translated_errors("ask", settings):
                    offsets = admin.list_group_offsets([group])[group]
                break
            except Unavailable as error:  # a broker that has just started creates or loads its offsets topic first
                if not isinstance(error.__cause__, NOT_YET) or time.monotonic() > until:
                    raise
                time.sleep(0.2)
    finally:
        admin.close()
    return {(p.topic, p.partition): o.offset for p, o in offsets.items() if o.offset >= 0}


def kafka_answers(settings: KafkaSettings) -> bool:
    """Ask Kafka for its metadata. True when it answers."""
    try:
        admin = admin_client(settings)
    except Unavailable:
        return False
    try:
        admin.list_topics()
    except KafkaError:
        return False
    finally:
        admin.close()
    return True


def await_kafka(settings: KafkaSettings, stopping: threading.Event, pause_s: float = 2.0) -> bool:
    """Until Kafka answers. False when ``stopping`` was set before."""
    while not kafka_answers(settings):
        log.warning("kafka is away", servers=settings.bootstrap_servers)
        if stopping.wait(pause_s):
            return False
    return True


def wanted_topics(settings: KafkaSettings) -> dict[str, dict[str, Any]]:
    """The topics as they should be, by name: partitions, replication and configuration."""
    return {
        topic.name: {
            "num_partitions": settings.partitions if topic.partitioned else 1,
            "replication_factor": settings.replication,
            "configs": {
                "cleanup.policy": "compact" if topic.compacted else "delete",
                "retention.ms": str(topic.retention_ms),
                "message.timestamp.type": "LogAppendTime",  # the broker's clock sets a record's time, not the sender's
                "max.message.bytes": str(settings.max_message_bytes),
                # Only closed segments are deleted or compacted. By default a segment closes after a week: bytes would stay a week longer.
                **({"max.compaction.lag.ms": str(DAY_MS)} if topic.compacted else {"segment.ms": str(DAY_MS)} if topic.retention_ms > 0 else {}),
            },
        }
        for topic in TOPICS
    }


def topic_differences(settings: KafkaSettings) -> dict[str, list[str]]:
    """Differences between the table and the cluster, in words, by topic; ``missing`` for a topic that does not exist."""
    admin = admin_client(settings)
    try:
        with translated_errors("ask", settings):
            wanted, found = wanted_topics(settings), {t["name"]: t for t in admin.describe_topics() if t["name"] in wanted_topics(settings)}
            resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in sorted(found)]
            configs = admin.describe_configs(resources, config_filter="all")["topic"] if found else {}
    finally:
        admin.close()
    return {name: rows for name in wanted if (rows := _differences(wanted[name], found.get(name), configs.get(name, {})))}


def batch_limits(settings: KafkaSettings) -> dict[str, int]:
    """Largest batch in bytes by topic: the cluster's ``max.message.bytes``. Empty when the cluster does not say."""
    return _numbers(settings, "max.message.bytes")


def retentions(settings: KafkaSettings) -> dict[str, timedelta | None]:
    """How long records are kept, by topic: ``retention.ms`` as the cluster has it, or as the table says where nobody tells us. None: for ever."""
    told = _numbers(settings, "retention.ms")
    kept_ms = {topic.name: told.get(topic.name, topic.retention_ms) for topic in TOPICS}
    return {name: timedelta(milliseconds=kept) if kept >= 0 else None for name, kept in kept_ms.items()}


def _numbers(settings: KafkaSettings, key: str) -> dict[str, int]:
    """A number of each topic's configuration. Empty where we may not ask."""
    try:
        admin = admin_client(settings)
        try:
            with translated_errors("ask", settings):
                resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in sorted(wanted_topics(settings))]
                configs = admin.describe_configs(resources, config_filter="all")["topic"]
        finally:
            admin.close()
    except (ConfigError, Unavailable):
        return {}
    limits = {name: values[key] for name, values in configs.items() if key in values}
    return {name: int(limit["value"] if isinstance(limit, dict) else limit) for name, limit in limits.items()}


def create_topics(settings: KafkaSettings) -> list[str]:
    """Create the missing topics and return the names of those that we made. Existing topics are not changed, nor those that somebody else makes at
    the same time."""
    missing = [name for name, rows in topic_differences(settings).items() if rows == ["missing"]]
    if missing:
        admin = admin_client(settings)
        try:
            with translated_errors("create topics on", settings):
                told = admin.create_topics({name: wanted_topics(settings)[name] for name in missing}, raise_errors=False)
                results = {topic["name"]: for_code(topic["error_code"]) for topic in told["topics"]}
                for name, result in results.items():
                    if result not in (NoError, TopicAlreadyExistsError):
                        raise result(name)
                admin.wait_for_topics(missing)
        finally:
            admin.close()
        return [name for name in missing if results[name] is NoError]
    return []


def _differences(wanted: dict[str, Any], found: dict[str, Any] | None, configs: dict[str, Any]) -> list[str]:
    if found is None:
        return ["missing"]
    rows = []
    if (count := len(found["partitions"])) != wanted["num_partitions"]:
        rows.append(f"partitions: {count}, should be {wanted['num_partitions']}")
    for key, value in wanted["configs"].items():
        is_now = configs.get(key)
        now = is_now.get("value") if isinstance(is_now, dict) else is_now
        if now != value:
            rows.append(f"{key}: {now}, should be {value}")
    return rows


def admin_client(settings: KafkaSettings) -> Any:
    """A client for administration. The caller closes it."""
    with connecting(settings):
        return kafka.KafkaAdminClient(**settings.client_options(), client_id="tidemill-admin")
