"""What a replica must show to prove that it serves an adapter: probe tokens on which the adapter says something else than what could stand
in its place, and what the learner's weights say of them.

A replica that serves the base, the adapter before this one, or a part of its tensors answers almost as it should. So each probe holds the
log-probabilities of all of these, which actor/adapters/adapter_effect.py tells apart. They are computed in float32, whatever the learner
trains in: noise of the learner's own would hide a small step.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from learner.models.float32_pass import Float32Pass
from learner.models.lora_policy import Policy
from learner.models.sequence_packing import Branches, pack
from learner.rollouts.rollout_engines import Rollout

TELLING_NATS2 = 1.0
"""Sum over tokens of the squared step from the base, in nats², that tells an adapter from the base and from a third of itself
through the noise of bfloat16 (0.03 nats a token)."""
MOST_TIMES = 4
"""So many times ``learner.probes`` are taken of an adapter whose step is small."""


@dataclass(frozen=True)
class MeasuredProbe:
    """One rollout and what the learner's weights say of its tokens, in nats."""

    rollout: Rollout
    logprobs: dict[str, list[float]]
    """By who says it: ``adapter``, ``base``, ``parent``, or ``without`` and a group of tensors."""

    @property
    def square(self) -> float:
        """Of the step from the base, summed over tokens."""
        pairs = zip(self.logprobs["adapter"], self.logprobs["base"], strict=True)
        return sum((adapter - base) ** 2 for adapter, base in pairs)

    def as_stored(self) -> dict[str, Any]:
        """Its form in probes.json (actor/adapters/attestation.py)."""
        left_out = {name.removeprefix("without "): values for name, values in self.logprobs.items() if name.startswith("without ")}
        stored = {"prompt_ids": list(self.rollout.prompt_ids), "output_ids": list(self.rollout.output_ids),
                  "adapter_logprobs": self.logprobs["adapter"], "base_logprobs": self.logprobs["base"], "without": left_out}  # fmt: skip
        return stored | ({"parent_logprobs": self.logprobs["parent"]} if "parent" in self.logprobs else {})


@torch.no_grad()
def probes_of(policy: Policy, rollouts: Sequence[Rollout], count: int, parent: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """The content of probes.json: ``count`` of the rollouts, taken from the front; more of them while the adapter's step on them is small.

    ``parent``: the weights of the adapter that was published before, by the names of ``policy.parameters``.
    """
    told = [rollout for rollout in rollouts if rollout.output_ids]
    measured: list[MeasuredProbe] = []
    while told and len(measured) < MOST_TIMES * count and sum(probe.square for probe in measured) < TELLING_NATS2:
        some, told = told[:count], told[count:]
        measured += _measured(policy, some, parent)
    norms = {name: float(weight.double().norm()) for name, weight in policy.adapter().items()}
    return {"probes": [probe.as_stored() for probe in measured], "precision": "float32", "tensors": norms}


def _measured(policy: Policy, rollouts: Sequence[Rollout], parent: Mapping[str, Tensor] | None) -> list[MeasuredProbe]:
    rollouts = sorted(rollouts, key=lambda rollout: rollout.prompt_ids)
    by_prompt = groupby(rollouts, key=lambda rollout: rollout.prompt_ids)
    packed = pack([Branches(ids, tuple(r.output_ids for r in group)) for ids, group in by_prompt], policy.eos_id, policy.device)
    found: dict[str, Tensor] = {}
    for name, within in _sayers(policy, parent):
        with within, Float32Pass():
            found[name] = policy.stats(packed).logprobs_BT
    return [
        MeasuredProbe(rollout, {name: logprobs_BT[n, : len(rollout.output_ids)].tolist() for name, logprobs_BT in found.items()})
        for n, rollout in enumerate(rollouts)
    ]


def _sayers(policy: Policy, parent: Mapping[str, Tensor] | None) -> Iterator[tuple[str, AbstractContextManager[None]]]:
    """Everybody whose log-probabilities a probe holds."""
    yield "adapter", nullcontext()
    yield "base", policy.reference()
    groups = policy.groups
    if len(groups) > 1:  # without the only one it is the base
        yield from ((f"without {group}", policy.without(group)) for group in groups)
    if parent is not None:
        yield "parent", policy.as_it_was(parent)
