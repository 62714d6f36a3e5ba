"""Two reward updaters that share the labels, and one that is killed: every version is built on all labels that it names, and on no half of them."""

import signal
import time
from pathlib import Path

from infra.local.embedded_broker import Broker, BrokerSettings, free_port
from reward.evaluation.version_replay import Replay, published_model
from reward.features.featurizer import Featurizer
from reward.settings import RewardSettings
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import RewardModelVersion
from streams.core.metrics import Metrics
from streams.core.topics import LABELS, REWARD_MODELS
from streams.kafka import end_offsets, read_to_end
from tests.chaos.child import kafka_at
from tests.chaos.ring import Ring

CHOSEN = {"min_labels": 8, "min_each_verdict": 2, "heads": 4, "folds": 3, "batch_within_s": 0.5, "publish_tolerance_se": 10, "drift_hold_labels": 0}


def test_versions_are_built_on_whole_inputs_through_rebalances_and_kills(tiny_base: Path, tmp_path: Path) -> None:
    reward = RewardSettings.model_validate(CHOSEN)
    overrides = (f"policy.base={tiny_base}", *(f"reward.{name}={value}" for name, value in CHOSEN.items()))
    with (
        Broker(BrokerSettings(port=free_port()), tmp_path / "broker") as broker,
        Ring(tmp_path, kafka_at(broker.bootstrap_servers), episodes=150, per_second=12) as ring,
    ):
        for name in ("reward-a", "reward-b"):
            ring.add_part(name, "reward", *overrides)
        newest: list[RewardModelVersion] = []

        def versions() -> list[RewardModelVersion]:
            newest[:] = [REWARD_MODELS.decode(record.value) for record in read_to_end(ring.kafka, REWARD_MODELS, "test", Metrics())]
            return newest

        def wait_for_a_version(beyond: int) -> None:
            until = time.monotonic() + 180
            while not versions() or newest[-1].version <= beyond:
                assert time.monotonic() < until, ring.children["reward-a"].log.read_text()[-3000:]
                time.sleep(0.5)

        def wait_for(sentence: str, *names: str) -> None:
            until = time.monotonic() + 180
            while not any(sentence in ring.children[name].log.read_text() for name in names):
                assert time.monotonic() < until, ring.children[names[0]].log.read_text()[-3000:]
                time.sleep(0.5)

        ring.start("streams-a", "streams-b", "reward-a", "actor-a")
        wait_for_a_version(0)
        ring.start("reward-b")
        wait_for("buffer_recovered", "reward-b")
        ring.start("actor-b")  # its half comes while both share the labels
        wait_for("another updater holds some of the labels", "reward-a", "reward-b")
        ring.kill("reward-a")
        ring.settle()
        lake, store = ring.lake("streams-a"), ArtifactStore(str(tmp_path / "artifacts"))
        features = Featurizer(tiny_base / "dense", reward)
        everything = Replay(lake, "default", reward, features, partitions=ring.kafka.partitions)
        ends = {partition: end for partition, end in end_offsets(ring.kafka, LABELS, Metrics()).items() if end}
        everything.reach(newest[-1].model_copy(update={"offsets": {LABELS.name: ends}}))
        wanted, until = everything.refitter.fitted().checksum(), time.monotonic() + 240
        while published_model(versions()[-1], store).checksum() != wanted:  # bit for bit what all labels of the lake give
            assert time.monotonic() < until, f"{ends}, {newest[-1]}\n{ring.children['reward-b'].log.read_text()[-3000:]}"
            time.sleep(0.5)
        assert newest[-1].labels == sum(label.verdict is not None for label in ring.expected.values())
        assert [version.version for version in newest] == list(range(1, len(newest) + 1))
        replay = Replay(lake, "default", reward, features, partitions=ring.kafka.partitions)
        differ = []
        for version in newest:
            replay.reach(version)
            differ += [version.version] if replay.refitter.refit().labels != version.labels else []
        assert len(differ) <= 2, f"of {len(newest)} versions {differ} are not built on the labels that they name; the first after a rebalance may be"
        assert ring.children["reward-b"].end(signal.SIGTERM) == 0
