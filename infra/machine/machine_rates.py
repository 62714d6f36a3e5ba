"""What a probe found out about a machine: the seconds that each kind of work takes on it, by precision and number of threads."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from infra.machine.base_shape import BaseShape

Precision = Literal["bfloat16", "float32"]
Seconds = float
DECODE_ROWS = (8, 32)
"""Answers in the making for which a decoding pass is timed; what lies between and beyond is interpolated."""
ANSWER_TOKENS = 32
"""Tokens of the answer whose features are timed."""


class WorkRates(BaseModel):
    """Seconds of each kind of work in one precision on so many threads. ``layer`` is one layer, ``head`` the output head."""

    model_config = ConfigDict(frozen=True)

    dtype: Precision
    threads: int = Field(ge=1)
    layer_pass_s: tuple[Seconds, Seconds]
    """One decoding pass of a layer for ``DECODE_ROWS`` answers, with weights as they are stored."""
    head_pass_s: tuple[Seconds, Seconds]
    packed_layer_pass_s: tuple[Seconds, Seconds] | None = None
    """The same with weights in oneDNN's own layout; None where this processor has no such products in this precision."""
    packed_head_pass_s: tuple[Seconds, Seconds] | None = None
    forward_token_s: Seconds
    """A layer for one of many tokens, without gradients."""
    train_token_s: Seconds
    """A layer for one of many tokens, forward and backward."""
    head_token_s: Seconds
    """Log-probability of one of many output tokens, without gradients."""
    train_head_token_s: Seconds
    feature_prompt_token_s: Seconds
    """A layer of the dense backbone of the reward features, for one of many tokens."""
    feature_answer_s: Seconds
    """A layer of that backbone for one answer of ``ANSWER_TOKENS`` tokens."""

    def decoding_s(self, shape: BaseShape, rows: float, packed: bool) -> Seconds:
        """One token for each of ``rows`` answers, all layers and the head."""
        layer, head = (self.packed_layer_pass_s, self.packed_head_pass_s) if packed else (self.layer_pass_s, self.head_pass_s)
        if layer is None or head is None:
            raise ValueError(f"this machine has no packed products in {self.dtype}")
        return shape.layers * _between(layer, rows) + _between(head, rows)


class MachineRates(BaseModel):
    """All that was measured on one machine for one shape of base."""

    model_config = ConfigDict(frozen=True)

    processor: str
    cores: int = Field(ge=1)
    """Cores that this process may use."""
    quota: float = Field(gt=0)
    """Cores' worth of time a second, where a control group limits it below ``cores``."""
    shape: BaseShape
    gpu: bool = False
    """True where torch finds a GPU; the processor was then not measured."""
    failure: str = ""
    """Why nothing was measured, where that is so."""
    busy_neighbours: float = Field(default=0.0, ge=0)
    """Cores that other processes kept busy meanwhile."""
    probe_s: Seconds = 0.0
    rates: tuple[WorkRates, ...] = ()

    def of(self, dtype: Precision) -> Sequence[WorkRates]:
        """What was measured in this precision, by number of threads."""
        return sorted((rate for rate in self.rates if rate.dtype == dtype), key=lambda rate: rate.threads)

    def at(self, dtype: Precision, threads: int) -> WorkRates:
        """What was measured in this precision on so many threads, or on the next smaller number that was tried."""
        found = self.of(dtype)
        return max((rate for rate in found if rate.threads <= threads), key=lambda rate: rate.threads, default=found[0])

    def stretch(self, threads: int) -> float:
        """By how much a quota stretches the time of work on so many threads."""
        return max(1.0, threads / self.quota)


def _between(at_rows: tuple[Seconds, Seconds], rows: float) -> Seconds:
    """On the line through the two timings, which never falls below zero rows' share of the first."""
    (few, many), (few_s, many_s) = DECODE_ROWS, at_rows
    slope = max(0.0, (many_s - few_s) / (many - few))
    return few_s + slope * (rows - few) if rows >= few else max(few_s / 2, few_s - slope * (few - rows))
