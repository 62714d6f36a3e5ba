"""The learner's loop: prompts and reward models in, adapters out."""

import structlog

from learner.distributed.ray_cluster import LearnerActor, Stopped
from learner.ring.adapter_publisher import AdapterPublisher, Exported
from learner.ring.held_out_evaluation import HeldOutEvaluation
from learner.ring.learner_inputs import LogFeed, devices
from learner.ring.progress_watch import TURN_S, ProgressWatch
from learner.ring.step_tracking import StepTracking
from learner.runs.learner_process import StepReport
from learner.runs.step_progress import PHASES
from learner.runs.trainer import Prompt
from learner.settings import LearnerSettings
from reward.settings import RewardSettings
from streams.core.errors import Unavailable
from streams.core.metrics import Metrics
from streams.core.part_context import PartContext
from streams.core.traces import trace_in_logs
from streams.kafka import Producer

log = structlog.get_logger()
RETRY_S = 2.0


def run(settings: LearnerSettings, reward: RewardSettings, context: PartContext) -> None:
    """Learn until stopped, or for ``max_steps``. ``reward``: the features that reward models are fitted on."""
    tracking = StepTracking.of(settings, context.state, context.policy, context.health.run_id)
    producer = Producer(context.kafka, context.metrics, "tidemill-learner")
    watch = ProgressWatch(context, settings.prompts_needed)
    actor = LearnerActor(settings, reward, context.base, context.state, context.stopping, watch.look)
    evaluation = HeldOutEvaluation(settings)
    feed: LogFeed | None = None
    try:
        publisher = AdapterPublisher(settings, context, producer)
        feed = LogFeed(settings, context, producer, str(actor.call("features")))
        feed.note_versions(publisher.recent)
        adapter_bytes = int(actor.call("adapter_bytes"))
        steps: int | None = None
        following: list[Prompt] = []
        device_s = 0.0  # since the last adapter: what the next one cost
        while not context.stopping.is_set() and not (settings.max_steps and (steps or 0) >= settings.max_steps):
            context.health.heartbeat("learning", TURN_S)
            try:
                if steps is None:  # at the start, and whenever the process was lost: what did it keep?
                    steps = int(actor.call("steps"))
                    continue
                feed.read(steps)
                if not feed.is_ready:
                    feed.wait()
                    watch.waits(steps + 1, len(feed.prompts), feed.waits_for_labels)
                    continue
                prompts = following or list(feed.prompts.choose(settings.prompts_per_step, settings.seed, steps))
                if settings.sample_ahead:  # sampled during this step
                    following = list(feed.prompts.choose(settings.prompts_per_step, settings.seed, steps + 1))
                began_at = context.clock.now()
                labelled = [one for one in feed.labelled.choose(settings.judged_per_step) if not feed.prompts.holds_out(one.prompt)]
                held_out = evaluation.before_step(actor, feed, steps)
                report: StepReport = actor.call("step", prompts, feed.reward_folder, feed.reward_model.artifact, labelled, following)
                for reason, count in report.left_out.items():
                    context.metrics.add("tidemill_learner_left_out_total", count, reason=reason)
                if report.step == steps:  # nothing fitted
                    following = []
                    feed.wait_for_prompts_that_fit()
                    continue
                steps = report.step
                tracking.track(steps, report.metrics | held_out | {"reward_model": feed.reward_model.version}, context.clock.now())
                _expose(context.metrics, report, settings)
                device_s += sum(report.metrics[f"{phase}_s"] for phase in PHASES) * devices(settings)
                feed.save()
                if settings.publishes(steps, adapter_bytes):
                    folder = context.state / "outgoing"
                    targets = actor.call("export", folder, publisher.parent_step)
                    exported = Exported(folder, targets, steps, report.metrics | {"device_s": device_s})
                    event = publisher.publish(exported, feed.reward_model, began_at, feed.follows)
                    feed.note_versions([event])
                    device_s = 0.0
                    with trace_in_logs(feed.follows):
                        log.info("adapter_published", adapter=event.name, step=steps, reward_model=feed.reward_model.version)
                log.info("step", step=steps, **{key: round(value, 4) for key, value in report.metrics.items()})
            except Unavailable as error:
                log.warning("waiting", error=str(error))
                context.health.mark_missing("learning")
                context.stopping.wait(RETRY_S)
                steps, following = None, []
    except Stopped:
        log.info("stopped_in_a_call")
    finally:
        actor.close()
        tracking.close()
        if feed is not None:
            feed.close()
        producer.close()


def _expose(metrics: Metrics, report: StepReport, settings: LearnerSettings) -> None:
    m, held = report.metrics, devices(settings)
    metrics.add("tidemill_learner_steps_total")
    for phase in PHASES:
        metrics.observe("tidemill_learner_step_seconds", m[f"{phase}_s"], phase=phase)
        metrics.add("tidemill_learner_device_seconds_total", m[f"{phase}_s"] * held, work=phase)
    metrics.add("tidemill_learner_tokens_total", m["output_tokens"], phase="rollout")
    metrics.add("tidemill_learner_tokens_total", m["train_tokens"], phase="train")
    metrics.set("tidemill_learner_reward_mean", m["reward_mean"])
    metrics.set("tidemill_learner_kl_nats", m["kl_nats"])
    metrics.set("tidemill_learner_entropy_nats", m["entropy_nats"])
    metrics.set("tidemill_learner_entropy_alarm", float(m["entropy_nats"] < settings.entropy_alarm_nats))
    metrics.add("tidemill_learner_stale_rollouts_total", m["stale_rollouts"])
    metrics.set("tidemill_learner_left_out_ratio", m["left_out_ratio"])
    metrics.set("tidemill_learner_gradient_norm", m["gradient_norm"])
    metrics.set("tidemill_learner_flat_groups_ratio", m["flat_groups_ratio"])
    metrics.set("tidemill_learner_rate", m["learning_rate"])
    metrics.set("tidemill_learner_engine_ratio", m["engine_ratio_mean"])
    metrics.set("tidemill_learner_effective_sample_ratio", m["effective_sample_ratio"])
