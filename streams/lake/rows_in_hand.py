"""Records that kill the lake when their columns are worked out: they keep their bytes and have no columns, and the lake goes on."""

from collections.abc import Callable, Sequence
from typing import Any

from streams.core.errors import InvalidEvent
from streams.core.poison_records import RecordInHand
from streams.kafka import Record
from streams.lake.event_columns import EventColumns

PART = "the lake"
DEADLY = "deadly"
CAREFUL_ROWS = 50_000
"""So many rows are tried one by one after a death: more than wait between two writes."""


class RowsInHand:
    """Works out the columns of many rows at once until the lake has died of some; then of each row alone first, so that the next death names one."""

    def __init__(self, in_hand: RecordInHand, set_aside: Callable[[Record, InvalidEvent], None]) -> None:
        """``set_aside`` is told of each such record once. It may raise Unavailable."""
        self._in_hand, self._set_aside = in_hand, set_aside
        self._careful: dict[str, int] = {}
        """Rows that are yet to be tried one by one, by topic."""

    def columns(self, columns: EventColumns, topic: str, records: Sequence[Record]) -> tuple[list[str | None], list[Any]]:
        """As ``EventColumns.of``; ``deadly`` is the reason of a record that has killed the lake."""
        together = (f"{topic}, together", 0, 0)
        if self._in_hand.died_at(*together) and self._careful.setdefault(topic, CAREFUL_ROWS) > 0:
            self._careful[topic] -= len(records)
            for record in records:
                if not self._in_hand.is_deadly(record.topic, record.partition, record.offset):
                    with self._in_hand.working_on(record.topic, record.partition, record.offset, PART, survives=False):
                        columns.of([record.value])
            if self._careful[topic] <= 0:
                self._in_hand.forget(*together)
            return self._of_the_living(columns, records)
        with self._in_hand.working_on(*together, PART, survives=False):
            return self._of_the_living(columns, records)

    def _of_the_living(self, columns: EventColumns, records: Sequence[Record]) -> tuple[list[str | None], list[Any]]:
        dead = {number for number, r in enumerate(records) if self._in_hand.is_deadly(r.topic, r.partition, r.offset)}
        for record in (records[number] for number in dead):
            if self._in_hand.first_told(record.topic, record.partition, record.offset):
                self._set_aside(record, InvalidEvent(DEADLY, f"{PART} died twice while it worked out the columns of this record"))
        reasons, arrays = columns.of([None if number in dead else record.value for number, record in enumerate(records)])
        return [DEADLY if number in dead else reason for number, reason in enumerate(reasons)], arrays
