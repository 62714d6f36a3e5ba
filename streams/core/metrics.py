"""Every metric Tidemill exposes, in one table. Code, docs, dashboards and alerts derive from it; nothing else names a metric."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, TypeVar, cast

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

M = TypeVar("M", Counter, Gauge, Histogram)
MAX_SERIES = 200
"""Of one metric. Labels come from closed sets; should one ever not, what is beyond is counted under ``other``."""
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
    Metric("tidemill_dead_letters_total", "counter", "streams", "Records set aside.", ("topic", "reason")),
    Metric("tidemill_feedback_joined_total", "counter", "streams", "Feedback events folded into a label.", ("kind",)),
    Metric("tidemill_feedback_duplicates_total", "counter", "streams", "Feedback events dropped because their feedback_id was seen."),
    Metric("tidemill_episode_duplicates_total", "counter", "streams", "Episodes dropped because their episode_id was seen."),
    Metric("tidemill_feedback_pending", "gauge", "streams", "Feedback waiting for its episode."),
    Metric("tidemill_labels_total", "counter", "streams", "Labels published, each re-publication counted."),
    Metric("tidemill_thumb_to_label_seconds", "histogram", "streams", "From a person's feedback to its label."),
    Metric("tidemill_lake_rows_total", "counter", "streams", "Rows written to the lake.", ("topic",)),
    Metric("tidemill_lake_failures_total", "counter", "streams", "Lake writes that failed and are retried."),
    # reward
    Metric("tidemill_reward_labels_seen_total", "counter", "reward", "Labels taken into the replay buffer."),
    Metric("tidemill_reward_buffer_labels", "gauge", "reward", "Labels in the replay buffer."),
    Metric("tidemill_reward_refit_seconds", "histogram", "reward", "One refit of the head."),
    Metric("tidemill_reward_versions_total", "counter", "reward", "Refits by what became of them.", ("result",)),
    Metric("tidemill_reward_accuracy_ratio", "gauge", "reward", "Test-then-train accuracy over the recent window."),
    Metric("tidemill_reward_ece_ratio", "gauge", "reward", "Expected calibration error over the recent window."),
    Metric("tidemill_reward_auc_ratio", "gauge", "reward", "Chance that a good answer was predicted above a bad one, over the recent window."),
    Metric("tidemill_reward_disagreement_ratio", "gauge", "reward", "How far the ensemble of the published model is apart on the newest labels: mean standard deviation of its chances."),
    Metric("tidemill_reward_drift_alarm", "gauge", "reward", "1 while the loss on unseen labels has risen for good (Page-Hinkley over the recent window)."),
    Metric("tidemill_reward_guard_ratio", "gauge", "reward", "What a rule against reward hacking measures over the newest live answers, or a candidate's.", ("rule",)),
    Metric("tidemill_reward_guard_tripped", "gauge", "reward", "1 while a rule against reward hacking is beyond its threshold.", ("rule",)),
    Metric("tidemill_reward_capped_ratio", "gauge", "reward", "Part of the weight of labels and pairs that a rule against crowds moved from where too much came from to all else, in the last fit.", ("rule",)),
    Metric("tidemill_reward_largest_person_share_ratio", "gauge", "reward", "The largest part of the weight of labels and pairs that any one person held in the last fit."),
    Metric("tidemill_label_to_reward_model_seconds", "histogram", "reward", "From the newest label's feedback to the version that counts it."),
    # learner
    Metric("tidemill_learner_steps_total", "counter", "learner", "RL steps taken."),
    Metric("tidemill_learner_step_seconds", "histogram", "learner", "One RL step, by phase.", ("phase",)),
    Metric("tidemill_learner_tokens_total", "counter", "learner", "Tokens by phase.", ("phase",)),
    Metric("tidemill_learner_reward_mean", "gauge", "learner", "Mean reward of the last step's rollouts."),
    Metric("tidemill_learner_kl_nats", "gauge", "learner", "KL to the base on the last step's tokens (k3)."),
    Metric("tidemill_learner_entropy_nats", "gauge", "learner", "Mean entropy of the policy on the last step's tokens."),
    Metric("tidemill_learner_entropy_alarm", "gauge", "learner", "1 while the policy's entropy is below learner.entropy_alarm_nats: it has collapsed."),
    Metric("tidemill_learner_gradient_norm", "gauge", "learner", "Gradient norm before clipping."),
    Metric("tidemill_learner_engine_ratio", "gauge", "learner", "Mean importance ratio between trainer and engine."),
    Metric("tidemill_learner_effective_sample_ratio", "gauge", "learner", "Effective sample size over sample size."),
    Metric("tidemill_learner_left_out_ratio", "gauge", "learner", "Part of the last step's tokens on which engine and trainer disagree too far to learn."),
    Metric("tidemill_learner_stale_rollouts_total", "counter", "learner", "Rollouts dropped because their policy was too old."),
    Metric("tidemill_learner_waiting_seconds_total", "counter", "learner", "Time spent waiting for prompts or a reward model."),
    Metric("tidemill_learner_waiting", "gauge", "learner", "1 while the learner waits for this: prompts, reward_model, prompts_that_fit.", ("what",)),
    Metric("tidemill_reward_model_to_adapter_seconds", "histogram", "learner", "From a reward model's publication to that of an adapter learned from it."),
    Metric("tidemill_learner_device_seconds_total", "counter", "learner", "Cost: seconds by what they went into, times the devices that the learner's process holds.", ("work",)),
    Metric("tidemill_adapters_published_total", "counter", "learner", "Adapters published."),
    # actor
    Metric("tidemill_episodes_captured_total", "counter", "actor", "Answers captured as episodes.", ("outcome",)),
    Metric("tidemill_capture_skipped_total", "counter", "actor", "Answers that became no episode.", ("reason",)),
    Metric("tidemill_otlp_spans_total", "counter", "actor", "Spans of agents' telemetry by what they were: an answer, captured by an actor already, other, refused; exports that were too_large.", ("result",)),
    Metric("tidemill_redactions_total", "counter", "actor", "Passages taken out of episodes and feedback before they were kept.", ("kind",)),
    Metric("tidemill_feedback_received_total", "counter", "actor", "Feedback accepted at the door.", ("kind",)),
    Metric("tidemill_outbox_depth", "gauge", "actor", "Events waiting to be sent to Kafka."),
    Metric("tidemill_outbox_dropped_total", "counter", "actor", "Events dropped because the outbox was full, they were too old, or the disk refused them.", ("reason",)),
    Metric("tidemill_outbox_lost_total", "counter", "actor", "Events that a kill took before they were on disk, told by the next start."),
    Metric("tidemill_adapters_loaded_total", "counter", "actor", "Adapters attested and taken into traffic."),
    Metric("tidemill_adapters_refused_total", "counter", "actor", "Adapters refused.", ("reason",)),
    Metric("tidemill_adapter_load_seconds", "histogram", "actor", "From reading the adapter's event to taking traffic."),
    Metric("tidemill_adapter_to_attested_seconds", "histogram", "actor", "From an adapter's publication to its attestation by this replica."),
    Metric("tidemill_thumb_to_served_seconds", "histogram", "actor", "From the newest feedback that counts in an adapter to the adapter being production here."),
    Metric("tidemill_policy_age_seconds", "gauge", "actor", "Since the adapter that is production here was published; 0 while the base is.", ("policy",)),
    Metric("tidemill_actor_device_seconds_total", "counter", "actor", "Cost: seconds that this replica has held its devices, times their number."),
    Metric("tidemill_canary_share_ratio", "gauge", "actor", "Part of the conversations that the adapter on trial answers.", ("policy",)),
    Metric("tidemill_canary_difference", "gauge", "actor", "People's verdicts on the canary minus those on production: estimate, and the bounds low and high of its interval.", ("policy", "bound")),
    Metric("tidemill_promotion_served_seconds", "histogram", "actor", "From a promotion or roll-back being decided to this replica serving by it."),
    Metric("tidemill_critic_verdicts_total", "counter", "actor", "Episodes that the critic judged, by signal; none when it was unsure.", ("verdict",)),
    Metric("tidemill_promotions_total", "counter", "actor", "Moves that the promoter wrote.", ("move",)),
    Metric("tidemill_promotion_gates_total", "counter", "actor", "Verdicts of gates.", ("gate", "result")),
    Metric("tidemill_serving_version", "gauge", "actor", "Version of the adapter that answers now; 0 is the base.", ("policy",)),
)  # fmt: skip
BY_NAME = {metric.name: metric for metric in TABLE}


class Metrics:
    """The table's metrics of one process, made on first use. One instance a process, passed in."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        self._seen: dict[str, set[tuple[str, ...]]] = {}
        self._lock = Lock()

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Count ``amount`` more."""
        self._series(self._get(name, Counter), name, labels).inc(amount)

    def adder(self, name: str, **labels: str) -> Callable[[], None]:
        """Counts one more at each call; for the places that are called for every record."""
        counted: Callable[[], None] = self._series(self._get(name, Counter), name, labels).inc
        return counted

    def set(self, name: str, value: float, **labels: str) -> None:
        """The value is now."""
        self._series(self._get(name, Gauge), name, labels).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """One more observation of a histogram."""
        self._series(self._get(name, Histogram), name, labels).observe(value)

    def value(self, name: str, **labels: str) -> float:
        """What a counter or gauge stands at now; 0 when it was never touched."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def text(self) -> bytes:
        """All of them as Prometheus reads them (text format 0.0.4); ``streams/core/health.py`` serves them."""
        return generate_latest(self.registry)

    def text_with_libraries(self) -> bytes:
        """The same, and below it what libraries in this process count by themselves (vLLM) in prometheus-client's own registry."""
        return self.text() + generate_latest(REGISTRY)

    def start_at_zero(self, part: str) -> None:
        """Show the part's counters and histograms without labels at nothing: a rate needs to see where its first event began."""
        for row in TABLE:
            if row.part == part and not row.labels and row.kind == "counter":
                self._get(row.name, Counter)
            if row.part == part and not row.labels and row.kind == "histogram":
                self._get(row.name, Histogram)

    def _series(self, metric: M, name: str, labels: dict[str, str]) -> M:
        """The one of these labels, or the one that stands for all beyond the bound."""
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
