"""The watch over a new production: compares it with conversations held back on the production before it, and rolls it back automatically. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime

from actor.promotion.canary import DRAWN, HELD_BACK, compare, prior_in, side_of
from actor.promotion.promotion_evidence import PromotionEvidence
from actor.promotion.promotion_settings import PromotionSettings
from actor.promotion.promotion_stages import PromotionMove
from reward.trust.hacking_guards import GuardFinding, inspect, inspect_tools

FEWEST_ANSWERS = 64
"""Answers needed on either side before the hacking guards are applied."""


def looked_at(answers: int) -> int:
    """How many of so many answers the rules against hacking look at: the first 64, then the first 128, 256 … 0 below 64.

    They have fixed thresholds and are read with every poll. On all answers so far they would be tried anew thousands of times, until chance trips
    one. So a result changes only when there are twice as many answers.
    """
    return 0 if answers < FEWEST_ANSWERS else FEWEST_ANSWERS << ((answers // FEWEST_ANSWERS).bit_length() - 1)


def next_move(
    observed: PromotionEvidence, settings: PromotionSettings, now: datetime, tell: Callable[[Sequence[GuardFinding]], None] = lambda _: None
) -> PromotionMove | None:
    """Back, when a replica cannot serve it, people like it less, it fails more often, or it shows signs of hacking; to all conversations, when
    its time is over; to fewer, when a person promoted it to all at once; None while it goes on. ``tell`` hears what the rules against hacking
    find."""
    standing = observed.standing
    if standing.production is None or standing.since is None or settings.watch_h == 0:
        return None
    over = (now - standing.since).total_seconds() / 3600 >= settings.watch_h
    refused = {
        each.replica: each.reason
        for each in observed.attestations
        if each.adapter == standing.production and not each.passed and each.at >= standing.since
    }
    if refused and not over:
        return PromotionMove("rolled_back", f"a replica cannot serve it: {refused}"[:1000], {"failed": refused})
    if standing.share < 1:
        return _beside_the_one_before(observed, standing.since, settings, over, tell)
    if over or settings.promoted_share == 1:
        return None
    return PromotionMove("promoted", "some conversations go on with the production before it, to compare with", canary_share=settings.promoted_share)


def _beside_the_one_before(
    observed: PromotionEvidence, since: datetime, settings: PromotionSettings, over: bool, tell: Callable[[Sequence[GuardFinding]], None]
) -> PromotionMove | None:
    sides = (observed.standing.production, observed.standing.previous)
    verdicts = [side_of(observed.votes, adapter, since, drawn=drawn) for adapter, drawn in zip(sides, (DRAWN, HELD_BACK), strict=True)]
    failures = [observed.failures(sides[0], since), observed.failures(sides[1], since, "held_back")]
    shown = compare(verdicts[0], verdicts[1], (failures[0], failures[1]), prior_in(observed.standing.evidence), settings)
    told = {**shown.evidence, "before": observed.standing.previous or "base"}
    if shown.harm is not None:
        return PromotionMove("rolled_back", f"{shown.harm}, beside the production before it", told)
    answers = [[each.answer for each in observed.answered_since(since, adapter)] for adapter in sides]
    calling = [[each for each in observed.episodes if each.adapter == adapter and each.started_at >= since and each.tool_calls] for adapter in sides]
    looked, called = looked_at(min(map(len, answers))), looked_at(min(map(len, calling)))
    found = inspect(answers[0][:looked], answers[1][:looked]) if looked else ()
    tools = inspect_tools(calling[0][:called], calling[1][:called]) if called else None
    found = (*found, tools) if tools is not None else found
    tell(found)
    if tripped := [finding for finding in found if finding.tripped]:
        return PromotionMove("rolled_back", "; ".join(map(str, tripped)), {**told, "hacking": [asdict(finding) for finding in tripped]})
    if over:
        return PromotionMove(
            "promoted", f"answers all again after promotion.watch_h = {settings.watch_h:g}: {shown.said}", {"after": told}, canary_share=1.0
        )
    return None
