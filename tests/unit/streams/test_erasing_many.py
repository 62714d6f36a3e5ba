"""Many people are erased at once as each would be alone, in one pass; each lake answers for itself; the certificate says only what is true."""

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.operate import erasure_certificate
from infra.operate.erasure_certificate import Certificate, certified, lakes_among
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.clock import FixedClock
from streams.core.events import AdapterVersion, Artifact, Attestation, DeadLetter, Episode, Erased, Erasure, Feedback, RewardModelVersion
from streams.core.metrics import Metrics
from streams.core.part_context import PartContext
from streams.core.topics import ADAPTERS, ATTESTATIONS, DEAD_LETTERS, EPISODES, ERASED, ERASURES, FEEDBACK, REWARD_MODELS
from streams.erasure.erasure_follower import ErasureRequest
from streams.join.episode_state import EpisodeState, KnownEpisode
from streams.join.feedback_join import DEFAULT_EVIDENCE
from streams.join.join_settings import JoinSettings
from streams.join.sqlite_state import PartitionState
from streams.kafka import Record
from streams.lake.lake_erasure import LakeErasure
from streams.lake.lake_session import carry_out_erasures
from streams.lake.lake_settings import LakeSettings
from streams.lake.parquet_lake import Lake
from tests.support.simulated_clients import at, install, producer
from tests.support.simulated_log import SimulatedLog

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PEOPLE = [f"person-{number}" for number in range(1000)]


class CountingLake(Lake):
    """Counts how often its files are read."""

    read = 0

    def records_of(self, topic: Any, file: Any) -> Any:
        self.read += 1
        return super().records_of(topic, file)


def filled(folder: Path) -> CountingLake:
    """Every person asked once and judged the next one's answer; every tenth is in a dead letter of no use here; one model and adapter learned."""
    lake, artifact = CountingLake(str(folder)), Artifact(path="a", sha256="0" * 64, size_bytes=1)
    episodes = [Episode.model_validate({"episode_id": f"ep-{n}", "user_id": user, "messages": [{"role": "user", "content": f"words of {user}"}],
                                  "started_at": NOW, "ended_at": NOW}) for n, user in enumerate(PEOPLE)]  # fmt: skip
    thumbs = [Feedback.model_validate({"feedback_id": f"f-{n}", "episode_id": f"ep-{(n + 1) % 1000}", "user_id": user, "kind": "thumb",
                                       "thumb": "up", "at": NOW}) for n, user in enumerate(PEOPLE)]  # fmt: skip
    adapter = AdapterVersion(policy="default", version=1, artifact=artifact, base_fingerprint="0" * 64, rank=8, targets=("q",), step=1,
                             reward_model_version=1, created_at=NOW)  # fmt: skip
    model = RewardModelVersion(policy="default", version=1, artifact=artifact, backbone_fingerprint="0" * 64, labels=9, offsets={}, created_at=NOW,
                               calibration={"labels": 9, "accuracy": 0.8, "baseline": 0.6, "brier": 0.1, "ece": 0.05},
                               newest_feedback_at=NOW)  # type: ignore[arg-type]  # fmt: skip
    for topic, events in ((EPISODES, episodes), (FEEDBACK, thumbs), (ADAPTERS, [adapter]), (REWARD_MODELS, [model])):
        for part in range(0, len(events), 200):
            records = [Record(topic.name, 0, part + n, 5, each.key.encode(), each.encode()) for n, each in enumerate(events[part : part + 200])]
            lake.write(topic, records)  # type: ignore[arg-type]
    return lake


def requests(people: list[str]) -> list[ErasureRequest]:
    return [ErasureRequest(Erasure.of(user, "operator", NOW), number, 10) for number, user in enumerate(people)]


def test_a_thousand_people_cost_one_pass_and_each_gets_the_report_that_they_would_get_alone(tmp_path: Path) -> None:
    together, alone = filled(tmp_path / "together"), filled(tmp_path / "alone")
    erasure = LakeErasure(together, ArtifactStore(str(tmp_path / "artifacts")), JoinSettings())
    told = erasure.erase_all(requests(PEOPLE[:900]), NOW)
    assert together.read <= 4 * 10  # its files, the media and the versions: however many people there are
    by_one = LakeErasure(alone, ArtifactStore(str(tmp_path / "artifacts")), JoinSettings())
    assert [by_one.erase(each.erasure, 10, NOW) for each in requests(PEOPLE[:5])] == told[:5]
    assert all(report.removed["episodes"] == report.removed["feedback"] == 1 for report in told)
    assert told[0].learned == ("adapter default@1",)
    left = b"".join(record.value or b"" for topic in (EPISODES, FEEDBACK) for record in together.records(topic))
    assert [user for user in PEOPLE if f'"{user}"'.encode() in left] == PEOPLE[900:]


