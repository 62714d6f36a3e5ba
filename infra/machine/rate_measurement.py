"""The measurement, in its own process: ``python -m infra.machine.rate_measurement JSON`` prints ``MachineRates`` as JSON.

It times the learner's own matrix products (learner/kernels/expert_lora.py, learner/kernels/output_head.py) in the base's real sizes, with random
weights. Two layers alternate, so that the caches cannot hold all weights. The shortest of several runs counts, because disturbances only make a
run longer. Shapes: ``B`` answers being decoded, ``T`` tokens, ``H`` hidden, ``I`` intermediate, ``E`` experts, ``N`` keys, ``V`` vocabulary.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from infra.machine.base_shape import BaseShape
from infra.machine.machine_rates import ANSWER_TOKENS, DECODE_ROWS, MachineRates, Precision, WorkRates
from infra.machine.probe_layer import ProbeLayer, random_weight
from learner.kernels.expert_lora import FrozenStack
from learner.kernels.output_head import TokenScores
from reward.features.frozen_product import can_pack

TRAIN_TOKENS = 192
"""Tokens of a forward and backward pass: about one group of short answers with its prompt."""
HEAD_TOKENS = 64
LAYERS = 2
LEAST_RUNS, MOST_RUNS = 2, 10
BUDGET_S = 0.1
"""Time budget for the runs of one kind of work after warm-up, with at least ``LEAST_RUNS`` runs."""
LONG_S = 0.5
"""If the first run takes this much processor time, it is the only one: some processors take seconds in a precision that they lack."""
WAITING = 1.25
"""Largest ratio of a run's counted time to the main thread's processor time, with several threads."""
MOST_WEIGHTS = 128 << 20
"""Largest layer that is measured as a whole, in parameters; of a larger one only some experts are."""
BUSY_COLUMNS = (0, 1, 2, 5, 6, 7)
"""Columns of a line of /proc/stat: user, nice, system, irq, softirq, steal."""


def measure(processor: str, threads: int, quota: float, shape: BaseShape) -> MachineRates:
    """Measure each precision with 1, 2, 4, … up to ``threads`` threads, and stop when more threads are slower."""
    began_s, busy_s = time.perf_counter(), _busy_s()
    facts = {"processor": processor, "cores": threads, "quota": quota, "shape": shape}
    if torch.cuda.is_available():
        return MachineRates.model_validate({**facts, "gpu": True})
    rates: list[WorkRates] = []
    for dtype in (torch.bfloat16, torch.float32):
        work = ProbeWork(shape, dtype)
        slowest_s = float("inf")
        for count in thread_counts(threads):
            torch.set_num_threads(count)
            rates.append(work.rates(count))
            if rates[-1].train_token_s > 1.3 * slowest_s:
                break
            slowest_s = min(slowest_s, rates[-1].train_token_s)
        del work
    wall_s = time.perf_counter() - began_s
    neighbours = max(0.0, (_busy_s() - busy_s - sum(os.times()[:2])) / wall_s) if busy_s else 0.0
    return MachineRates.model_validate({**facts, "rates": rates, "busy_neighbours": neighbours})


def thread_counts(most: int) -> list[int]:
    """Numbers of threads to try: 1, 2, 4, … and ``most``."""
    return sorted({*(1 << n for n in range(most.bit_length())), most})


class ProbeWork:
    """All kinds of work in one precision."""

    def __init__(self, shape: BaseShape, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        few = max(shape.experts_per_token, MOST_WEIGHTS // (3 * shape.hidden * shape.intermediate))
        self.shape, self.dtype = shape, dtype
        self.layers = [ProbeLayer(shape.model_copy(update={"experts": min(shape.experts, few)}), dtype) for _ in range(LAYERS)]
        self.head_VH = random_weight(dtype, shape.vocabulary, shape.hidden)
        self.heads = {packs: FrozenStack(self.head_VH[None], packs) for packs in (False, True)}

    def rates(self, threads: int) -> WorkRates:
        """Seconds of each kind of work with torch's current number of threads."""
        name: Precision = "bfloat16" if self.dtype == torch.bfloat16 else "float32"
        packs = can_pack(self.dtype)
        with torch.inference_mode():
            return WorkRates(
                dtype=name,
                threads=threads,
                layer_pass_s=self._decoding(packs=False),
                head_pass_s=self._drawing(packs=False),
                packed_layer_pass_s=self._decoding(packs=True) if packs else None,
                packed_head_pass_s=self._drawing(packs=True) if packs else None,
                forward_token_s=self._layer_s(lambda layer, x_TH: layer.forward(x_TH), TRAIN_TOKENS) / TRAIN_TOKENS,
                train_token_s=self._training_s() / TRAIN_TOKENS,
                head_token_s=self._scoring_s() / HEAD_TOKENS,
                train_head_token_s=self._score_training_s() / HEAD_TOKENS,
                feature_prompt_token_s=self._layer_s(lambda layer, x_TH: layer.dense(x_TH), TRAIN_TOKENS) / TRAIN_TOKENS,
                feature_answer_s=self._layer_s(lambda layer, x_TH: layer.dense(x_TH), ANSWER_TOKENS),
            )

    def _decoding(self, packs: bool) -> tuple[float, float]:
        few, many = (self._layer_s(lambda layer, x_BH: layer.decode(x_BH, packs), rows) for rows in DECODE_ROWS)
        return few, many

    def _drawing(self, packs: bool) -> tuple[float, float]:
        """Logits of one token per row and the choice of the next one, as in learner/rollouts/rollout_engines.py."""

        def draw_s(x_BH: Tensor) -> float:
            return shortest_s(lambda: draw(x_BH))

        def draw(x_BH: Tensor) -> None:
            logprobs_BV = torch.log_softmax(self.heads[packs].times(0, x_BH).float(), dim=-1)
            summed_BV = logprobs_BV.exp().cumsum(dim=-1)
            torch.searchsorted(summed_BV, torch.rand(len(x_BH), 1) * summed_BV[:, -1:])

        few, many = (draw_s(self._tokens(rows)) for rows in DECODE_ROWS)
        return few, many

    def _layer_s(self, work: Callable[[ProbeLayer, Tensor], object], tokens: int) -> float:
        """Seconds of one layer, alternating between the layers."""
        x_TH = self._tokens(tokens)
        return shortest_s(lambda: [work(layer, x_TH) for layer in self.layers]) / LAYERS

    @torch.inference_mode(False)
    @torch.enable_grad()
    def _training_s(self) -> float:
        x_TH = self._tokens(TRAIN_TOKENS).requires_grad_()

        def train() -> None:
            for layer in self.layers:
                layer.forward(x_TH).sum().backward()

        return shortest_s(train) / LAYERS

    def _scoring_s(self) -> float:
        hidden_TH, target_T = self._tokens(HEAD_TOKENS), torch.arange(HEAD_TOKENS)
        return shortest_s(lambda: TokenScores.apply(hidden_TH, self.head_VH, None, target_T, 1.0))

    @torch.inference_mode(False)
    @torch.enable_grad()
    def _score_training_s(self) -> float:
        hidden_TH, target_T = self._tokens(HEAD_TOKENS).requires_grad_(), torch.arange(HEAD_TOKENS)
        return shortest_s(lambda: TokenScores.apply(hidden_TH, self.head_VH, None, target_T, 1.0)[0].sum().backward())

    def _tokens(self, count: int) -> Tensor:
        return torch.randn(count, self.shape.hidden, dtype=self.dtype)


