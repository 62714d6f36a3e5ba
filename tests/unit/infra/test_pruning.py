"""Pruning keeps whatever may still be needed, and deletes nothing where the log cannot say what that is."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.cli.main import main
from infra.operate import pruning
from infra.operate.pruning import InUse, plan
from infra.settings.config import Settings, load
from streams.artifacts.artifact_store import MANIFEST, ArtifactStore
from streams.core.errors import ConfigError
from streams.core.events import AdapterVersion, Artifact, Attestation, Calibration, Event, Promotion, RewardModelVersion
from streams.core.topics import ADAPTERS, ATTESTATIONS, PROMOTIONS, REWARD_MODELS, Topic
from streams.kafka import KafkaSettings, Record

NOW = datetime(2026, 3, 1, tzinfo=UTC)
FEW = ("prune.keep_adapters=2", "prune.keep_reward_models=2")


class Ring:
    """Versions in a store, and the log that tells of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, ArtifactStore(str(folder / "artifacts"))
        self.events: dict[Topic[Event], list[Event]] = {}

    def say(self, topic: Topic[Event], event: Event) -> None:
        self.events.setdefault(topic, []).append(event)

    def stored(self, path: str) -> Artifact:
        content = self.folder / "content"
        content.mkdir(exist_ok=True)
        (content / "a.json").write_text(path)
        return self.store.put(content, path)

    def adapters(self, *versions: int, policy: str = "default") -> None:
        for version in versions:
            artifact = self.stored(f"adapters/{policy}/{version}-abc{version}")
            self.say(ADAPTERS, AdapterVersion(policy=policy, version=version, artifact=artifact, base_fingerprint="1" * 64, rank=8,
                                              targets=("q_proj",), reward_model_version=version, step=version, created_at=NOW))  # fmt: skip

    def reward_models(self, *versions: int, best: int | None = None) -> None:
        """The topic is compacted: of these it may hold the last alone."""
        stored = {version: self.stored(f"reward-models/default/{version:06d}-def{version}") for version in versions}
        artifact = stored[versions[-1]]
        calibration = Calibration(labels=9, log_loss=0.5, baseline=0.6, brier=0.2, ece=0.1, accuracy=0.7)
        self.say(REWARD_MODELS, RewardModelVersion(policy="default", version=versions[-1], artifact=artifact, backbone_fingerprint="2" * 64, labels=9,
                                                   calibration=calibration, offsets={}, newest_feedback_at=NOW, created_at=NOW,
                                                   best=stored[best] if best else None))  # fmt: skip

    def moved(self, version: int, *moves: str) -> None:
        for move in moves:
            number = len(self.events.get(PROMOTIONS, []))
            self.say(PROMOTIONS, Promotion(promotion_id=f"p{number}", policy="default", adapter=f"default@{version}", move=move, reason="x",
                                           by="ann", at=NOW + timedelta(seconds=number)))  # type: ignore[arg-type]  # fmt: skip

    def served(self, version: int, at: datetime) -> None:
        self.say(ATTESTATIONS, Attestation(replica="r1", adapter=f"default@{version}", adapter_sha256="3" * 64, passed=True, reason="attested",
                                           load_ms=1, at=at))  # fmt: skip

    def settings(self, *overrides: str) -> Settings:
        return load(None, (f"run_folder={self.folder}", "kafka.bootstrap_servers=nobody:1", *FEW, *overrides), {})

    def gone(self, *overrides: str) -> list[str]:
        used = InUse("default")
        for events in self.events.values():
            for event in events:
                used.take(event)
        return [path.split("-")[0 if path.startswith("a") else 1] for path in plan(self.store, used, self.settings(*overrides), NOW).unneeded]


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    return Ring(tmp_path)


def test_the_newest_stay_and_older_ones_go(ring: Ring) -> None:
    ring.adapters(1, 2, 3, 4, 5, policy="other")
    ring.adapters(1, 2, 3, 4, 5)
    assert ring.gone() == ["adapters/default/1", "adapters/default/2", "adapters/default/3"]
    assert ring.gone("prune.keep_adapters=4") == ["adapters/default/1"]


def test_production_what_to_go_back_to_and_what_is_tried_stay_however_old(ring: Ring) -> None:
    ring.adapters(*range(1, 10))
    ring.moved(1, "promoted")
    ring.moved(2, "promoted")
    ring.moved(3, "promoted", "rolled_back")
    ring.moved(4, "promoted")
    ring.moved(6, "candidate", "shadow")
    gone = ["adapters/default/3", "adapters/default/5", "adapters/default/7"]
    assert ring.gone() == gone
    assert ring.gone("prune.keep_productions=1") == ["adapters/default/1", *gone]
    ring.moved(6, "rejected")
    assert ring.gone() == ["adapters/default/3", "adapters/default/5", "adapters/default/6", "adapters/default/7"]


