"""Synthetic streams of labels, by a seed: uneven, attacked, drifting, stationary. What is true of each is known, so that claims can be checked.

Features are drawn from a normal distribution. People like answers along one direction; a thumb is up with a probability that follows from it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import torch
from torch import Tensor

from reward.evaluation.calibration import area_under_curve
from reward.features.featurizer import Pair
from reward.fit.buffer_entry import BufferEntry
from reward.fit.reward_model import RewardModel
from reward.settings import RewardSettings
from reward.updater.refitter import Refit, Refitter

T0 = datetime(2026, 1, 1, tzinfo=UTC)
DIMENSIONS = 12


class DrawnFeatures:
    """Features that the stream brings along."""

    fingerprint = "d" * 64
    blocks = ((DIMENSIONS, 1.0),)

    def features(self, pairs: Sequence[Pair]) -> Tensor:
        raise NotImplementedError("the entries of a stream have their features")


@dataclass(frozen=True)
class StreamShape:
    """What a stream is like."""

    labels: int = 1000
    people: int = 50
    good: float = 0.5
    """Share of good answers."""
    strength: float = 2.0
    """Standard deviation of the answers' quality, in logits: 2 gives a judge who knows the truth an accuracy of about 0.8."""
    hostile: float = 0.0
    """Part of the people who say the opposite."""
    busy: float = 0.0
    """Part of the people who give ``busy_share`` of the labels: the first ones, who are also the hostile ones where there are such."""
    busy_share: float = 0.0
    turn: int | None = None
    """From this label on people like the opposite."""
    good_after: float | None = None
    """Share of good answers from ``turn`` on, in place of the opposite taste."""


@dataclass(frozen=True)
class DrawnStream:
    """Entries in the order in which they come, and answers that nobody judged with the probability that people call them good."""

    entries: list[BufferEntry]
    unseen_ND: Tensor
    truth_N: Tensor


def drawn(shape: StreamShape, seed: int, unseen: int = 4000) -> DrawnStream:
    """The stream of this shape and seed."""
    generator = torch.Generator().manual_seed(seed)
    direction_D = torch.randn(DIMENSIONS, generator=generator)
    direction_D *= shape.strength / direction_D.norm()
    x_ND = torch.randn(shape.labels + unseen, DIMENSIONS, generator=generator).half().float()
    quality_N = x_ND @ direction_D
    before = level_of(quality_N, shape.good)
    logits_N = quality_N + before
    if shape.turn is not None and shape.turn < shape.labels:
        turned = -quality_N + before if shape.good_after is None else quality_N + level_of(quality_N, shape.good_after)
        logits_N = torch.where(torch.arange(len(x_ND)) < shape.turn, logits_N, turned)
    up_N = torch.rand(len(x_ND), generator=generator) < torch.sigmoid(logits_N)
    person_N = torch.randint(shape.people, (len(x_ND),), generator=generator)
    if shape.busy_share:
        busy = round(shape.busy * shape.people)
        busy_N, other_N = (torch.randint(low, high, (len(x_ND),), generator=generator) for low, high in ((0, busy), (busy, shape.people)))
        person_N = torch.where(torch.rand(len(x_ND), generator=generator) < shape.busy_share, busy_N, other_N)
    up_N = up_N != (person_N < shape.hostile * shape.people)
    entries = [
        BufferEntry(f"ep-{n}", float(up_N[n]), 1, T0 + timedelta(minutes=n), x_ND[n].half(), voters=(f"p{int(person_N[n])}",), said=f"{n}")
        for n in range(shape.labels)
    ]
    return DrawnStream(entries, x_ND[shape.labels :], torch.sigmoid(logits_N[shape.labels :]))


def level_of(quality_N: Tensor, good: float) -> float:
    """The constant with which the mean probability is ``good``, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if float(torch.sigmoid(quality_N + middle).mean()) < good else (low, middle)
    return (low + high) / 2


def updates(stream: DrawnStream, settings: RewardSettings, batch: int = 100) -> Iterator[tuple[Refit, Refitter]]:
    """Test, then train, batch by batch, as the updater does."""
    refitter = Refitter(settings, DrawnFeatures())
    for begin in range(0, len(stream.entries), batch):
        refitter.absorb(refitter.predicted(stream.entries[begin : begin + batch]))
        refit = refitter.refit()
        refitter.published = refit.model or refitter.published
        yield refit, refitter


def ranking(model: RewardModel, stream: DrawnStream) -> float:
    """Probability that the model ranks two unseen answers as people's taste does, in which their quality is above or below the median."""
    good_N = stream.truth_N > stream.truth_N.median()
    area = area_under_curve(model.score(stream.unseen_ND).mean_N, good_N)
    assert area is not None
    return area