def test_each_lake_answers_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = install(monkeypatch, SimulatedLog())
    producer().publish(ERASURES, Erasure.of("ann", "operator", NOW))
    for name in (None, "archive", None):
        settings = LakeSettings(name=name)
        context = PartContext(at("test"), ArtifactStore(str(tmp_path)), "default", tmp_path, tmp_path, clock=FixedClock(NOW))
        lake = LakeErasure(Lake(str(tmp_path / f"lake-{name}")), context.artifacts, DEFAULT_EVIDENCE, where=settings.reports_as)
        carry_out_erasures(lake, context)
    reports = log.events(ERASED)
    assert sorted((each.part, each.where) for each in reports) == [("lake", "files"), ("lake", "files of archive")]


def test_a_certificate_waits_for_every_lake_and_every_actor_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, SimulatedLog())
    erasure = Erasure.of("ann", "operator", NOW)

    def report(where: str, days_ago: float, of: Erasure) -> Erased:
        when = NOW - timedelta(days=days_ago)
        return Erased(person=of.person, part="lake", where=where, removed={}, erasure_at=of.at, at=when)

    bob = Erasure.of("bob", "operator", NOW - timedelta(days=9))
    reports = [report("files of archive", 9, bob), report("files of retired", 90, bob), report("files", 0, erasure)]
    assert lakes_among(reports, erasure) == {"lake (files of archive)", "lake (files)"}
    for replica, minutes in (("r-1", 5), ("r-gone", 600)):
        producer().publish(ATTESTATIONS, Attestation(replica=replica, adapter="default@1", adapter_sha256="0" * 64, passed=True, reason="attested",
                                                     load_ms=1.0, at=NOW - timedelta(minutes=minutes)))  # fmt: skip
    replicas = erasure_certificate.replicas_alive(at("test"), NOW, Metrics())
    assert replicas == {"actor (r-1)"}
    found = certified(erasure, reports[2:], None, range(1), sorted({*lakes_among(reports, erasure), *replicas}))
    assert [line.split(" has not")[0] for line in found.waiting] == [
        "join (partition 0)", "learner (prompts)", "actor (r-1)", "lake (files of archive)",
    ]  # fmt: skip


def test_had_nothing_is_not_said_of_somebody_who_is_on_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, SimulatedLog())
    for user, number in (("ann", 1), ("ann", 2), ("bob", 3)):
        producer().publish(EPISODES, Episode.model_validate({"episode_id": f"ep-{number}", "user_id": user, "messages": [], "started_at": NOW,
                                                             "ended_at": NOW}))  # fmt: skip
    letter = DeadLetter(source_topic="otlp", source_partition=-1, source_offset=-1, reason="invalid", message="m", part="otlp", at=NOW,
                        record_base64=base64.b64encode(b'{"user.id": "ann"}').decode())  # fmt: skip
    producer().publish(DEAD_LETTERS, letter)
    found = erasure_certificate.on_the_log(at("test"), Erasure.of("ann", "operator", NOW), Metrics())
    assert found == {"episodes": 2, "dead-letters": 1}
    told = str(Certificate("0" * 64, "now", {"lake (files)": {"episodes": 0}}, on_the_log=found))
    assert "had nothing" not in told
    assert "2 episodes" in told
    assert "had nothing" in str(Certificate("0" * 64, "now", {"lake (files)": {"episodes": 0}}))


def test_what_the_join_deletes_is_overwritten_without_rewriting_the_file(tmp_path: Path) -> None:
    path = tmp_path / "join.sqlite3"
    state = PartitionState(path, 10)
    statements: list[str] = []
    state._database.set_trace_callback(statements.append)
    for number in range(50):
        known = KnownEpisode(policy="default", tenant="default", user_id=f"u-{number}", adapter=None, outcome="completed", messages=(),  # type: ignore[arg-type]
                             answer=f"words of person {number} " * 200, ended_at=NOW)  # fmt: skip
        state[f"ep-{number}"] = EpisodeState(known=known, feedback=(), expires_at=NOW, erasures=0)
    state.commit({})
    del state["ep-7"]
    state.commit({})
    state.wipe_log()
    kept = path.read_bytes() + Path(f"{path}-wal").read_bytes()
    assert b"words of person 7 " not in kept
    assert b"words of person 8 " in kept
    assert not any("VACUUM" in statement for statement in statements)
