"""What an operator may do from the console: put dead letters back, promote, roll back. Each is a record on the log, and waits for it."""

import base64
import binascii
import hmac
from typing import Any, Protocol

import structlog
from pydantic import SecretStr

from actor.promotion.adapter_standing import AdapterStanding
from dashboards.console.console_facts import Letter
from streams.core.clock import Clock
from streams.core.errors import InvalidEvent, Refused
from streams.core.events import AdapterVersion, DeadLetter, Event, Promotion, new_id
from streams.core.topics import BY_NAME, DEAD_LETTERS, PROMOTIONS, Topic
from streams.kafka import RecordPlace
from streams.kafka.dead_letters import KEPT_BYTES

log = structlog.get_logger()


class Log(Protocol):
    """The part of a producer that actions need."""

    def publish(self, topic: Topic[Any], event: Event) -> RecordPlace:
        """Send, and wait for the acknowledgement."""

    def send_raw(self, topic: str, key: bytes | None, value: bytes) -> Any:
        """Begin to send bytes; calling what is returned waits."""


def is_operator(expected: SecretStr | None, given: str) -> bool:
    """True for the right key, in the same time for every wrong one; without a key nobody is."""
    return expected is not None and hmac.compare_digest(expected.get_secret_value().encode(), given.encode())


def replay(letter: Letter, to: Log) -> RecordPlace:
    """Publish the stored bytes to the topic that they came from, under their key."""
    event = letter.event
    if event.source_topic not in BY_NAME or event.source_topic == DEAD_LETTERS.name:
        raise Refused(f"{event.source_topic} is no topic that records can be put back to")
    try:
        value = base64.b64decode(event.record_base64, validate=True)
    except binascii.Error:
        raise Refused("the stored bytes cannot be read") from None
    if not value:
        raise Refused("the record had no value")
    if len(value) >= KEPT_BYTES:
        raise Refused(f"the record was cut at {KEPT_BYTES} bytes when it was set aside; replay it from the lake")
    place: RecordPlace = to.send_raw(event.source_topic, _key(event, value), value)()
    log.info("dead letter replayed", letter=letter.offset, topic=place.topic, partition=place.partition, offset=place.offset)
    return place


def promotion(adapter: AdapterVersion, move: str, reason: str, standing: AdapterStanding, clock: Clock) -> Promotion:
    """The event of an operator's move, legal from where things stand. Raises Refused."""
    if move not in ("promoted", "rolled_back"):
        raise Refused(f"{move!r} is not a move: promoted or rolled_back")
    if not reason.strip():
        raise Refused("say why: the reason is kept with the move")
    event = Promotion(
        promotion_id=new_id("pr"),
        policy=adapter.policy,
        adapter=adapter.name,
        move="promoted" if move == "promoted" else "rolled_back",
        reason=reason.strip()[:1000],
        evidence={"production_before": standing.production or "base", "adapter_sha256": adapter.artifact.sha256},
        by="operator",
        at=clock.now(),
    )
    if (why := standing.refusal(event)) is not None:
        raise Refused(f"{adapter.name} cannot be {move.replace('_', ' ')}: {why}")
    return event


def publish_promotion(event: Promotion, to: Log) -> RecordPlace:
    """On the log when this returns."""
    place = to.publish(PROMOTIONS, event)
    log.info("operator moved an adapter", adapter=event.adapter, move=event.move, promotion_id=event.promotion_id, offset=place.offset)
    return place


def _key(event: DeadLetter, value: bytes) -> bytes | None:
    """The key that the record's own event has; where it cannot be read, the one that was noted, which may be cut."""
    try:
        return BY_NAME[event.source_topic].decode(value).key.encode()
    except InvalidEvent:
        return event.record_key.encode() if event.record_key else None
