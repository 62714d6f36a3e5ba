"""Reads what the learner needs from the log: recent prompts, feedback on live answers, and the newest reward model, fetched and verified."""

import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import structlog

from learner.ring.fresh_labels import FreshLabels
from learner.ring.labelled_answers import LabelledPool
from learner.ring.prompt_pool import PromptPool
from learner.settings import LearnerSettings
from reward.fit.reward_model import RewardModel
from streams.core.errors import BadArtifact, InvalidEvent
from streams.core.events import AdapterVersion, Episode, Erased, RewardModelVersion
from streams.core.part_context import PartContext
from streams.core.poison_records import RecordInHand
from streams.core.topics import EPISODES, ERASED, LABELS, REWARD_MODELS, Topic
from streams.core.traces import Headers
from streams.erasure.erasure_follower import ErasureFollower, read_erased
from streams.erasure.missed_tombstones import keys_on_log, may_have_missed
from streams.kafka import Consumer, Producer, Record, read_to_end
from streams.kafka.dead_letters import DeadLetters

ERASED_UP_TO = "erased-up-to.json"
"""Offset after the last erasure that the saved prompts have gone through."""
log = structlog.get_logger()


class LogFeed:
    """Reads episodes, labels (when they are used) and reward models without a consumer group: it stores the pools and their offsets itself."""

    def __init__(self, settings: LearnerSettings, context: PartContext, producer: Producer, features: str) -> None:
        self._settings, self._context, self._features = settings, context, features
        self._dead_letters = DeadLetters(producer, context.clock, context.metrics, "learner")
        self._producer = producer
        self._in_hand = RecordInHand(context.state / "feed.in-hand")
        self._erasures = ErasureFollower(context, "learner")
        self._erased_up_to, self._reported_up_to = _erased_up_to(context.state / ERASED_UP_TO), 0
        self._save_due = False
        self._fresh = FreshLabels(settings.steps_without_labels, settings.recent_version_steps)
        self._fresh.load(context.state)
        self._steps = 0
        self._pooled: list[Topic[Any]] = [EPISODES, LABELS] if settings.learns_from_labels or self._fresh.bounds else [EPISODES]
        self._consumer = Consumer(context.kafka, [*self._pooled, REWARD_MODELS], "learner", context.metrics)
        self.prompts = PromptPool(
            context.policy, settings.prompts_kept, settings.tool_prompts, settings.held_out_ratio if settings.evaluate_every else 0.0
        )
        known = {EPISODES.name: self.prompts.load(context.state / "prompts.json"), LABELS.name: True}
        self.labelled = LabelledPool(context.policy, settings.judged_kept, settings.hindsight_replies)
        if settings.learns_from_labels:
            self.labelled.load(context.state / "judged.json")
        for topic in self._pooled:
            if known[topic.name] and (places := context.state / f"{topic.short_name}-offsets.json").exists():
                self._consumer.seek({(topic.name, int(partition)): offset for partition, offset in json.loads(places.read_text()).items()})
        if len(self.labelled) and may_have_missed(context.state / f"{LABELS.short_name}-offsets.json", context.clock.now()):
            self._drop_deleted_labels()
        self._reward: tuple[RewardModelVersion, Path] | None = None
        self.follows: Headers = ()
        """Trace context of the current reward model."""

    @property
    def reward_model(self) -> RewardModelVersion:
        """The newest usable reward model's event. Only when ``is_ready``."""
        return self._current_reward_model()[0]

    @property
    def reward_folder(self) -> Path:
        """Folder of the reward model's files. Only when ``is_ready``."""
        return self._current_reward_model()[1]

    @property
    def is_ready(self) -> bool:
        """True when there are enough prompts and a reward model."""
        return not any(self._lacking().values())

    @property
    def waits_for_labels(self) -> bool:
        """True when all else is there, and a label on an answer of a recent version is not."""
        return [what for what, is_missing in self._lacking().items() if is_missing] == ["labels_of_newest"]

    def read(self, steps: int = 0) -> None:
        """Read new episodes, labels, reward models and erasures from the log, and save what an erasure changed. ``steps`` were taken so far."""
        self._steps = steps
        newest: tuple[Record, RewardModelVersion] | None = None
        self._erasures.poll()
        if self._erasures.end > self._reported_up_to:
            self._erase_people()  # first: what they asked since is read after it, and stays
        while records := self._consumer.poll(timeout_s=0.05):
            for record in records:
                try:
                    with self._in_hand.working_on(record.topic, record.partition, record.offset, "the learner's feed"):
                        if record.topic == EPISODES.name:
                            self._add_prompt(EPISODES.decode(record.value), record.timestamp_ms)
                        elif record.topic == LABELS.name:
                            self._add_label(record)
                        elif (event := REWARD_MODELS.decode(record.value)).policy == self._context.policy:
                            newest = (record, event)
                except InvalidEvent as error:  # join and reward set aside what nobody can decode of the others; twice would count it twice
                    if record.topic == REWARD_MODELS.name or error.reason in ("unusable", "deadly"):
                        self._dead_letters.set_aside(record, error)
        if newest is not None:
            self._take_reward_model(*newest)
        if self._save_due:
            self.save()
        for what, is_missing in (self._lacking() | {"prompts_that_fit": False}).items():
            self._context.metrics.set("tidemill_learner_waiting", float(is_missing), what=what)

    def wait_for_prompts_that_fit(self) -> None:
        """Wait, because all chosen prompts were too long."""
        self._context.metrics.set("tidemill_learner_waiting", 1, what="prompts_that_fit")
        self.wait()

    def wait(self) -> None:
        """Wait a little, and count it."""
        start = time.monotonic()
        self._context.stopping.wait(0.5)
        waited_s = time.monotonic() - start
        self._context.metrics.add("tidemill_learner_waiting_seconds_total", waited_s)
        self._context.metrics.add("tidemill_learner_device_seconds_total", waited_s * devices(self._settings), work="waiting")

    def save(self) -> None:
        """Save the pools, then the offsets of their topics. A record that is read twice is in its pool only once."""
        self.prompts.save(self._context.state / "prompts.json")
        if self._settings.learns_from_labels:
            self.labelled.save(self._context.state / "judged.json")
        for topic in self._pooled:
            places = {partition: offset for (name, partition), offset in self._consumer.positions().items() if name == topic.name}
            incoming = self._context.state / "offsets.incoming"
            incoming.write_text(json.dumps(places))
            incoming.rename(self._context.state / f"{topic.short_name}-offsets.json")
        self._fresh.save(self._context.state)
        incoming = self._context.state / "erased.incoming"
        incoming.write_text(str(self._erased_up_to))
        incoming.rename(self._context.state / ERASED_UP_TO)
        self._save_due = False

    def close(self) -> None:
        """Close the consumers."""
        self._erasures.close()
        self._consumer.close()
        self._in_hand.close()

    def note_versions(self, adapters: Iterable[AdapterVersion]) -> None:
        """Versions were published: labels on their answers may come."""
        for adapter in adapters:
            self._fresh.note_version(adapter)

    def _lacking(self) -> dict[str, bool]:
        return {
            "prompts": len(self.prompts) < self._settings.prompts_needed,
            "reward_model": self._reward is None,
            "labels_of_newest": self._fresh.lacking(self._steps),
        }

    def _add_prompt(self, episode: Episode, arrived_ms: int) -> None:
        if not self._erasures.forgotten.covers(episode.user_id, episode.ended_at, arrived_ms):
            self._count_left_out(self.prompts.add(episode))

    def _drop_deleted_labels(self) -> None:
        """Drop answers whose labels are no more on the log: their tombstones may have gone before they were read. One pass over the labels."""
        gone = self.labelled.keep_only(keys_on_log(self._context.kafka, LABELS, "learner", self._context.metrics))
        log.info("labelled answers whose labels were deleted meanwhile are dropped", answers=gone)
        self._save_due = True

    def _add_label(self, record: Record) -> None:
        """Add a label's answer to the pool. If an erasure changed or deleted the label, the pool is saved at once."""
        if record.value is None:
            self.labelled.remove((record.key or b"").decode(errors="replace"))
            self._save_due = True
        else:
            label = LABELS.decode(record.value)
            if label.policy == self._context.policy:
                self._fresh.note_label(label, self._steps)
            if self._settings.learns_from_labels:
                self._count_left_out(self.labelled.update(label))
                self._save_due |= label.erasures > 0

    def _count_left_out(self, reason: str | None) -> None:
        if reason is not None:
            self._context.metrics.add("tidemill_learner_left_out_total", reason=reason)

    def _erase_people(self) -> None:
        """Erase the prompts of people who asked for it, once for each disk: a restored back-up may be older than its erasure's report. Then report
        what was not reported yet."""
        removed = {each.offset: sum(map(self.prompts.erase_person, each.erasure.people)) for each in self._erasures.since(self._erased_up_to)}
        self._erased_up_to = max(self._erased_up_to, self._erasures.end)
        self.save()
        done = {(each.person, each.erasure_at) for each in read_erased(read_to_end(self._context.kafka, ERASED, "learner", self._context.metrics))
                if each.part == "learner"}  # fmt: skip
        for each in self._erasures.since(self._reported_up_to):
            if (each.erasure.person, each.erasure.at) not in done:
                told = {"prompts": removed.get(each.offset, 0)}
                self._producer.publish(ERASED, Erased(person=each.erasure.person, part="learner", where="prompts", removed=told,
                                                      erasure_at=each.erasure.at, at=self._context.clock.now()))  # fmt: skip
        self._reported_up_to = self._erasures.end

    def _current_reward_model(self) -> tuple[RewardModelVersion, Path]:
        if self._reward is None:
            raise RuntimeError("asked for the reward model before there was one")
        return self._reward

    def _take_reward_model(self, record: Record, event: RewardModelVersion) -> None:
        name = f"{event.version}-{event.artifact.sha256[:12]}"
        try:
            with self._in_hand.working_on(record.topic, record.partition, record.offset, "the learner's feed"):
                folder = self._context.artifacts.fetch(event.artifact, self._context.state / "reward-models" / name)
                RewardModel.load(folder)  # one that cannot be read is refused here, not in the middle of a step
        except BadArtifact as error:
            self._dead_letters.set_aside(record, InvalidEvent("bad_artifact", str(error)))
            return
        except InvalidEvent as error:
            self._dead_letters.set_aside(record, error)
            return
        if self._reward is not None and self._reward[1] != folder:
            shutil.rmtree(self._reward[1], ignore_errors=True)
        self._reward, self.follows = (event, folder), record.headers
        log.info("reward_model_taken", version=event.version, labels=event.labels)


def _erased_up_to(path: Path) -> int:
    return int(path.read_text()) if path.exists() else 0


def devices(settings: LearnerSettings) -> float:
    """Number of devices that the learner's processes hold: their GPUs, or the machine's CPU as one."""
    return settings.workers * settings.ray_num_gpus or 1.0
