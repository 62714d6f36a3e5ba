"""Every metric of Tidemill, in one table. Code, docs, dashboards and alerts use it; to add a metric, add a row."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, TypeVar, cast

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

M = TypeVar("M", Counter, Gauge, Histogram)
MAX_SERIES = 200
"""Most label combinations of one metric. Labels come from closed sets; if one ever does not, further values are counted under ``other``."""
SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 7200.0, 28_800.0, 86_400.0)


@dataclass(frozen=True)
class Metric:
    """One row of the table. A counter's exposed name ends in ``_total``."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    part: str
    sentence: str
    labels: tuple[str, ...] = ()


TABLE: tuple[Metric, ...] = (
    # streams
    Metric("tidemill_published_total", "counter", "streams", "Events acknowledged by Kafka.", ("topic",)),
    Metric("tidemill_publish_failures_total", "counter", "streams", "Events that Kafka refused or never acknowledged.", ("topic",)),
    Metric("tidemill_kafka_up", "gauge", "streams", "1 while Kafka answers this part, asked every 15 s.", ("part",)),
    Metric("tidemill_consumed_total", "counter", "streams", "Records read from Kafka.", ("topic", "part")),
    Metric("tidemill_consumer_lag_records", "gauge", "streams", "Records not yet read, over all partitions.", ("topic", "part")),
    Metric("tidemill_dead_letters_total", "counter", "streams", "Records that could not be used and went to the dead letters.", ("topic", "reason")),
    Metric("tidemill_feedback_joined_total", "counter", "streams", "Feedback events folded into a label.", ("kind",)),
    Metric("tidemill_feedback_duplicates_total", "counter", "streams", "Feedback events dropped because their feedback_id had been seen before."),
    Metric("tidemill_episode_duplicates_total", "counter", "streams", "Episodes dropped because their episode_id had been seen before."),
    Metric("tidemill_feedback_pending", "gauge", "streams", "Feedback waiting for its episode."),
    Metric("tidemill_labels_total", "counter", "streams", "Labels published. A label that is published again counts again."),
    Metric("tidemill_thumb_to_label_seconds", "histogram", "streams", "Time from a person's feedback to its label."),
    Metric("tidemill_lake_rows_total", "counter", "streams", "Rows written to the lake.", ("topic",)),
    Metric("tidemill_lake_failures_total", "counter", "streams", "Writes to the lake that failed and were retried, merges included."),
    Metric("tidemill_lake_files", "gauge", "streams", "Files in the lake when they were last looked at for merging.", ("topic",)),
    Metric("tidemill_lake_compactions_total", "counter", "streams", "Runs of small files of the lake that were merged into one file each.", ("topic",)),
    Metric("tidemill_ledger_missing_records", "gauge", "streams", "Records of the last hours (join.ledger_span_h) that the join has read past and that are nowhere.", ("topic",)),
    Metric("tidemill_erasure_open_seconds", "gauge", "streams", "Age of the oldest erasure that join, lake or learner has not reported; 0: none."),
    Metric("tidemill_start_time_seconds", "gauge", "streams", "When the part's process started, in seconds since 1970.", ("part",)),
    Metric("tidemill_disk_free_ratio", "gauge", "streams", "Free part of the disk with the part's state.", ("part",)),
    # reward
    Metric("tidemill_reward_labels_seen_total", "counter", "reward", "Labels added to the replay buffer."),
    Metric("tidemill_reward_left_out_total", "counter", "reward", "Labels that the reward model does not learn from: media (it reads text alone).", ("reason",)),
    Metric("tidemill_reward_buffer_labels", "gauge", "reward", "Labels in the replay buffer."),
    Metric("tidemill_reward_refit_seconds", "histogram", "reward", "Duration of one refit of the heads."),
    Metric("tidemill_reward_versions_total", "counter", "reward", "Refits by result: published, or why not.", ("result",)),
    Metric("tidemill_reward_accuracy_ratio", "gauge", "reward", "Prequential (test-then-train) accuracy over the newest labels."),
    Metric("tidemill_reward_ece_ratio", "gauge", "reward", "Expected calibration error over the newest labels."),
    Metric("tidemill_reward_auc_ratio", "gauge", "reward", "AUC over the newest labels: how often a good answer was scored above a bad one."),
    Metric("tidemill_reward_disagreement_ratio", "gauge", "reward", "Disagreement of the published model's ensemble on the newest labels: mean standard deviation of its probabilities."),
    Metric("tidemill_reward_drift_alarm", "gauge", "reward", "1 while the loss on unseen labels has risen for good (CUSUM test over the newest labels)."),
    Metric("tidemill_reward_guard_ratio", "gauge", "reward", "Value of a guard against reward hacking, over the newest live answers or a candidate's answers.", ("rule",)),
    Metric("tidemill_reward_guard_tripped", "gauge", "reward", "1 while a guard against reward hacking is beyond its threshold.", ("rule",)),
    Metric("tidemill_reward_capped_ratio", "gauge", "reward", "Part of the weight of labels and pairs that a cap on votes moved away from its largest sources, in the last fit.", ("rule",)),
    Metric("tidemill_reward_largest_person_share_ratio", "gauge", "reward", "Largest part of the weight of labels and pairs that one person held in the last fit."),
    Metric("tidemill_label_to_reward_model_seconds", "histogram", "reward", "Time from the newest label's feedback to the reward model that has learned it."),
    # learner
    Metric("tidemill_learner_steps_total", "counter", "learner", "RL steps taken."),
    Metric("tidemill_learner_step_seconds", "histogram", "learner", "Duration of an RL step, by phase.", ("phase",)),
    Metric("tidemill_learner_tokens_total", "counter", "learner", "Tokens processed, by phase.", ("phase",)),
    Metric("tidemill_learner_reward_mean", "gauge", "learner", "Mean reward of the last step's rollouts."),
    Metric("tidemill_learner_kl_nats", "gauge", "learner", "KL to the base on the last step's tokens (k3)."),
    Metric("tidemill_learner_entropy_nats", "gauge", "learner", "Mean entropy of the policy on the last step's tokens."),
    Metric("tidemill_learner_entropy_alarm", "gauge", "learner", "1 while the policy's entropy is below learner.entropy_alarm_nats: it has collapsed."),
    Metric("tidemill_learner_gradient_norm", "gauge", "learner", "Gradient norm before clipping."),
    Metric("tidemill_learner_engine_ratio", "gauge", "learner", "Mean importance ratio between trainer and engine."),
    Metric("tidemill_learner_effective_sample_ratio", "gauge", "learner", "Effective sample size over sample size."),
    Metric("tidemill_learner_flat_groups_ratio", "gauge", "learner", "Part of the last step's groups whose rewards were all the same when first drawn."),
    Metric("tidemill_learner_rate", "gauge", "learner", "Learning rate of the last step."),
    Metric("tidemill_learner_left_out_ratio", "gauge", "learner", "Part of the last step's tokens left out because engine and trainer disagree too much."),
    Metric("tidemill_learner_stale_rollouts_total", "counter", "learner", "Rollouts dropped because their policy was too old."),
    Metric("tidemill_learner_left_out_total", "counter", "learner", "Prompts and labelled answers that were not learned from: too_long (learner.max_prompt_tokens), template (the base's chat template refuses them), tool_calls (it does not write them), or what cannot be rendered again: media, completion, own_template, continued, truncated.", ("reason",)),
    Metric("tidemill_learner_waiting_seconds_total", "counter", "learner", "Time spent waiting for prompts or a reward model."),
    Metric("tidemill_learner_waiting", "gauge", "learner", "1 while the learner waits for this: prompts, reward_model, labels_of_newest (learner.steps_without_labels), or prompts_that_fit (short enough).", ("what",)),
    Metric("tidemill_learner_phase", "gauge", "learner", "1 for what the learner does now: waiting, rollout, score, or train.", ("phase",)),
    Metric("tidemill_learner_phase_tokens", "gauge", "learner", "Tokens of the current phase: done, and all.", ("what",)),
    Metric("tidemill_learner_step_left_seconds", "gauge", "learner", "Estimated seconds until the current step is done."),
    Metric("tidemill_reward_model_to_adapter_seconds", "histogram", "learner", "Time from a reward model's publication to the publication of an adapter learned from it."),
    Metric("tidemill_learner_device_seconds_total", "counter", "learner", "Cost: device seconds (time times the devices that the learner holds), by kind of work.", ("work",)),
    Metric("tidemill_adapters_published_total", "counter", "learner", "Adapters published."),
    # actor
    Metric("tidemill_episodes_captured_total", "counter", "actor", "Answers captured as episodes.", ("outcome",)),
    Metric("tidemill_answer_seconds", "histogram", "actor", "Time from a request to the end of its answer, of captured answers."),
    Metric("tidemill_engine_tokens_total", "counter", "actor", "Tokens that the engine read (prompt) and wrote (output), for people or for a learner's rollouts: whose share of it is how large.", ("work", "kind")),
    Metric("tidemill_capture_skipped_total", "counter", "actor", "Answers that were not recorded as episodes.", ("reason",)),
    Metric("tidemill_otlp_spans_total", "counter", "actor", "Spans received over OTLP: an answer, an answer that an actor captured already, told_twice (another span told of the same call), unfinished (the whole span comes later), unknown_operation, other, refused; exports that were too_large.", ("result",)),
    Metric("tidemill_redactions_total", "counter", "actor", "Passages removed from episodes and feedback before they were recorded.", ("kind",)),
    Metric("tidemill_feedback_received_total", "counter", "actor", "Feedback accepted over HTTP.", ("kind",)),
    Metric("tidemill_outbox_depth", "gauge", "actor", "Events in the outbox that wait for Kafka."),
    Metric("tidemill_outbox_dropped_total", "counter", "actor", "Events dropped because the outbox was full, they were too old, or the disk failed.", ("reason",)),
    Metric("tidemill_outbox_lost_total", "counter", "actor", "Events lost in a kill before they were on disk, as the next start found out."),
    Metric("tidemill_adapters_loaded_total", "counter", "actor", "Adapters that passed attestation and may serve traffic."),
    Metric("tidemill_adapters_refused_total", "counter", "actor", "Adapters refused by this replica, by reason.", ("reason",)),
    Metric("tidemill_adapter_load_seconds", "histogram", "actor", "Time from reading the adapter's event to serving traffic with it."),
    Metric("tidemill_adapter_to_attested_seconds", "histogram", "actor", "Time from an adapter's publication to its attestation by this replica."),
    Metric("tidemill_thumb_to_served_seconds", "histogram", "actor", "Time from the newest feedback that an adapter learned from to the adapter being production here."),
    Metric("tidemill_policy_age_seconds", "gauge", "actor", "Age of the adapter that is production here; 0 while production is the base.", ("policy",)),
    Metric("tidemill_actor_device_seconds_total", "counter", "actor", "Cost: device seconds (time that this replica has run, times its devices)."),
    Metric("tidemill_canary_share_ratio", "gauge", "actor", "Part of the conversations that the canary answers.", ("policy",)),
    Metric("tidemill_canary_difference", "gauge", "actor", "Mean verdict on the canary minus production's: estimate, and the low and high bound of its interval.", ("policy", "bound")),
    Metric("tidemill_promotion_served_seconds", "histogram", "actor", "Time from the decision of a promotion or roll-back to this replica serving accordingly."),
    Metric("tidemill_critic_verdicts_total", "counter", "actor", "Episodes that the critic judged, by signal; `none` when it was unsure.", ("verdict",)),
    Metric("tidemill_promotion_trials_total", "counter", "actor", "Candidates that the promoter put on trial."),
    Metric("tidemill_promotions_total", "counter", "actor", "Promotion events written by the promoter.", ("move",)),
    Metric("tidemill_promotion_gates_total", "counter", "actor", "Gates passed and failed by candidates.", ("gate", "result")),
    Metric("tidemill_serving_version", "gauge", "actor", "Version of the adapter that is production here; 0: the base.", ("policy",)),
)  # fmt: skip
BY_NAME = {metric.name: metric for metric in TABLE}


