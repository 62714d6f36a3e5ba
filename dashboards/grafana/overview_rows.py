"""The overview for a person on call: rows by question, each panel with a title and thresholds that a person wrote."""

from dataclasses import dataclass

RATE = "$__rate_interval"
HERE = 'instance=~"$replica"'
"""Panels about actors show the replicas that are chosen."""


@dataclass(frozen=True)
class QuestionPanel:
    """One panel: expressions with legends, a unit of Grafana's, and the values from which it is yellow and red."""

    title: str
    sentence: str
    expressions: tuple[tuple[str, str], ...]
    unit: str = "short"
    warn: float | None = None
    bad: float | None = None
    low_is_bad: bool = False


@dataclass(frozen=True)
class QuestionRow:
    """A question, the panels that answer it, and the runbooks for when the answer is no."""

    question: str
    panels: tuple[QuestionPanel, ...]
    runbooks: tuple[str, ...]


def _quantiles(metric: str, match: str = "") -> tuple[tuple[str, str], ...]:
    """Median and 99th percentile."""
    return tuple(
        (f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{match}[{RATE}])))", name) for q, name in ((0.5, "median"), (0.99, "p99"))
    )


def _rate(metric: str, by: str, match: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{match}[{RATE}]))"


ROWS = (
    QuestionRow("Are people served?", (
        QuestionPanel("Actors that answer", "Actors in Prometheus' targets that answer.",
                      (('sum(up{job="tidemill", part="actor"})', "up"), ('count(up{job="tidemill", part="actor"})', "known")), bad=1, low_is_bad=True),
        QuestionPanel("Answers per second", "By how they ended. Failed ones never count against the policy.",
                      ((_rate("tidemill_episodes_captured_total", "outcome", f"{{{HERE}}}"), "{{outcome}}"),), "reqps"),
        QuestionPanel("Answers that fail", "Share of the answers.",
                      ((f'(sum(rate(tidemill_episodes_captured_total{{outcome="failed", {HERE}}}[{RATE}])) or vector(0))'
                        f" / sum(rate(tidemill_episodes_captured_total{{{HERE}}}[{RATE}]))", "failed"),), "percentunit", 0.01, 0.05),
        QuestionPanel("Time to answer", "From request to the end of the answer.", _quantiles("tidemill_answer_seconds", f"{{{HERE}}}"), "s", 30, 60),
        QuestionPanel("Time to the first token", "vLLM's own figure.", _quantiles("vllm:time_to_first_token_seconds", f"{{{HERE}}}"), "s", 5, 20),
        QuestionPanel("Requests in the engine", "Waiting ones queue for a place.",
                      ((f"sum(vllm:num_requests_running{{{HERE}}})", "running"), (f"sum(vllm:num_requests_waiting{{{HERE}}})", "waiting")), warn=10, bad=100),
        QuestionPanel("Tokens per second", "Generated for people.", ((f"sum(rate(vllm:generation_tokens_total{{{HERE}}}[{RATE}]))", "generated"),)),
        QuestionPanel("Key-value cache in use", "At 1 requests wait for each other's memory.", ((f"max(vllm:kv_cache_usage_perc{{{HERE}}})", "used"),),
                      "percentunit", 0.8, 0.95),
        QuestionPanel("Restarts within an hour", "How often each part's process was started.",
                      (("changes(tidemill_start_time_seconds[1h])", "{{part}}"),), warn=1, bad=4),
        QuestionPanel("Disk that is free", "Of the disk with each part's state.", (("tidemill_disk_free_ratio", "{{part}}"),), "percentunit", 0.2, 0.1, True),
        QuestionPanel("Kafka answers", "1 while Kafka answers the part.", (("tidemill_kafka_up", "{{part}}"),), bad=1, low_is_bad=True),
        QuestionPanel("GPU in use", "By Ray, where the learner has one.", (("ray_node_gpus_utilization", "{{GpuIndex}}"),), "percent"),
    ), ("actor-down", "actor-erroring", "actor-slow", "part-dead", "restart-loop", "broker-away", "disk-full")),
    QuestionRow("Is feedback arriving?", (
        QuestionPanel("Feedback per minute", "Accepted over HTTP, by kind.", ((f"60 * {_rate('tidemill_feedback_received_total', 'kind')}", "{{kind}}"),)),
        QuestionPanel("Feedback joined to an answer", "Share of the feedback that the join read.",
                      ((f"sum(rate(tidemill_feedback_joined_total[{RATE}]))"
                        f' / sum(rate(tidemill_consumed_total{{topic="tidemill.feedback.v1", part="join"}}[{RATE}]))', "joined"),),
                      "percentunit", 0.9, 0.5, True),
        QuestionPanel("From feedback to label", "How long a thumb takes to count.", _quantiles("tidemill_thumb_to_label_seconds"), "s", 10, 60),
        QuestionPanel("Records still to read", "By reader and topic.", (("tidemill_consumer_lag_records", "{{part}} {{topic}}"),), warn=1000, bad=10_000),
        QuestionPanel("Waiting in the outbox", "Captured, and not yet on Kafka.", ((f"tidemill_outbox_depth{{{HERE}}}", "{{instance}}"),), warn=100, bad=10_000),
        QuestionPanel("Lost before Kafka", "Dropped by the outbox, or taken by a kill.",
                      (("sum(increase(tidemill_outbox_dropped_total[1h])) or vector(0)", "dropped"),
                       ("sum(increase(tidemill_outbox_lost_total[1h])) or vector(0)", "lost")), bad=1),
        QuestionPanel("Answers not recorded", "By reason; declined ones are people's choice.",
                      ((_rate("tidemill_capture_skipped_total", "reason"), "{{reason}}"),), "reqps"),
        QuestionPanel("Missing in the ledger", "Must be 0: records that the join has read and that are nowhere.",
                      (("max by (topic) (tidemill_ledger_missing_records)", "{{topic}}"),), bad=1),
        QuestionPanel("Dead letters per minute", "By reason.", ((f"60 * {_rate('tidemill_dead_letters_total', 'reason')}", "{{reason}}"),), warn=1, bad=60),
        QuestionPanel("Oldest open erasure", "A person asked, and a part has not reported.", (("max(tidemill_erasure_open_seconds)", "open"),), "s", 3600, 86_400),
    ), ("no-feedback", "capture-skipping", "outbox-filling", "outbox-losing", "ledger-unbalanced", "dead-letters-rising", "streams-behind", "erasure-overdue")),
    QuestionRow("Is it learning?", (
        QuestionPanel("What the learner does", "1 for the phase that it is in.", (("tidemill_learner_phase == 1", "{{phase}}"),)),
        QuestionPanel("What the learner waits for", "1 while it waits for this.", (("tidemill_learner_waiting", "{{what}}"),), warn=1),
        QuestionPanel("Steps per hour", "RL steps.", (("3600 * sum(rate(tidemill_learner_steps_total[30m]))", "steps"),)),
        QuestionPanel("Adapters per hour", "Published, and passed by replicas.",
                      (("3600 * sum(rate(tidemill_adapters_published_total[1h]))", "published"), ("3600 * sum(rate(tidemill_adapters_loaded_total[1h]))", "attested"))),
        QuestionPanel("From thumb to served", "From the newest feedback that an adapter learned from to it answering people.",
                      _quantiles("tidemill_thumb_to_served_seconds"), "s", 3600, 86_400),
        QuestionPanel("Mean reward of rollouts", "The reward model's view of the last step's samples.", (("tidemill_learner_reward_mean", "reward"),)),
        QuestionPanel("Distance from the base", "KL in nats per token.", (("tidemill_learner_kl_nats", "KL"),), warn=0.5, bad=2),
        QuestionPanel("Reward models per hour", "Refits by result: published, or why not.",
                      (("3600 * sum by (result) (rate(tidemill_reward_versions_total[30m]))", "{{result}}"),)),
    ), ("no-reward-model", "learner-dead", "learner-stuck", "learner-starved", "no-adapter", "night-missed", "adapters-refused")),
    QuestionRow("Is it safe?", (
        QuestionPanel("Version that answers", "Of each replica; 0 is the base.", (('tidemill_serving_version{policy=~"$policy"}', "{{policy}} {{instance}}"),)),
        QuestionPanel("Canary against production", "Mean verdict on the canary minus production's, with its interval.",
                      (('tidemill_canary_difference{policy=~"$policy"}', "{{policy}} {{bound}}"),)),
        QuestionPanel("Guards against reward hacking", "1 while a guard is beyond its threshold.", (("max by (rule) (tidemill_reward_guard_tripped)", "{{rule}}"),), bad=1),
        QuestionPanel("Reward model on unseen labels", "Predicted before it learns from them.",
                      (("tidemill_reward_accuracy_ratio", "accuracy"), ("tidemill_reward_auc_ratio", "AUC"), ("tidemill_reward_ece_ratio", "calibration error")),
                      "percentunit"),
        QuestionPanel("Alarms", "1 while the reward model drifts, or the policy has collapsed.",
                      (("max(tidemill_reward_drift_alarm)", "drift"), ("max(tidemill_learner_entropy_alarm)", "collapse")), bad=1),
        QuestionPanel("Adapters refused", "By reason, within an hour.", (("sum by (reason) (increase(tidemill_adapters_refused_total[1h]))", "{{reason}}"),), bad=1),
        QuestionPanel("Largest voice", "Part of the votes' weight that one person holds.", (("tidemill_reward_largest_person_share_ratio", "share"),), "percentunit", 0.2, 0.5),
    ), ("replica-skew", "canary-harming", "guard-tripped", "policy-collapsed", "reward-model-drifting")),
)  # fmt: skip
