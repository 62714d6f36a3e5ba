"""The cap on one person's share of the weight in a fit: whatever one person does, they hold at most that much. Pure arithmetic.

Shapes: ``N`` rows (labels and pairs). A row of several people belongs to them in equal parts. Each person's rows are scaled down by one factor, so
that nobody holds more than a level that is the permitted share of what is held afterwards (water-filling; Boyd and Vandenberghe 2004, ch. 5.5.3).
A share of the weight *before* capping would not do: of 1,000 labels, 950 by one person, a fifth of all is still four fifths of what is left.
Nobody's weight is scaled up: few labels beside a flood are still few labels.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def held_by_person(amounts_N: Tensor, people: Sequence[Sequence[str]]) -> dict[str, float]:
    """The weight that each person holds."""
    held: dict[str, float] = defaultdict(float)
    for amount, several in zip(amounts_N.tolist(), people, strict=True):
        for person in several:
            held[person] += amount / len(several)
    return dict(held)


def share_factors(held: Mapping[str, float], share: float) -> dict[str, float]:
    """A factor for each person, at most 1, under which nobody holds more than ``share`` of what people hold together.

    Among fewer people than 1 / ``share`` that is impossible; there, nobody holds more than an equal part.
    """
    amounts = sorted((amount for amount in held.values() if amount > 0), reverse=True)
    if not amounts:
        return dict.fromkeys(held, 1.0)
    permitted, rest = max(share, 1 / len(amounts)), sum(amounts)
    level = amounts[0]
    for capped, amount in enumerate(amounts):  # so many people are held to the level; the rest hold ``rest``
        level = permitted * rest / (1 - capped * permitted) if capped * permitted < 1 - 1e-9 else amounts[-1]
        if amount <= level:
            break
        rest -= amount
    return {person: min(1.0, level / amount) if amount > 0 else 1.0 for person, amount in held.items()}


def row_factors(people: Sequence[Sequence[str]], factors: Mapping[str, float]) -> Tensor:
    """The factor of each row ``[N]``: the mean of its people's; 1 for rows that are nobody's. Float64."""
    return torch.tensor([sum(factors[p] for p in several) / len(several) if several else 1.0 for several in people], dtype=torch.float64)


def largest_share(amounts_N: Tensor, people: Sequence[Sequence[str]], factors: Mapping[str, float]) -> float | None:
    """Largest share of what all people hold that one person holds after capping. None when no person is named."""
    held = {person: amount * factors[person] for person, amount in held_by_person(amounts_N, people).items()}
    total = sum(held.values())
    return min(1.0, max(held.values()) / total) if total > 0 else None
