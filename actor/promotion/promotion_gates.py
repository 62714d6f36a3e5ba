"""The gates that a candidate must pass before people see it: each has a threshold, a result, and the figures behind it. Pure, except for the gate
that runs a command."""

import math
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

import numpy as np

from actor.actor_client import ComparedAnswer
from actor.promotion.promotion_settings import PromotionSettings
from reward.trust.hacking_guards import inspect, inspect_probes, refusals, words_per_answer
from streams.core.events import AdapterVersion, Attestation, Calibration

TAIL_CHARACTERS = 2000
MOST_UNANSWERED = 0.1
"""Largest part of what was asked that may stay without an answer: what timed out is no verdict, and what is left is a selection."""
FEWEST = 16
"""Fewest prompts for a win rate or a KL: a bootstrap over a handful is overconfident."""
MOST_NATS_APART = 30.0
"""Difference of a token's log-probabilities beyond which it is cut: engines tell numbers such as -9999 for what they rule out."""


@dataclass(frozen=True)
class Pair:
    """One prompt answered by candidate and production, with the reward model's scores (0 to 1)."""

    candidate: str
    production: str
    candidate_score: float
    production_score: float


@dataclass(frozen=True)
class Seen:
    """Everything that the gates use."""

    adapter: AdapterVersion
    production: str | None
    pairs: Sequence[Pair] = ()
    asked: int | None = None
    """How many prompts candidate and production were asked. ``pairs`` are those that both answered. None: as many."""
    base_answers: Sequence[str] = ()
    """The base's answers to the same prompts: the reference for the hacking guards."""
    compared: Sequence[ComparedAnswer | None] = ()
    """Answers sampled from the candidate, one a prompt, as the candidate and the base see them. None: refused."""
    retained: Sequence[bool | None] = ()
    """For each frozen probe, whether the candidate's answer was right. None: it was not answered, which says nothing of the candidate."""
    base_retained: Sequence[bool | None] = ()
    """The same of the base."""
    to_wrong_premises: Sequence[str] = ()
    """The candidate's answers to ``reward.trust.hacking_guards.WRONG_PREMISES``; empty where it was not asked."""
    base_to_wrong_premises: Sequence[str] = ()
    """The same of the base."""
    attestations: Sequence[Attestation] = ()
    """The newest of each replica and adapter."""
    calibration: Calibration | None = None
    """Of the reward model that scored, on labels it had not seen."""
    alarms: Sequence[str] = ()
    """Reasons not to trust it, as of its publication and now, one sentence each."""
    now: datetime = datetime.min
    base_url: str = ""


@dataclass(frozen=True)
class Result:
    """The result of one gate. ``evidence`` holds plain JSON values."""

    gate: str
    passed: bool
    reason: str
    evidence: Mapping[str, Any]

    def as_evidence(self) -> dict[str, Any]:
        """For a Promotion event."""
        return {"gate": self.gate, "passed": self.passed, "reason": self.reason, **self.evidence}


class PromotionGate(Protocol):
    """One gate."""

    @property
    def name(self) -> str: ...

    def judge(self, seen: Seen) -> Result: ...


@dataclass(frozen=True)
class WinRate:
    """The reward model prefers the candidate's answers to production's, prompt by prompt; ties count half."""

    least: float
    seed: int = 0
    name: str = "win_rate"

    def judge(self, seen: Seen) -> Result:
        told: dict[str, Any]
        wins = [0.5 if pair.candidate_score == pair.production_score else float(pair.candidate_score > pair.production_score) for pair in seen.pairs]
        if len(wins) < FEWEST:
            return Result(self.name, False, f"only {len(wins)} prompts were compared, fewer than {FEWEST}", {"prompts": len(wins)})
        asked = len(wins) if seen.asked is None else seen.asked
        if asked - len(wins) > MOST_UNANSWERED * asked:
            told = {"prompts": len(wins), "asked": asked}
            return Result(
                self.name, False, f"no power: {asked - len(wins)} of {asked} prompts were not answered by both; the rest is a selection", told
            )
        if all(win == 0.5 for win in wins):
            said = f"no power: the reward model scores both answers to each of {len(wins)} prompts alike"
            return Result(self.name, False, said, {"value": 0.5, "prompts": len(wins), "ties": len(wins)})
        low, high = bootstrap(wins, self.seed)
        rate = sum(wins) / len(wins)
        told = {"value": round(rate, 4), "low": round(low, 4), "high": round(high, 4), "threshold": self.least, "prompts": len(wins)}
        said = f"wins {rate:.0%} of {len(wins)} prompts ({low:.0%} to {high:.0%})"
        return Result(self.name, low > self.least, f"{said}, {'more' if low > self.least else 'not surely more'} than {self.least:.0%}", told)


