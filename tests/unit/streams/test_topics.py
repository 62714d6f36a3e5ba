"""The map of the pipeline is the one in the design, and Kafka is told the same."""

import pytest

from streams.core.topics import BY_NAME, DAY_MS, EPISODES, FEEDBACK, LABELS, TOPICS
from streams.kafka import KafkaSettings, wanted_topics


def test_names_are_versioned_and_distinct() -> None:
    assert len(BY_NAME) == len(TOPICS) == 10
    assert all(topic.name == f"tidemill.{topic.short_name}.v1" for topic in TOPICS)


def test_what_is_joined_shares_key_and_partitions() -> None:
    wanted = wanted_topics(KafkaSettings(partitions=6))
    joined = (EPISODES, FEEDBACK, LABELS)
    assert {wanted[topic.name]["num_partitions"] for topic in joined} == {6}
    assert {topic.event.key_fields for topic in joined} == {("episode_id",)}
    assert {wanted[topic.name]["num_partitions"] for topic in TOPICS if topic not in joined} == {1}


def test_feedback_outlives_the_episodes_it_may_still_be_about() -> None:
    assert FEEDBACK.retention_ms >= EPISODES.retention_ms + 7 * DAY_MS


def test_state_is_compacted_and_history_is_kept() -> None:
    compacted = {topic.short_name for topic in TOPICS if topic.compacted}
    assert compacted == {"labels", "reward-models", "adapters", "attestations", "erasures", "erased"}
    wanted = wanted_topics(KafkaSettings())
    assert all(wanted[topic.name]["configs"]["cleanup.policy"] == ("compact" if topic.compacted else "delete") for topic in TOPICS)
    assert wanted["tidemill.promotions.v1"]["configs"]["retention.ms"] == "-1"


def test_when_a_record_came_is_the_brokers_to_say() -> None:
    assert {each["configs"]["message.timestamp.type"] for each in wanted_topics(KafkaSettings()).values()} == {"LogAppendTime"}


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.short_name)
def test_every_key_field_is_a_field_of_its_event(topic: object) -> None:
    assert set(topic.event.key_fields) <= {*topic.event.model_fields, "adapter"}  # type: ignore[attr-defined]
