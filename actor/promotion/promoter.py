"""The promoter: reads the log from its beginning, runs one trial at a time, and writes Promotion events. It has no state of its own.

Two promoters do no harm (of two equal moves the second is void). Neither does a kill: the next promoter decides again what was not written.
"""

from collections.abc import Callable
from typing import Any

import structlog

from actor.actor_client import OpenAiActorClient
from actor.promotion import held_back
from actor.promotion.canary import Decision
from actor.promotion.candidate_scoring import RewardJudge
from actor.promotion.candidate_trials import Trials, candidate_move
from actor.promotion.nightly_schedule import last_due, next_candidate
from actor.promotion.promotion_evidence import PromotionEvidence
from actor.promotion.promotion_settings import PromotionSettings
from actor.promotion.promotion_stages import TIDEMILL, PromotionMove
from actor.promotion.retention_probes import read_probes
from reward.settings import RewardSettings
from reward.trust.live_answers import report as report_findings
from reward.trust.live_answers import report_rule
from streams.core.errors import BadArtifact, InvalidEvent, Unavailable
from streams.core.events import Promotion, new_id
from streams.core.part_context import PartContext
from streams.core.poison_records import RecordInHand
from streams.core.topics import ADAPTERS, ATTESTATIONS, BY_NAME, EPISODES, ERASURES, LABELS, PROMOTIONS, REWARD_MODELS, Topic
from streams.kafka import Consumer, Producer
from streams.kafka.dead_letters import DeadLetters

LOOP = "promotion"
RETRY_S = 5.0
log = structlog.get_logger()


def run(settings: PromotionSettings, reward: RewardSettings, base_url: str, context: PartContext) -> None:
    """Run the promoter until ``context.stopping`` is set."""
    actors = OpenAiActorClient(base_url, settings.api_key, settings.at_once, settings.answer_tokens, settings.temperature, settings.seed)
    trials = Trials(settings, context.policy, actors, RewardJudge(reward, context), read_probes(settings.retention_file), base_url, telling(context))
    allowed_s = 3600 + settings.command_timeout_s * len(settings.commands)  # a turn in which the gates are asked
    while not context.stopping.is_set():
        try:
            promoter = Promoter(settings, trials, context)
            try:
                while not context.stopping.wait(settings.poll_s):
                    promoter.turn()
                    context.health.heartbeat(LOOP, allowed_s)
            finally:
                promoter.close()
        except Unavailable as error:
            log.warning("the promoter waits", error=str(error))
            context.health.mark_missing(LOOP)
            context.stopping.wait(RETRY_S)


def telling(context: PartContext) -> Callable[[Decision], None]:
    """A function that sets the metrics of a canary's result."""

    def report(decision: Decision) -> None:
        for bound, figure in (("estimate", "uplift"), ("low", "low"), ("high", "high")):
            context.metrics.set("tidemill_canary_difference", decision.evidence[figure], policy=context.policy, bound=bound)

    return report


class Promoter:
    """One reader and one writer of the log."""

    def __init__(self, settings: PromotionSettings, trials: Trials, context: PartContext) -> None:
        self._settings, self._trials, self._context = settings, trials, context
        self.observed = PromotionEvidence(context.policy, settings.prompts_kept)
        topics: list[Topic[Any]] = [ADAPTERS, ATTESTATIONS, REWARD_MODELS, PROMOTIONS, LABELS, EPISODES, ERASURES]
        context.metrics.add("tidemill_promotion_trials_total", 0)  # a rate over the first trial needs a start value
        self._producer = Producer(context.kafka, context.metrics, "tidemill-promoter")
        self._letters = DeadLetters(self._producer, context.clock, context.metrics, "promoter")
        self._in_hand = RecordInHand(context.state / "promoter.in-hand")
        self._consumer = Consumer(context.kafka, topics, "promoter", context.metrics)
        partitions = [key for key in self._consumer.positions() if key[0] == EPISODES.name]
        bounds = self._consumer.bounds(partitions)
        self._consumer.seek({key: max(first, end - settings.prompts_kept) for key, (first, end) in bounds.items()})  # no more is kept

    def turn(self) -> Promotion | None:
        """Read new events, and make the next move if there is one. Raises Unavailable."""
        self._read()
        standing, now = self.observed.standing, self._context.clock.now()
        move = held_back.next_move(self.observed, self._settings, now, lambda found: report_findings(found, self._context.metrics))
        if move is not None:
            adapter = str(standing.production)
        elif standing.trial is not None:
            adapter, move = standing.trial.adapter, self._try()
        else:
            due = last_due(self._settings.cron, self._settings.time_zone, now)
            candidate = next_candidate(standing, self.observed.adapters.values(), due, self._settings.tries_per_night)
            adapter, move = (candidate.name, candidate_move(candidate, due)) if candidate is not None else ("", None)
        return self._write(adapter, move) if move is not None else None

    def close(self) -> None:
        """Hang up."""
        self._consumer.close()
        self._producer.close()
        self._in_hand.close()

    def _try(self) -> PromotionMove | None:
        trial = self.observed.standing.trial
        assert trial is not None
        try:
            return self._trials.next(self.observed, trial, self._context.clock.now())
        except BadArtifact as error:
            return PromotionMove("rejected", f"the reward model cannot be read: {error}")

    def _read(self) -> None:
        """Read to the current end of the log."""
        while True:
            for record in self._consumer.poll(timeout_s=0.2, max_records=2000):
                if record.topic == LABELS.name and record.value is None:
                    self.observed.remove_label((record.key or b"").decode(errors="replace"))
                    continue
                try:
                    with self._in_hand.working_on(record.topic, record.partition, record.offset, "the promoter"):
                        self.observed.note(BY_NAME[record.topic].decode(record.value))
                except InvalidEvent as error:  # what nobody can decode, who owns the topic sets aside
                    log.warning("event_skipped", topic=record.topic, offset=record.offset, reason=error.reason)
                    if error.reason == "deadly" and self._in_hand.first_told(record.topic, record.partition, record.offset):
                        self._letters.set_aside(record, error)
            if self._consumer.measure_lag() == 0 or self._context.stopping.is_set():
                return

    def _write(self, adapter: str, move: PromotionMove) -> Promotion | None:
        event = Promotion.model_validate({
            "promotion_id": new_id("pr"), "policy": self._context.policy, "adapter": adapter, "move": move.move, "reason": move.reason,
            "evidence": dict(move.evidence), "canary_share": move.canary_share, "awaits_approval": move.awaits_approval, "by": TIDEMILL,
            "at": self._context.clock.now(),
        })  # fmt: skip
        self._producer.publish(PROMOTIONS, event)
        self._context.metrics.add("tidemill_promotions_total", move=event.move)
        self._context.metrics.add("tidemill_promotion_trials_total", float(event.move == "candidate"))
        for gate in move.evidence.get("gates", ()):
            self._context.metrics.add("tidemill_promotion_gates_total", gate=gate["gate"], result="passed" if gate["passed"] else "failed")
            for rule, found in gate.get("rules", {}).items():
                report_rule(rule, found["value"], found["tripped"], self._context.metrics)
        log.info("moved", adapter=adapter, move=event.move, reason=event.reason)
        return event
