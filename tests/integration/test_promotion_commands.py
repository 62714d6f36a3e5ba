"""A person moves adapters by command, on a real Kafka."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from infra.cli.main import main
from streams.core.events import AdapterVersion, Artifact, Promotion, new_id
from streams.core.metrics import Metrics
from streams.core.topics import ADAPTERS, PROMOTIONS
from streams.kafka import KafkaSettings, Producer

T0 = datetime(2026, 1, 1, 3, 0, tzinfo=UTC)
UPLIFT = {"uplift": 0.12, "low": 0.03, "high": 0.21, "candidate": {"labels": 240, "mean": 0.7}}


class Desk:
    """A policy, and what an operator types about it."""

    def __init__(self, kafka: KafkaSettings, folder: Path, policy: str) -> None:
        self._kafka, self._folder, self.policy, self._moves = kafka, folder, policy, 0
        self._producer = Producer(kafka, Metrics(), "test")
        for version in (1, 2, 3):
            self._producer.publish(ADAPTERS, AdapterVersion(
                policy=policy, version=version, artifact=Artifact(path="a", sha256="0" * 64, size_bytes=1), base_fingerprint="1" * 64, rank=8,
                targets=("q_proj",), reward_model_version=1, step=1, created_at=T0, parent=version - 1 or None, metrics={"device_s": 100.0 * version},
            ))  # fmt: skip

    def machine(self, version: int, *moves: str, **last: Any) -> None:
        for number, move in enumerate(moves):
            self._moves += 1
            given = {"promotion_id": new_id("pr"), "policy": self.policy, "adapter": f"{self.policy}@{version}", "move": move, "reason": "test",
                     "at": T0 + timedelta(minutes=self._moves)} | (last if number == len(moves) - 1 else {})  # fmt: skip
            self._producer.publish(PROMOTIONS, Promotion.model_validate(given))

    def type(self, *words: str) -> Result:
        known = ("--set", f"kafka.bootstrap_servers={self._kafka.bootstrap_servers}", "--set", f"policy.name={self.policy}",
                 "--set", f"run_folder={self._folder}", "--set", "promotion.mode=gated")  # fmt: skip
        return CliRunner().invoke(main, [*words, *known], env={"COLUMNS": "200"})

    @property
    def told(self) -> dict[str, Any]:
        found = self.type("promotions", "--json")
        assert found.exit_code == 0, found.output
        return dict(json.loads(found.output))


@pytest.fixture
def desk(kafka_settings: KafkaSettings, tmp_path: Path, request: pytest.FixtureRequest) -> Desk:
    return Desk(kafka_settings, tmp_path, f"desk-{request.node.name.count('_')}-{len(request.node.name)}")


def test_a_trial_is_told_with_its_uplift_and_the_labels_it_took(desk: Desk) -> None:
    desk.machine(1, "candidate", "shadow", "canary", "promoted", evidence=UPLIFT)
    desk.machine(2, "candidate", "rejected", reason="retention: 3 of 24 probes right, the base 20")
    told = desk.told
    assert (told["production"], told["previous"], told["trial"]) == (f"{desk.policy}@1", None, None)
    first, second = told["trials"]
    assert (first["moves"], first["labels_spent"], first["uplift"], first["seconds"]) == (
        ["candidate", "shadow", "canary", "promoted"],
        240,
        0.12,
        180,
    )
    assert (second["moves"], "uplift" in second) == (["candidate", "rejected"], False)
    text = desk.type("promotions").output
    assert "uplift +0.120 (+0.030 to +0.210), 240 labels" in text
    assert "retention: 3 of 24" in text


def test_a_trial_tells_what_it_cost_to_learn_since_production_and_to_try(desk: Desk) -> None:
    desk.machine(1, "candidate", "shadow", "canary", "promoted", evidence=UPLIFT)
    desk.machine(3, "candidate")
    desk.machine(3, "shadow", evidence={"device_s": 20.0})
    desk.machine(3, "canary", evidence={"device_s": 4.0})
    desk.machine(3, "promoted", evidence=UPLIFT, canary_share=0.95)
    desk.machine(3, "promoted", evidence={"after": {"uplift": 0.5}}, canary_share=1.0)
    first, second = desk.told["trials"]
    assert (first["device_s"], first["labels_per_point"]) == (100.0, 20.0)
    assert (second["device_s"], second["uplift"], second["moves"][-2:]) == (200 + 300 + 24, 0.12, ["promoted", "promoted"])
    assert second["device_s_per_point"] == round(524 / 12, 1)
    assert "524 device-s (a point: 20 labels, 43.7 device-s)" in desk.type("promotions").output


def test_what_is_held_back_on_the_production_before_is_told(desk: Desk) -> None:
    desk.machine(1, "candidate", "shadow", "canary", "promoted", canary_share=0.95)
    assert "5% of conversations stay with base" in desk.type("promotions").output
    assert desk.told["share"] == 0.95


def test_promote_puts_on_trial_and_only_with_now_into_production(desk: Desk) -> None:
    assert desk.type("promote", f"{desk.policy}@2", "--by", "ann").exit_code == 0
    assert desk.told["trial"]["adapter"] == f"{desk.policy}@2"
    for more, status in ((("--dry-run",), 0), ((), 2)):
        assert desk.type("promote", f"{desk.policy}@3", "--now", *more).exit_code == status
        assert desk.told["production"] is None, "nothing was written"
    assert desk.type("promote", f"{desk.policy}@3", "--now", "--yes", "--by", "ann", "--reason", "urgent").exit_code == 0
    told = desk.told
    assert (told["production"], told["trial"]) == (f"{desk.policy}@3", None)
    assert (told["trials"][-1]["by"], told["trials"][-1]["reason"]) == ("ann", "urgent")


def test_a_rollback_goes_one_back_or_where_it_is_told_to(desk: Desk) -> None:
    for version in (1, 2, 3):
        desk.type("promote", f"{desk.policy}@{version}", "--now", "--yes")
    said = desk.type("rollback")
    assert f"in production: {desk.policy}@2" in said.output
    assert f"in production: {desk.policy}@3" in desk.type("rollback", "--to", f"{desk.policy}@3").output
    assert "in production: base" in desk.type("rollback", "--to", f"{desk.policy}@0").output
    assert desk.type("rollback").exit_code == 1


def test_the_trial_alone_may_be_ended(desk: Desk) -> None:
    desk.type("promote", f"{desk.policy}@1", "--now", "--yes")
    desk.machine(2, "candidate", "shadow", "canary", canary_share=0.1)
    assert desk.type("rollback", "--trial").exit_code == 0
    told = desk.told
    assert (told["production"], told["trial"], told["trials"][-1]["moves"][-1]) == (f"{desk.policy}@1", None, "rolled_back")


def test_only_what_has_shown_itself_better_can_be_approved(desk: Desk) -> None:
    desk.machine(1, "candidate", "shadow", "canary", canary_share=0.1)
    assert desk.type("approve").exit_code == 1
    desk.machine(1, "canary", awaits_approval=True, evidence=UPLIFT)
    text = desk.type("promotions").output
    assert "awaits approval" in text
    assert '"uplift": 0.12' in text
    assert desk.type("approve", "--yes", "--by", "ann").exit_code == 0
    told = desk.told
    assert told["production"] == f"{desk.policy}@1"
    assert (told["trials"][0]["by"], told["trials"][0]["labels_spent"]) == ("ann", 240)


REFUSED: list[tuple[Callable[[Desk], list[str]], str]] = [
    (lambda desk: ["promote", f"{desk.policy}@9"], "was never published"),
    (lambda desk: ["promote", f"{desk.policy}@1"], "it is in production"),
    (lambda desk: ["promote", f"{desk.policy}@2", "--now", "--by", "tidemill"], "is reserved for the promoter"),
    (lambda desk: ["rollback", "--to", "other@1"], "is not a version of"),
    (lambda desk: ["rollback", "--trial"], "no adapter is on trial"),
]


def test_what_would_be_void_is_refused_with_its_reason_and_not_written(desk: Desk) -> None:
    desk.type("promote", f"{desk.policy}@1", "--now", "--yes")
    before = desk.told
    for words, reason in REFUSED:
        said = desk.type(*words(desk))
        assert (said.exit_code, reason in said.output) == (1, True), said.output
    assert desk.told == before
