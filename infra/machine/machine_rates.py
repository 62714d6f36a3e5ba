"""The result of a probe: seconds that each kind of work takes on a machine, by precision and number of threads."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from infra.machine.base_shape import BaseShape

Precision = Literal["bfloat16", "float32"]
Seconds = float
DECODE_ROWS = (8, 32)
"""Batch sizes for which a decoding pass is timed; others are interpolated."""
ANSWER_TOKENS = 32
"""Length of the answer whose features are timed, in tokens."""


class WorkRates(BaseModel):
    """Seconds of each kind of work in one precision with one number of threads. ``layer``: one layer; ``head``: the output head."""

    model_config = ConfigDict(frozen=True)

    dtype: Precision
    threads: int = Field(ge=1)
    layer_pass_s: tuple[Seconds, Seconds]
    """One decoding pass of a layer for each of ``DECODE_ROWS`` answers, with plain weights."""
    head_pass_s: tuple[Seconds, Seconds]
    packed_layer_pass_s: tuple[Seconds, Seconds] | None = None
    """The same with weights in oneDNN's layout; None when the processor lacks it in this precision."""
    packed_head_pass_s: tuple[Seconds, Seconds] | None = None
    forward_token_s: Seconds
    """One layer per token, in a long sequence, without gradients."""
    train_token_s: Seconds
    """One layer per token, in a long sequence, forward and backward."""
    head_token_s: Seconds
    """Log-probability of an output token, without gradients."""
    train_head_token_s: Seconds
    feature_prompt_token_s: Seconds
    """One layer of the dense backbone of the reward features, per token of a long sequence."""
    feature_answer_s: Seconds
    """One layer of that backbone for an answer of ``ANSWER_TOKENS`` tokens."""

    def decoding_s(self, shape: BaseShape, rows: float, packed: bool) -> Seconds:
        """Seconds for one token of each of ``rows`` answers: all layers and the head."""
        layer, head = (self.packed_layer_pass_s, self.packed_head_pass_s) if packed else (self.layer_pass_s, self.head_pass_s)
        if layer is None or head is None:
            raise ValueError(f"this machine does not support packed weights in {self.dtype}")
        return shape.layers * _between(layer, rows) + _between(head, rows)


class MachineRates(BaseModel):
    """All measurements of one machine for one shape of base."""

    model_config = ConfigDict(frozen=True)

    processor: str
    cores: int = Field(ge=1)
    """Cores that this process may use."""
    quota: float = Field(gt=0)
    """Processor seconds per second that the control group allows, if less than ``cores``."""
    shape: BaseShape
    gpu: bool = False
    """True when torch finds a GPU; then the processor is not measured."""
    failure: str = ""
    """Why the measurement failed; empty if it did not."""
    busy_neighbours: float = Field(default=0.0, ge=0)
    """Cores that other processes kept busy during the measurement."""
    probe_s: Seconds = 0.0
    rates: tuple[WorkRates, ...] = ()

    def of(self, dtype: Precision) -> Sequence[WorkRates]:
        """Rates in this precision, by number of threads."""
        return sorted((rate for rate in self.rates if rate.dtype == dtype), key=lambda rate: rate.threads)

    def at(self, dtype: Precision, threads: int) -> WorkRates:
        """Rates in this precision with this number of threads, or the next smaller one that was measured."""
        found = self.of(dtype)
        return max((rate for rate in found if rate.threads <= threads), key=lambda rate: rate.threads, default=found[0])

    def stretch(self, threads: int) -> float:
        """Factor by which a quota slows down work on this number of threads."""
        return max(1.0, threads / self.quota)


def _between(at_rows: tuple[Seconds, Seconds], rows: float) -> Seconds:
    """Interpolate linearly between the two timings, with a lower bound for few rows."""
    (few, many), (few_s, many_s) = DECODE_ROWS, at_rows
    slope = max(0.0, (many_s - few_s) / (many - few))
    return few_s + slope * (rows - few) if rows >= few else max(few_s / 2, few_s - slope * (few - rows))