def shortest_s(work: Callable[[], object]) -> float:
    """Seconds of the shortest of several runs; the first is only a warm-up, unless it is long. The time is capped by our own processor time,
    so that other processes do not count; with several threads, some waiting for each other is allowed for."""
    wall_s: list[float] = []
    own_s: list[float] = []
    while len(wall_s) <= LEAST_RUNS or (sum(wall_s) < BUDGET_S and len(wall_s) <= MOST_RUNS):
        began_s, own_began_s = time.perf_counter(), time.thread_time()
        work()
        wall_s.append(time.perf_counter() - began_s)
        own_s.append(time.thread_time() - own_began_s)
        if own_s[0] > LONG_S:
            break
    return min(min(wall_s), min(own_s) * (1.0 if torch.get_num_threads() == 1 else WAITING))


def _busy_s() -> float:
    """Seconds that this process's cores have been busy with any process since boot; 0 when the kernel does not say."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return 0.0
    ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    counted = [line.split()[1:] for line in lines if line.split(" ", 1)[0] in ours]
    return sum(int(columns[n]) for columns in counted for n in BUSY_COLUMNS if n < len(columns)) / os.sysconf("SC_CLK_TCK")


def main(arguments: Sequence[str]) -> None:
    """Measure as the JSON says, and print the result."""
    asked = json.loads(arguments[0])
    print(measure(asked["processor"], asked["cores"], asked["quota"], BaseShape.model_validate(asked["shape"])).model_dump_json())


if __name__ == "__main__":
    main(sys.argv[1:])