@dataclass(frozen=True)
class Retention:
    """The candidate still answers the retention probes that the base answers correctly."""

    most_lost: float
    name: str = "retention"

    def judge(self, seen: Seen) -> Result:
        told: dict[str, Any]
        count = len(seen.base_retained)
        if count == 0 or len(seen.retained) != count:
            return Result(self.name, False, f"{len(seen.retained)} probes answered by the candidate, {count} by the base", {"probes": count})
        both = [(c, b) for c, b in zip(seen.retained, seen.base_retained, strict=True) if c is not None and b is not None]
        if count - len(both) > MOST_UNANSWERED * count:
            told = {"probes": count, "answered": len(both)}
            return Result(self.name, False, f"no power: {count - len(both)} of {count} probes were not answered by both", told)
        base, candidate, count = sum(b for _, b in both), sum(c for c, _ in both), len(both)
        lost = (base - candidate) / count
        told = {"value": round(lost, 4), "threshold": self.most_lost, "base_right": base, "candidate_right": candidate, "probes": count}
        if base / count <= self.most_lost:  # it could lose them all and still pass
            said = f"no power: the base itself answers {base} of {count} probes; set promotion.retention_file to questions that it can answer"
            return Result(self.name, False, said, told)
        return Result(self.name, lost <= self.most_lost, f"{candidate} of {count} probes right, the base {base}", told)


@dataclass(frozen=True)
class KlBudget:
    """The candidate's KL to the base is within the limit, measured on what it says to people's prompts: on the adapter that is to be promoted, as
    actors serve it. (The learner's figure is of the weights before its last step, on a few groups.)"""

    most_nats: float
    seed: int = 0
    name: str = "kl_budget"

    def judge(self, seen: Seen) -> Result:
        kls = [kl_nats(answer) for answer in seen.compared if answer is not None]
        told: dict[str, Any] = {"prompts": len(kls), "asked": len(seen.compared), "threshold": self.most_nats}
        told["learner_kl_nats"] = seen.adapter.metrics.get("kl_nats")
        if len(kls) < FEWEST:
            said = f"no power: the KL was measured on {len(kls)} prompts, fewer than {FEWEST} (promotion.kl_prompts)"
            return Result(self.name, False, said, told)
        if len(seen.compared) - len(kls) > MOST_UNANSWERED * len(seen.compared):
            said = f"no power: {len(seen.compared) - len(kls)} of {len(seen.compared)} prompts were not answered; the rest is a selection"
            return Result(self.name, False, said, told)
        if not any(kls):
            return Result(self.name, False, "no power: a KL of exactly 0 says that the base itself answered", told | {"value": 0.0})
        (low, high), kl = bootstrap(kls, self.seed), sum(kls) / len(kls)
        told |= {"value": round(kl, 5), "low": round(low, 5), "high": round(high, 5)}
        said = f"{kl:.3f} nats a token from the base ({low:.3f} to {high:.3f}), {'within' if high <= self.most_nats else 'not surely within'}"
        return Result(self.name, high <= self.most_nats, f"{said} {self.most_nats:g}", told)


@dataclass(frozen=True)
class Hacking:
    """No guard against reward hacking trips, compared with the base (``reward/trust/hacking_guards.py``)."""

    name: str = "hacking"

    def judge(self, seen: Seen) -> Result:
        findings = inspect([pair.candidate for pair in seen.pairs], seen.base_answers)
        if findings and seen.to_wrong_premises:
            findings = (*findings, inspect_probes(seen.to_wrong_premises, seen.base_to_wrong_premises))
        told = {"rules": {f.rule: {"value": round(f.value, 4), "reference": round(f.reference, 4), "tripped": f.tripped} for f in findings}}
        if not findings:
            return Result(self.name, False, "too few answers to look at", told)
        tripped = [finding for finding in findings if finding.tripped]
        said = "; ".join(f"{f.rule}: {f.sentence} ({f.value:.2f}, the base {f.reference:.2f})" for f in tripped)
        return Result(self.name, not tripped, said or "no sign of it", told)