def test_what_may_be_tried_some_night_stays_where_adapters_are_tried(ring: Ring) -> None:
    ring.adapters(*range(1, 8))
    ring.moved(3, "promoted")
    assert ring.gone("promotion.mode=gated") == ["adapters/default/1", "adapters/default/2"]
    assert ring.gone("promotion.mode=newest") == [f"adapters/default/{version}" for version in (1, 2, 4, 5)]


def test_what_a_replica_served_lately_stays(ring: Ring) -> None:
    ring.adapters(*range(1, 6))
    ring.served(1, NOW - timedelta(hours=2))
    ring.served(2, NOW - timedelta(minutes=30))
    assert ring.gone() == ["adapters/default/1", "adapters/default/3"]


def test_the_reward_model_that_predicts_best_stays_however_old(ring: Ring) -> None:
    ring.reward_models(*range(1, 8), best=2)
    assert ring.gone() == [f"models/default/{version:06d}" for version in (1, 3, 4, 5)]


def test_reward_models_of_adapters_that_stay_stay_too(ring: Ring) -> None:
    ring.adapters(1, 2, 3)
    ring.moved(1, "promoted")
    ring.reward_models(*range(1, 8))
    assert ring.gone() == [f"models/default/{version:06d}" for version in (4, 5)]


def test_what_is_just_being_published_stays(ring: Ring) -> None:
    ring.adapters(1, 2, 3)
    ring.reward_models(2, 3)
    ring.stored("adapters/default/4-abc")
    ring.stored("adapters/default/3-dead")
    ring.stored("reward-models/default/000004-abc")
    (ring.folder / "artifacts/adapters/default/1-abc1" / MANIFEST).unlink()  # not finished
    assert ring.gone() == ["adapters/default/3"]  # left behind by a publisher that was killed: the log names another of that number


@pytest.mark.parametrize("kind", ["adapters", "reward-models"])
def test_nothing_goes_when_the_log_does_not_know_what_is_stored(ring: Ring, kind: str) -> None:
    ring.stored(f"{kind}/default/1-abc")
    with pytest.raises(ConfigError, match="do not match"):
        ring.gone()


def test_nothing_goes_when_what_is_in_use_is_not_stored(ring: Ring) -> None:
    ring.adapters(1, 2, 3, 4)
    ring.moved(1, "promoted")
    ring.store.remove("adapters/default/2-abc2")
    assert ring.gone() == []
    ring.store.remove("adapters/default/1-abc1")
    with pytest.raises(ConfigError, match="default/1-abc1 is in use but not stored"):
        ring.gone()


def test_the_command_shows_first_deletes_when_told_and_refuses_what_it_cannot_read(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    ring.adapters(1, 2, 3)
    broken: list[Record] = []

    def log(_: KafkaSettings, topic: Topic[Event], *__: object) -> list[Record]:
        events = ring.events.get(topic, [])
        found = [Record(topic.name, 0, n, 0, event.key.encode(), event.encode()) for n, event in enumerate(events)]
        return [*found, *(record for record in broken if record.topic == topic.name)]

    monkeypatch.setattr(pruning, "read_to_end", log)
    options = ["prune", *(part for each in (f"run_folder={ring.folder}", "kafka.bootstrap_servers=nobody:1", *FEW) for part in ("--set", each))]
    shown = CliRunner().invoke(main, [*options, "--dry-run"])
    assert shown.exit_code == 0
    asked = CliRunner().invoke(main, options)
    assert (asked.exit_code, "Add --yes to delete 1 artifacts" in asked.output) == (2, True), "nobody can be asked here"
    assert "adapters/default/1-abc1" in shown.output
    assert "1 artifacts are not needed" in shown.output
    assert len(ring.store.below("adapters/default")) == 3
    broken.append(Record(PROMOTIONS.name, 0, 7, 0, b"default", b'{"schema_version": 99}'))
    refused = CliRunner().invoke(main, [*options, "--delete"])
    assert refused.exit_code == 1
    assert f"{PROMOTIONS.name}/0/7 cannot be read" in refused.output
    assert len(ring.store.below("adapters/default")) == 3
    broken.clear()
    assert json.loads(CliRunner().invoke(main, [*options, "--dry-run", "--json"]).stdout)["unneeded"].keys() == {"adapters/default/1-abc1"}
    assert CliRunner().invoke(main, [*options, "--yes"]).exit_code == 0
    assert sorted(ring.store.below("adapters/default")) == ["adapters/default/2-abc2", "adapters/default/3-abc3"]
