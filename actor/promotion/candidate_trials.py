"""Runs the stages of a trial: collects the evidence of the current stage and decides the next move. It writes nothing and has no state."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from actor.actor_client import ActorClient, PromptRequest
from actor.promotion.canary import Decision, decide, prior_in, prior_of, side_of
from actor.promotion.candidate_scoring import CandidateJudge
from actor.promotion.promotion_evidence import PromotionEvidence
from actor.promotion.promotion_gates import (
    AttestedEverywhere,
    Pair,
    PromotionGate,
    Result,
    Seen,
    asking_gates,
    cheap_gates,
    command_gates,
    shadow_gates,
)
from actor.promotion.promotion_settings import PromotionSettings
from actor.promotion.promotion_stages import PromotionMove, Trial
from actor.promotion.retention_probes import RetentionProbe
from reward.trust.hacking_guards import WRONG_PREMISES
from streams.core.events import AdapterVersion, Message, RewardModelVersion

DRIFTED = "its losses on the newest labels have risen for good"


class Trials:
    """The stages of a trial. Each method returns the next move, or None while it is undecided. Raises Unavailable or BadArtifact.

    ``device_s`` in the evidence: seconds in which candidate, production and base answered for the sake of the trial and were scored; people were
    answered by the same devices meanwhile.
    """

    def __init__(self, settings: PromotionSettings, policy: str, actors: ActorClient, judge: CandidateJudge, probes: Sequence[RetentionProbe],
                 base_url: str, tell: Callable[[Decision], None] = lambda _: None) -> None:  # fmt: skip
        """``tell`` is called with each result of a canary, decided or not."""
        self._settings, self._policy, self._actors, self._judge = settings, policy, actors, judge
        self._probes, self._base_url, self._tell = probes, base_url, tell

    def next(self, observed: PromotionEvidence, trial: Trial, now: datetime) -> PromotionMove | None:
        """The next move of the adapter on trial."""
        adapter = observed.adapters.get(trial.adapter)
        if adapter is None:
            return PromotionMove("rejected", f"{trial.adapter} is not on the adapters topic")
        seen = Seen(adapter, observed.standing.production, attestations=observed.attestations, now=now, base_url=self._base_url)
        if trial.stage == "candidate":
            return self._gates(observed, trial, seen)
        if trial.stage == "shadow":
            return self._shadow(observed, trial, seen)
        return self._canary(observed, trial, seen)

    def _gates(self, observed: PromotionEvidence, trial: Trial, seen: Seen) -> PromotionMove | None:
        settings, model = self._settings, observed.reward_model
        attested = AttestedEverywhere(settings.min_replicas, settings.replica_memory_h)
        if attested.waiting(seen) and (seen.now - trial.since).total_seconds() < settings.attest_timeout_s:
            return None
        if model is not None:
            drifted = (DRIFTED,) if self._judge.drifts(model, observed.recent_labels) else ()
            seen = replace(seen, calibration=model.calibration, alarms=(*model.alarms, *drifted))
        results = judge_all(cheap_gates(settings), seen)
        if model is None or not all(result.passed for result in results):
            return _after_gates(results, "shadow")
        questions, began = observed.questions(settings.prompts), time.monotonic()
        seen = self._asked(seen, model, questions)
        device_s = round(time.monotonic() - began, 2)
        results += judge_all(asking_gates(settings), seen)
        if all(result.passed for result in results):
            results += judge_all(command_gates(settings), seen)
        return _after_gates(results, "shadow", reward_model=model.version, device_s=device_s)

    def _asked(self, seen: Seen, model: RewardModelVersion, questions: Sequence[PromptRequest]) -> Seen:
        """Ask candidate, production and base the prompts and probes, and score the answers of the first two."""
        candidate, production, base = seen.adapter.name, seen.production or f"{self._policy}@0", f"{self._policy}@0"
        prompts = [*(probe.prompt for probe in self._probes), *(premise.prompt for premise in WRONG_PREMISES)]
        probes = [PromptRequest((Message(role="user", content=prompt),), {"temperature": 0.0}) for prompt in prompts]
        mine, probed = self._actors.ask(candidate, questions), self._actors.ask(candidate, probes)
        basic, base_probed = self._actors.ask(base, questions), self._actors.ask(base, probes)
        plain = [q for q in questions if all(isinstance(message.content, str) for message in q.messages)]  # images have no tokens to send again
        known = len(self._probes)
        theirs = basic if production == base else self._actors.ask(production, questions)
        return replace(
            seen,
            pairs=self._pairs(model, questions, mine, theirs),
            asked=len(questions),
            compared=self._actors.compare(candidate, base, plain[: self._settings.kl_prompts]),
            base_answers=[answer for answer in basic if answer is not None],
            retained=[None if answer is None else probe.right(answer) for probe, answer in zip(self._probes, probed[:known], strict=True)],
            base_retained=[None if answer is None else probe.right(answer) for probe, answer in zip(self._probes, base_probed[:known], strict=True)],
            to_wrong_premises=[answer or "" for answer in probed[known:]],
            base_to_wrong_premises=[answer or "" for answer in base_probed[known:]],
        )

    def _pairs(
        self, model: RewardModelVersion, questions: Sequence[PromptRequest], mine: Sequence[str | None], theirs: Sequence[str | None]
    ) -> list[Pair]:
        both = [(q, m, t) for q, m, t in zip(questions, mine, theirs, strict=True) if m is not None and t is not None]
        scores = self._judge.score(model, [(q.messages, answer) for q, m, t in both for answer in (m, t)])
        return [Pair(m, t, scores[2 * n], scores[2 * n + 1]) for n, (_, m, t) in enumerate(both)]

    def _shadow(self, observed: PromotionEvidence, trial: Trial, seen: Seen) -> PromotionMove | None:
        """Shadow: the candidate answers what people have asked production since the stage began, unseen by people."""
        settings, model, hours = self._settings, observed.reward_model, (seen.now - trial.since).total_seconds() / 3600
        if settings.shadow_prompts == 0:
            return self._to_canary(observed, seen, ())
        episodes = observed.answered_since(trial.since, seen.production, settings.shadow_prompts)
        if len(episodes) < settings.shadow_prompts or model is None:
            if hours < settings.max_shadow_h:
                return None
            return PromotionMove("rejected", f"only {len(episodes)} questions came in {hours:.1f} h of shadow, fewer than {settings.shadow_prompts}")
        questions, began = [PromptRequest(episode.messages, episode.sampling) for episode in episodes], time.monotonic()
        shown = [episode.answer for episode in episodes]
        pairs = self._pairs(model, questions, self._actors.ask(seen.adapter.name, questions), shown)
        device_s = round(time.monotonic() - began, 2)
        results = judge_all(shadow_gates(settings), replace(seen, pairs=pairs, asked=len(questions), base_answers=shown))
        if not all(result.passed for result in results):
            return _after_gates(results, "canary", device_s=device_s)
        return self._to_canary(observed, seen, results, device_s)

    def _to_canary(self, observed: PromotionEvidence, seen: Seen, results: Sequence[Result], device_s: float = 0.0) -> PromotionMove:
        prior = prior_of(observed.votes, seen.production, seen.now)
        evidence = {"gates": [result.as_evidence() for result in results], "prior": asdict(prior), "device_s": device_s}
        return PromotionMove("canary", f"{len(results)} shadow gates passed", evidence, canary_share=self._settings.canary_share)

    def _canary(self, observed: PromotionEvidence, trial: Trial, seen: Seen) -> PromotionMove | None:
        settings = self._settings
        attested = AttestedEverywhere(settings.min_replicas, settings.replica_memory_h)
        _, _, failed = attested.replicas(seen)
        if failed:
            return PromotionMove("rolled_back", f"a replica cannot serve it: {failed}"[:1000], {"failed": failed})
        sides = [side_of(observed.votes, adapter, trial.since) for adapter in (trial.adapter, seen.production)]
        failures = [observed.failures(adapter, trial.since) for adapter in (trial.adapter, seen.production)]
        hours = (seen.now - trial.since).total_seconds() / 3600
        decision = decide(sides[0], sides[1], (failures[0], failures[1]), prior_in(trial.evidence), hours, settings)
        self._tell(decision)
        if decision.move == "promoted" and not attested.judge(seen).passed:
            return None  # a new replica has not loaded it yet: either all replicas switch, or none
        if decision.move == "promoted" and settings.approval == "human":
            if trial.awaits_approval:
                return None
            return PromotionMove("canary", f"awaits approval: {decision.reason}", decision.evidence, awaits_approval=True)
        if decision.move is None or (trial.awaits_approval and decision.move == "rejected"):
            return None  # a canary that was better waits for approval, however long
        share = settings.promoted_share if decision.move == "promoted" else None
        return PromotionMove(decision.move, decision.reason, decision.evidence, canary_share=share)


def judge_all(gates: Sequence[PromotionGate], seen: Seen) -> list[Result]:
    """Results of all gates."""
    return [gate.judge(seen) for gate in gates]


def candidate_move(adapter: AdapterVersion, due: datetime) -> PromotionMove:
    """The move that puts an adapter on trial."""
    told = {"reward_model_version": adapter.reward_model_version, "step": adapter.step, "due": due.isoformat(), "metrics": dict(adapter.metrics)}
    return PromotionMove("candidate", f"the newest when the candidates were collected ({due.isoformat()})", told)


def _after_gates(results: Sequence[Result], onward: str, **more: Any) -> PromotionMove:
    failed = [result for result in results if not result.passed]
    evidence = {"gates": [result.as_evidence() for result in results], **more}
    if failed:
        return PromotionMove("rejected", "; ".join(f"{result.gate}: {result.reason}" for result in failed)[:1000], evidence)
    return PromotionMove(onward, f"{len(results)} gates passed", evidence)
