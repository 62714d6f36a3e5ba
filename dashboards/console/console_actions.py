"""Actions of the console: replay dead letters, promote, roll back. Each writes a record to the log and waits for its acknowledgement."""

import base64
import binascii
import hmac
from typing import Any, Protocol

import structlog
from pydantic import SecretStr

from actor.promotion.promotion_stages import AdapterStanding
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
        """Start sending bytes. The returned function waits for the acknowledgement."""


def is_operator(expected: SecretStr | None, given: str) -> bool:
    """True for the right key. Compares in constant time. Always False without an operator key."""
    return expected is not None and hmac.compare_digest(expected.get_secret_value().encode(), given.encode())


def replay(letter: Letter, to: Log) -> RecordPlace:
    """Publish the stored bytes to the topic that they came from, under their key."""
    event = letter.event
    if event.source_topic not in BY_NAME or event.source_topic == DEAD_LETTERS.name:
        raise Refused(f"records cannot be replayed to {event.source_topic}")
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
    """The event of an operator's move. Raises Refused when the move is not possible now."""
    if move not in ("promoted", "rolled_back"):
        raise Refused(f"{move!r} is not a move: promoted or rolled_back")
    if not reason.strip():
        raise Refused("give a reason: it is recorded with the move")
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
    """Publish, and wait until it is on the log."""
    place = to.publish(PROMOTIONS, event)
    log.info("operator moved an adapter", adapter=event.adapter, move=event.move, promotion_id=event.promotion_id, offset=place.offset)
    return place


def _key(event: DeadLetter, value: bytes) -> bytes | None:
    """The key of the record's own event; if that cannot be decoded, the noted key, which may be cut."""
    try:
        return BY_NAME[event.source_topic].decode(value).key.encode()
    except InvalidEvent:
        return event.record_key.encode() if event.record_key else None
