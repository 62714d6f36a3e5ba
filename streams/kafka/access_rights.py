"""Access rights on Kafka: one table with the least rights that each part needs, and the ACLs made from it.

A name that ends in ``*`` is a prefix. Read and Write include Describe.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)

from streams.core.errors import ConfigError, Unavailable
from streams.core.topics import (
    ADAPTERS,
    ATTESTATIONS,
    DEAD_LETTERS,
    EPISODES,
    ERASED,
    ERASURES,
    FEEDBACK,
    LABELS,
    PROMOTIONS,
    REWARD_MODELS,
    TOPICS,
    Topic,
)
from streams.kafka.client_errors import translated_errors
from streams.kafka.kafka_settings import KafkaSettings
from streams.kafka.topic_admin import admin_client

Topics = tuple[Topic[Any], ...]


@dataclass(frozen=True)
class Rights:
    """What one principal may do, and nothing else."""

    reads: Topics = ()
    writes: Topics = ()
    groups: tuple[str, ...] = ()
    """Consumer groups that it may join."""
    own: tuple[str, ...] = ()
    """Its own topics, which it creates, reads and writes."""
    watches_groups: tuple[str, ...] = ()
    """Consumer groups whose offsets it may read."""
    administers: bool = False
    """May create topics and read their configuration."""


PARTS: dict[str, Rights] = {
    "agent": Rights(writes=(EPISODES, FEEDBACK)),
    "actor": Rights(reads=(ADAPTERS, PROMOTIONS, ERASURES), writes=(EPISODES, FEEDBACK, ATTESTATIONS, DEAD_LETTERS, ERASED)),
    "otlp": Rights(writes=(EPISODES, DEAD_LETTERS)),
    "streams": Rights(reads=TOPICS, writes=(LABELS, DEAD_LETTERS, ERASED), groups=("tidemill-join",)),
    "reward": Rights(reads=(LABELS, REWARD_MODELS), writes=(REWARD_MODELS, DEAD_LETTERS), groups=("tidemill-reward-*",), own=("tidemill-reward-*",)),
    "learner": Rights(reads=(EPISODES, LABELS, REWARD_MODELS, ADAPTERS, ERASURES, ERASED), writes=(ADAPTERS, DEAD_LETTERS, ERASED)),
    "promoter": Rights(reads=(EPISODES, LABELS, REWARD_MODELS, ADAPTERS, ATTESTATIONS, PROMOTIONS, ERASURES), writes=(PROMOTIONS, DEAD_LETTERS)),
    "critic": Rights(reads=(EPISODES,), writes=(FEEDBACK, DEAD_LETTERS), groups=("tidemill-critic-*",)),
    "console": Rights(reads=TOPICS, writes=(PROMOTIONS, EPISODES, FEEDBACK)),
    "operator": Rights(reads=TOPICS, writes=(PROMOTIONS, ERASURES), watches_groups=("tidemill-join",), administers=True),
}
"""By part. ``agent``: an application that publishes episodes itself. ``operator``: a person who uses ``tidemill`` on the command line."""

EVERY_RIGHT = ACLFilter(
    None, None, ACLOperation.ANY, ACLPermissionType.ANY, ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
)


def principal_of(part: str, pattern: str) -> str:
    """A part's principal: ``{part}`` in the pattern is replaced by its name. Raises ConfigError when the pattern lacks it."""
    if "{part}" not in pattern or ":" not in pattern:
        raise ConfigError(f"--principals {pattern!r}: write a type and a name with {{part}} in it, such as User:tidemill-{{part}}")
    return pattern.replace("{part}", part)


def grants(part: str) -> list[tuple[str, str, str]]:
    """A part's rights one by one: (operation, kind, name), in the words of Kafka's own tools."""
    rights = PARTS[part]
    found = [("Read", "topic", topic.name) for topic in rights.reads] + [("Write", "topic", topic.name) for topic in rights.writes]
    found += [(operation, "topic", name) for name in rights.own for operation in ("Create", "Describe", "Read", "Write")]
    found += [("Read", "group", name) for name in rights.groups] + [("Describe", "group", name) for name in rights.watches_groups]
    if rights.administers:
        found += [("Create", "cluster", "kafka-cluster")]
        found += [(operation, "topic", topic.name) for topic in TOPICS for operation in ("Create", "DescribeConfigs")]
    return found


def grant_rights(settings: KafkaSettings, pattern: str, parts: Sequence[str] = tuple(PARTS)) -> None:
    """Give each part's principal its rights; existing ones stay. They are in force when this returns. The caller needs Alter on the cluster.

    Raises ConfigError, or Unavailable when the broker does not apply them in time.
    """
    acls = [_acl(principal_of(part, pattern), *grant) for part in parts for grant in grants(part)]
    admin = admin_client(settings)
    try:
        with translated_errors("give rights on", settings):
            if failed := admin.create_acls(acls)["failed"]:
                taken = len(acls) - len(failed)
                raise ConfigError(f"Kafka accepted {taken} of {len(acls)} rights: does it have an authorizer, and may we alter the cluster?")
            until = time.monotonic() + settings.request_timeout_s
            while missing := set(acls).difference(admin.describe_acls(EVERY_RIGHT)[0]):  # the controller knows them before the broker does
                if time.monotonic() > until:
                    raise Unavailable(f"the broker does not apply {len(missing)} of {len(acls)} rights yet: try again")
                time.sleep(0.1)
    finally:
        admin.close()


def _acl(principal: str, operation: str, kind: str, name: str) -> Any:
    prefixed = name.endswith("*")
    shape = ACLResourcePatternType.PREFIXED if prefixed else ACLResourcePatternType.LITERAL
    which = ResourcePattern(ResourceType[kind.upper()], name.rstrip("*"), shape)
    does = ACLOperation["DESCRIBE_CONFIGS" if operation == "DescribeConfigs" else operation.upper()]
    return ACL(principal=principal, host="*", operation=does, permission_type=ACLPermissionType.ALLOW, resource_pattern=which)