@dataclass(frozen=True)
class Shift:
    """Length, refusals and language of the answers are similar to production's."""

    length_ratio: float
    refusal_rise: float
    familiar_words: float
    name: str = "shift"

    def judge(self, seen: Seen) -> Result:
        candidate, production = [pair.candidate for pair in seen.pairs], [pair.production for pair in seen.pairs]
        if not candidate:
            return Result(self.name, False, "nothing was compared", {})
        length = (words_per_answer(candidate) + 1) / (words_per_answer(production) + 1)
        refusal = refusals(candidate) - refusals(production)
        known = familiarity(candidate, [*production, *seen.base_answers])
        complaints = [
            *([f"answers are {length:.2f} times as long"] if not 1 / self.length_ratio <= length <= self.length_ratio else []),
            *([f"{refusal:.0%} more decline"] if refusal > self.refusal_rise else []),
            *([f"the language is another ({known:.0%} familiar words)"] if known < self.familiar_words else []),
        ]
        told = {"length_ratio": round(length, 3), "refusal_rise": round(refusal, 4), "familiar_words": round(known, 3)}
        return Result(self.name, not complaints, "; ".join(complaints) or "length, refusals and language as before", told)


@dataclass(frozen=True)
class AttestedEverywhere:
    """Every recently active replica has attested exactly this candidate."""

    min_replicas: int
    memory_h: float
    name: str = "attested"

    def judge(self, seen: Seen) -> Result:
        living, proved, failed = self.replicas(seen)
        missing = sorted(living - proved)
        by_tensors = sorted(each.replica for each in seen.attestations if each.adapter == seen.adapter.name and each.proof == "tensors")
        told = {"replicas": sorted(living), "attested": sorted(proved), "by_tensors_alone": by_tensors, "failed": failed}
        if failed:
            return Result(self.name, False, "; ".join(f"{replica}: {reason}" for replica, reason in failed.items())[:TAIL_CHARACTERS], told)
        if missing or len(proved) < self.min_replicas:
            said = f"attested by {len(proved)} replicas of at least {max(self.min_replicas, len(living))}"
            return Result(self.name, False, said + (f", not by {', '.join(missing)}" if missing else ""), told)
        return Result(self.name, True, f"attested by all {len(proved)} replicas", told)

    def waiting(self, seen: Seen) -> bool:
        """True while a replica may still attest it, and none has refused it."""
        living, proved, failed = self.replicas(seen)
        return not failed and (bool(living - proved) or len(proved) < self.min_replicas)

    def replicas(self, seen: Seen) -> tuple[set[str], set[str], dict[str, str]]:
        """Recently active replicas; replicas that attested exactly these bytes; replicas that refused them, with the reason."""
        living = {each.replica for each in seen.attestations if each.at >= seen.now - timedelta(hours=self.memory_h)}
        of_it = [each for each in seen.attestations if each.adapter == seen.adapter.name and each.adapter_sha256 == seen.adapter.artifact.sha256]
        failed = {each.replica: each.reason for each in of_it if not each.passed and each.replica in living}
        return living, {each.replica for each in of_it if each.passed}, failed


@dataclass(frozen=True)
class RewardModelHealthy:
    """The reward model is fit to judge: calibrated, better than chance on unseen labels, and without an alarm."""

    max_ece: float
    min_auc: float
    min_labels: int
    name: str = "reward_model"

    def judge(self, seen: Seen) -> Result:
        found = seen.calibration
        if found is None or found.labels < self.min_labels:
            count = found.labels if found is not None else 0
            return Result(self.name, False, f"only {count} unseen labels, fewer than {self.min_labels}", {"labels": count})
        complaints = [
            *([f"ECE {found.ece:.3f} is above {self.max_ece:g}"] if found.ece > self.max_ece else []),
            *([f"AUC {found.auc} is below {self.min_auc:g}"] if found.auc is None or found.auc < self.min_auc else []),
            *seen.alarms,
        ]
        told = {"ece": found.ece, "auc": found.auc, "accuracy": found.accuracy, "labels": found.labels, "alarms": list(seen.alarms)}
        return Result(self.name, not complaints, "; ".join(complaints) or "calibrated, and no drift", told)


