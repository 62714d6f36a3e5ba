"""One trace through a real Kafka: an answer is captured, joined with its thumb, a reward model is refitted, an adapter published and loaded."""

import json
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from actor.adapters.adapter_loader import AdapterLoader
from actor.capture.episode_publisher import EpisodePublisher
from actor.redaction.redaction import Rules
from actor.settings import ActorSettings
from learner.ring.adapter_publisher import AdapterPublisher, Exported
from learner.settings import LearnerSettings
from reward.updater.refitter import Refitter
from reward.updater.version_publisher import VersionPublisher
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import Episode, Feedback, FeedbackKind, Message
from streams.core.metrics import Metrics
from streams.core.part_context import PartContext
from streams.core.topics import ADAPTERS, ATTESTATIONS, FEEDBACK, LABELS, REWARD_MODELS, Topic
from streams.core.traces import Traces, context_from_header
from streams.join import join_loop as joiner
from streams.join.join_settings import JoinSettings
from streams.kafka import KafkaSettings, Producer, Record, read_to_end
from streams.outbox.outbox import Outbox
from tests.support.adapter_files import adapter_weights
from tests.unit.actor.test_adapter_loader import CONFIG, PROBE, Engine
from tests.unit.reward.test_refitter import SMALL, CountedLetters

CLIENT = f"00-{'ab' * 16}-{'cd' * 8}-01"
STAGES = {"capture": "actor", "join": "streams", "refit": "reward", "step": "learner", "load": "actor"}
COUNT = 6


class World:
    """Every part's context on one Kafka, each with traces of its own."""

    def __init__(self, kafka: KafkaSettings, folder: Path) -> None:
        base = folder / "base"
        base.mkdir()
        (base / "config.json").write_text("{}")
        self.kafka, self.spans = kafka, {part: InMemorySpanExporter() for part in set(STAGES.values())}
        store = ArtifactStore(str(folder / "store"))
        self.sites = {
            part: PartContext(kafka, store, "default", base, folder / part, traces=Traces(part, exporter)) for part, exporter in self.spans.items()
        }
        self.producer = Producer(kafka, Metrics(), "test")

    def wait_for(self, topic: Topic[Any], count: int = 1) -> list[Record]:
        until = time.monotonic() + 90
        while len(found := list(read_to_end(self.kafka, topic, "test", Metrics()))) < count:
            assert time.monotonic() < until, f"{len(found)} of {count} on {topic.name}"
            time.sleep(0.2)
        return found

    def span(self, stage: str) -> Any:
        """The newest of a stage that continues another."""
        return [span for span in self.spans[STAGES[stage]].get_finished_spans() if span.name == stage][-1]


def test_one_trace_leads_from_the_question_to_the_adapter_that_was_loaded(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    world = World(kafka_settings, tmp_path)
    actor, streams, reward, learner = (world.sites[part] for part in ("actor", "streams", "reward", "learner"))
    outbox = Outbox(tmp_path / "outbox.sqlite", lambda: Producer(kafka_settings, Metrics(), "actor"), Metrics(), "actor")
    joining = threading.Thread(target=joiner.run, args=(JoinSettings(), streams))
    follower = AdapterLoader(ActorSettings(poll_s=0.05), actor, Engine(), outbox, "replica")  # type: ignore[arg-type]
    joining.start()
    try:
        publisher, now = EpisodePublisher(outbox, Metrics(), ActorSettings(), Rules(()), traces=actor.traces), datetime.now(UTC)
        for number in range(COUNT):
            said = (Message(role="user", content="tea?"),)
            answer = "you " * (number % 3)
            publisher.publish(
                Episode(episode_id=f"ep-{number}", messages=said, answer=answer, started_at=now, ended_at=now), context_from_header(CLIENT)
            )
            thumb = Feedback(
                feedback_id=f"fb-{number}", episode_id=f"ep-{number}", kind=FeedbackKind.THUMB, thumb="up" if number % 2 else "down", at=now
            )
            world.producer.publish(FEEDBACK, thumb)
        labels = world.wait_for(LABELS, COUNT)

        versions, refitter = VersionPublisher(SMALL, reward, world.producer, CountedLetters.fingerprint), Refitter(SMALL, CountedLetters())
        refitter.absorb(refitter.prepare([LABELS.decode(record.value) for record in labels]))
        versions.continue_traces([record.headers for record in labels])
        model = versions.refit_and_publish(refitter, {0: COUNT})
        assert model is not None

        made = tmp_path / "made"
        made.mkdir()
        (made / "adapter_config.json").write_text(json.dumps(CONFIG))
        (made / "adapter_model.safetensors").write_bytes(adapter_weights())
        (made / "probes.json").write_text(json.dumps({"probes": [PROBE]}))
        (refitted,) = world.wait_for(REWARD_MODELS)
        publisher = AdapterPublisher(LearnerSettings(), learner, world.producer)
        publisher.publish(Exported(made, ("q_proj",), 1, {}), model, now, refitted.headers)
        follower.start()
        (attested,) = world.wait_for(ATTESTATIONS)
        assert ATTESTATIONS.decode(attested.value).passed, attested.value
    finally:
        for context in world.sites.values():
            context.stopping.set()
        joining.join(30)
        follower.join(30)
        outbox.close()
        world.producer.close()
        for context in world.sites.values():
            context.traces.close()

    chain = [world.span(stage) for stage in STAGES]
    assert {f"{span.context.trace_id:032x}" for span in chain} == {"ab" * 16}
    captures = {span.context.span_id for span in world.spans["actor"].get_finished_spans() if span.name == "capture"}
    joins = {span.context.span_id for span in world.spans["streams"].get_finished_spans()}
    refit, step, load = chain[2:]
    assert len(captures) == len(joins) == COUNT
    assert chain[1].parent.span_id in captures
    assert refit.parent.span_id in joins
    assert {refit.parent.span_id, *(link.context.span_id for link in refit.links)} == joins
    assert (step.parent.span_id, load.parent.span_id) == (refit.context.span_id, step.context.span_id)
    assert dict(attested.headers)["traceparent"].decode() == f"00-{'ab' * 16}-{load.context.span_id:016x}-01"
    assert ADAPTERS.decode(world.wait_for(ADAPTERS)[0].value).version == 1
