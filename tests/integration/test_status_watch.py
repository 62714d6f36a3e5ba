"""``tidemill status --watch`` on a real Kafka: what comes while it runs is shown."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest

from infra.build.reference_pages import EXAMPLES
from infra.operate.ring_status import Status, follow_status, show_again
from infra.settings.config import load
from streams.core.metrics import Metrics
from streams.core.topics import LABELS
from streams.kafka import KafkaSettings, Producer

ROOT = Path(__file__).parents[2]


def test_what_comes_while_it_watches_is_shown(kafka_settings: KafkaSettings, capsys: pytest.CaptureFixture[str]) -> None:
    producer, stopping, seen = Producer(kafka_settings, Metrics(), "test"), Event(), []

    def show(status: Status) -> None:
        seen.append(status.as_dict()["labels"])
        if len(seen) == 1:
            producer.publish(LABELS, LABELS.event.model_validate(EXAMPLES["labels"]))
        if seen[-1] or len(seen) > 60:
            show_again(status, as_json=False)
            stopping.set()

    follow_status(load(None, (f"kafka.bootstrap_servers={kafka_settings.bootstrap_servers}",), {}), show, stopping, every_s=0.5)
    producer.close()
    assert (seen[0], seen[-1]) == (0, 1)
    assert "labels          1 (1 votes)" in capsys.readouterr().out


def test_the_command_tells_a_line_a_turn_and_ends_when_told(kafka_settings: KafkaSettings) -> None:
    words = ["status", "--watch", "--json", "--set", f"kafka.bootstrap_servers={kafka_settings.bootstrap_servers}"]
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "infra.cli", *words], cwd=ROOT, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
    assert told["ledger_balanced"] is True