@dataclass(frozen=True)
class Command:
    """A team's own evaluation: a program without a shell. Its exit status is the result, the end of its output the evidence."""

    arguments: tuple[str, ...]
    timeout_s: float
    name: str = "command"

    def judge(self, seen: Seen) -> Result:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}  # the ring's passwords among them
        environment = {**inherited, "TIDEMILL_CANDIDATE": seen.adapter.name, "TIDEMILL_PRODUCTION": seen.production or "base",
                       "TIDEMILL_BASE_URL": seen.base_url}  # fmt: skip
        told: dict[str, Any] = {"command": list(self.arguments)}
        with tempfile.TemporaryFile() as output:
            status: int | None = None
            try:
                process = subprocess.Popen(self.arguments, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                           start_new_session=True)  # fmt: skip
            except OSError as error:
                said = f"cannot be run: {error.strerror}"
            else:
                try:
                    status = process.wait(self.timeout_s)
                    said = "passed" if status == 0 else f"exit status {status}"
                except subprocess.TimeoutExpired:
                    said = f"not done after promotion.command_timeout_s = {self.timeout_s:g}"
                finally:
                    if process.returncode is None:
                        os.killpg(process.pid, signal.SIGKILL)  # with all that it started
                        process.wait()
            output.seek(0, os.SEEK_END)
            output.seek(max(0, output.tell() - 4 * TAIL_CHARACTERS))
            told["output"] = output.read().decode(errors="replace")[-TAIL_CHARACTERS:]
        return Result(self.name, status == 0, f"{self.arguments[0]}: {said}", {**told, "exit_status": status})


def cheap_gates(settings: PromotionSettings) -> tuple[PromotionGate, ...]:
    """Gates that need no answers of the candidate. If one fails, the others are not run."""
    return (
        AttestedEverywhere(settings.min_replicas, settings.replica_memory_h),
        RewardModelHealthy(settings.max_ece, settings.min_auc, settings.min_reward_labels),
    )


def asking_gates(settings: PromotionSettings) -> tuple[PromotionGate, ...]:
    """Gates that use the candidate's answers."""
    return (
        KlBudget(settings.max_kl_nats, settings.seed),
        WinRate(settings.min_win_rate, settings.seed),
        Retention(settings.max_retention_drop),
        Hacking(),
        Shift(settings.max_length_ratio, settings.max_refusal_rise, settings.min_familiar_words),
    )


def command_gates(settings: PromotionSettings) -> tuple[PromotionGate, ...]:
    """A team's own evaluations, which may take long: they run when all other gates have passed."""
    return tuple(Command(command, settings.command_timeout_s) for command in settings.commands)


def shadow_gates(settings: PromotionSettings) -> tuple[PromotionGate, ...]:
    """Gates for the answers that the candidate gave in shadow."""
    return (
        WinRate(settings.min_shadow_win_rate, settings.seed),
        Hacking(),
        Shift(settings.max_length_ratio, settings.max_refusal_rise, settings.min_familiar_words),
    )


def kl_nats(answer: ComparedAnswer) -> float:
    """KL from the other model, in nats a token: the mean of ``r - 1 - log r``, r = other / own, over tokens that the model sampled itself (k3;
    Schulman 2020, "Approximating KL divergence"). Never negative."""
    apart = [max(-MOST_NATS_APART, min(MOST_NATS_APART, other - own)) for own, other in zip(answer.own, answer.other, strict=True)]
    return sum(math.expm1(gap) - gap for gap in apart) / max(1, len(apart))


def bootstrap(values: Sequence[float], seed: int, resamples: int = 4000) -> tuple[float, float]:
    """95 % percentile interval of the mean (Efron 1979)."""
    values_N = np.asarray(values, float)
    picks_RN = np.random.default_rng(seed).integers(0, len(values_N), (resamples, len(values_N)))
    low, high = np.quantile(values_N[picks_RN].mean(1), [0.025, 0.975])
    return float(low), float(high)


def familiarity(answers: Sequence[str], reference: Sequence[str]) -> float:
    """Part of the answers' words that occur anywhere in the reference. A new manner of speaking keeps the small words of its language; another
    language has almost none of them. 0 where there are no words on one side, 1 where there are none on both."""
    said, known = _words(answers), frozenset(_words(reference))
    if not said or not known:
        return float(not said and not known)
    return sum(word in known for word in said) / len(said)


def _words(texts: Sequence[str]) -> list[str]:
    """Words in lower case; single characters of scripts that put no spaces between words."""
    return [piece for text in texts for word in re.findall(r"[^\W\d_]+", text.lower()) for piece in ([word] if word < "\u3040" else word)]