class Metrics:
    """The metrics of one process, made on first use. One instance per process, passed in."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        self._seen: dict[str, set[tuple[str, ...]]] = {}
        self._lock = Lock()

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Count ``amount`` more."""
        self._series(self._get(name, Counter), name, labels).inc(amount)

    def adder(self, name: str, **labels: str) -> Callable[[], None]:
        """A function that counts one more at each call, cheap enough to call for every record."""
        counted: Callable[[], None] = self._series(self._get(name, Counter), name, labels).inc
        return counted

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._series(self._get(name, Gauge), name, labels).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """One more observation of a histogram."""
        self._series(self._get(name, Histogram), name, labels).observe(value)

    def value(self, name: str, **labels: str) -> float:
        """The value of a counter or gauge now; 0 when it was never set."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def text(self) -> bytes:
        """All metrics in Prometheus' text format 0.0.4. ``streams/core/health.py`` serves them."""
        return generate_latest(self.registry)

    def text_with_libraries(self) -> bytes:
        """The same, followed by the metrics of libraries in this process (vLLM), which use prometheus-client's own registry."""
        return self.text() + generate_latest(REGISTRY)

    def start_at_zero(self, part: str) -> None:
        """Show the part's counters and histograms without labels at 0: a rate over the first event needs a start value."""
        for row in TABLE:
            if row.part == part and not row.labels and row.kind == "counter":
                self._get(row.name, Counter)
            if row.part == part and not row.labels and row.kind == "histogram":
                self._get(row.name, Histogram)

    def _series(self, metric: M, name: str, labels: dict[str, str]) -> M:
        """The series of these labels, or ``other`` when the metric has MAX_SERIES already."""
        if not labels:
            return metric
        seen, values = self._seen.setdefault(name, set()), tuple(labels.values())
        if values not in seen:
            if len(seen) >= MAX_SERIES:
                return metric.labels(**dict.fromkeys(labels, "other"))
            seen.add(values)
        return metric.labels(**labels)

    def _get(self, name: str, kind: type[M]) -> M:
        with self._lock:
            if name not in self._made:
                row = BY_NAME[name]
                if row.kind != kind.__name__.lower():
                    raise TypeError(f"{name} is a {row.kind}")
                buckets: dict[str, Any] = {"buckets": SECONDS} if row.kind == "histogram" else {}
                self._made[name] = kind(row.name, row.sentence, row.labels, registry=self.registry, **buckets)
            return cast(M, self._made[name])
