"""An actor's outbox as a process: puts the events of a file one by one and remembers how far it is, so that a kill repeats one at most.

``python -m tests.chaos.publishing KAFKA FOLDER EVENTS PER_SECOND FSYNC``
"""

import os
import sys
import time
from pathlib import Path

from infra.local.part_logs import log_json
from streams.core.events import Episode
from streams.core.metrics import Metrics
from streams.core.topics import EPISODES, FEEDBACK
from streams.kafka import KafkaSettings, Producer
from streams.outbox.outbox import Outbox
from streams.outbox.outbox_settings import OutboxSettings
from tests.chaos.history import read


def main(kafka: str, folder: Path, events: Path, per_second: float, fsync: str) -> None:
    """Publish all, then wait until Kafka has all, say so with a file, and end."""
    settings, metrics = KafkaSettings.model_validate_json(kafka), Metrics()
    chosen = OutboxSettings.model_validate({"outbox_fsync": fsync})
    outbox = Outbox(folder / "outbox.sqlite", lambda: Producer(settings, metrics, "tidemill-actor"), metrics, "actor", chosen)
    if outbox.lost:
        with (folder / "lost").open("a") as told:
            told.write(f"{outbox.lost}\n")
    place = os.open(folder / "place", os.O_RDWR | os.O_CREAT)
    reached = int(os.pread(place, 20, 0) or b"0")
    for number, event in enumerate(read(events)):
        if number < reached:
            continue
        while not outbox.put(EPISODES if isinstance(event, Episode) else FEEDBACK, event):
            time.sleep(0.2)  # as a client does that is told to come again later
        os.pwrite(place, b"%020d" % (number + 1), 0)
        time.sleep(1 / per_second)
    while not outbox.wait_until_empty(1):
        pass
    (folder / "done").touch()
    outbox.close()


if __name__ == "__main__":
    log_json("actor")
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
