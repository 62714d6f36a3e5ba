"""Offsets of a group on a broker that has just started."""

from types import SimpleNamespace

import pytest
from kafka import TopicPartition
from kafka.errors import CoordinatorLoadInProgressError, CoordinatorNotAvailableError, GroupAuthorizationFailedError, KafkaError, NotCoordinatorError

from streams.core.errors import ConfigError
from streams.kafka import KafkaSettings, committed_offsets, topic_admin


class Admin:
    """Answers with these errors first, then with an offset."""

    def __init__(self, *errors: KafkaError) -> None:
        self.errors, self.closed = list(errors), False

    def list_group_offsets(self, groups: list[str]) -> dict[str, dict[TopicPartition, SimpleNamespace]]:
        if self.errors:
            raise self.errors.pop(0)
        return {group: {TopicPartition("t", 0): SimpleNamespace(offset=7), TopicPartition("t", 1): SimpleNamespace(offset=-1)} for group in groups}

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("error", [CoordinatorLoadInProgressError, CoordinatorNotAvailableError, NotCoordinatorError])
def test_offsets_are_asked_again_while_a_broker_loads_them(error: type[KafkaError], monkeypatch: pytest.MonkeyPatch) -> None:
    admin = Admin(error("loading"), error("loading"))
    monkeypatch.setattr(topic_admin, "admin_client", lambda _: admin)
    monkeypatch.setattr(topic_admin.time, "sleep", lambda _: None)
    assert committed_offsets(KafkaSettings(bootstrap_servers="127.0.0.1:1"), "g") == {("t", 0): 7}
    assert admin.closed


def test_a_refusal_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = Admin(GroupAuthorizationFailedError("g"))
    monkeypatch.setattr(topic_admin, "admin_client", lambda _: admin)
    with pytest.raises(ConfigError):
        committed_offsets(KafkaSettings(bootstrap_servers="127.0.0.1:1"), "g")
    assert admin.closed
