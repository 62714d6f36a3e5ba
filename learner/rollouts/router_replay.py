"""Router replay: the experts that the engine chose are the experts that the trainer uses (R3, Ma et al. 2025).

Engine and trainer compute in different orders, so a router's near tie may be decided differently: other experts, another probability, and a ratio far
from 1 that is not due to the policy. ``L`` layers with a router, ``N`` tokens, ``E`` experts, ``K`` experts per token.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from learner.models.sequence_packing import Branches, Packed
from reward.families.model_family import ModelFamily, RouterRule
from streams.core.errors import ConfigError

FREE: Final = -1
"""Instead of an expert's number: there is no recorded choice for this token, and the router decides."""


def _softmax(logits_NE: Tensor) -> Tensor:
    return logits_NE.float().softmax(-1)


def _sigmoid(logits_NE: Tensor) -> Tensor:
    return logits_NE.float().sigmoid()


def _as_they_are(gate: Any, chosen_NK: Tensor) -> Tensor:
    return chosen_NK


def _to_one(gate: Any, chosen_NK: Tensor) -> Tensor:
    return chosen_NK / chosen_NK.sum(-1, keepdim=True)


def _to_one_scaled(gate: Any, chosen_NK: Tensor) -> Tensor:
    return _to_one(gate, chosen_NK) * gate.routed_scaling_factor


Rule = tuple[Callable[[Tensor], Tensor], Callable[[Any, Tensor], Tensor]]
RULES: Final[tuple[Rule, ...]] = ((_softmax, _to_one), (_softmax, _as_they_are), (_sigmoid, _to_one_scaled))
"""How routers turn logits into the chosen experts' weights: Mixtral and Qwen3-MoE; OLMoE; DeepSeek-V3 and Kimi-K2."""


class RouterChoices:
    """Records and replays the choices of a transformers model's routers."""

    def __init__(self, causal_lm: Any, family: ModelFamily | None = None) -> None:
        gate = (family.router if family and family.router else RouterRule()).module
        self._gates: list[Any] = [module for name, module in causal_lm.named_modules() if name.endswith(f".{gate}")]
        if not self._gates:
            raise ConfigError("learner.replay_routing = true, but this base has no routers: set it to false")
        self._rule: Rule | None = None

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """Context in which every forward pass appends its choices, [N, K] per layer, to the list."""
        seen: list[Tensor] = []

        def write_down(gate: Any, inputs: Any, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
            seen.append(outputs[2].detach())

        hooks = [gate.register_forward_hook(write_down) for gate in self._gates]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def replayed(self, chosen_LNK: Tensor) -> Iterator[None]:
        """Context in which tokens go to the given experts, weighted by the router's own logits with their gradient; ``FREE`` tokens go as usual."""
        hooks = [gate.register_forward_hook(self._follow(chosen_NK)) for gate, chosen_NK in zip(self._gates, chosen_LNK, strict=True)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _follow(self, chosen_NK: Tensor) -> Callable[[Any, Any, tuple[Tensor, Tensor, Tensor]], tuple[Tensor, Tensor, Tensor]]:
        def follow(gate: Any, inputs: Any, outputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            logits_NE, own_NK, own_chosen_NK = outputs
            given_N1 = chosen_NK[:, :1] != FREE
            taken_NK = torch.where(given_N1, chosen_NK.to(own_chosen_NK.dtype), own_chosen_NK)
            weigh, scale = self._rule_of(gate, logits_NE, own_NK, own_chosen_NK)
            weights_NK = scale(gate, weigh(logits_NE).gather(-1, taken_NK)).to(own_NK.dtype)
            return logits_NE, torch.where(given_N1, weights_NK, own_NK), taken_NK

        return follow

    @torch.no_grad()
    def _rule_of(self, gate: Any, logits_NE: Tensor, own_NK: Tensor, own_chosen_NK: Tensor) -> Rule:
        """The rule that reproduces this base's weights for its own choices. Checked once, so that an unknown router is an error, not a silent
        change."""
        if self._rule is None:
            for weigh, scale in RULES if "routed_scaling_factor" in vars(gate) else RULES[:2]:
                if torch.allclose(scale(gate, weigh(logits_NE).gather(-1, own_chosen_NK)).float(), own_NK.float(), atol=1e-2):
                    self._rule = (weigh, scale)
                    break
            else:
                raise ConfigError(f"learner.replay_routing = true, but how {type(gate).__name__} weighs experts is not known: set it to false")
        return self._rule

    def laid_out(self, packed: Packed, rows: Sequence[Branches], routing: Sequence[tuple[int, ...]]) -> Tensor:
        """The choices of each rollout of a packed pass, flat by token, layer and expert as rollouts carry them. [L, R x N, K].

        A prompt's are those of its group's first rollout. The last token of an answer was never fed to the engine: it is ``FREE``, as padding is.
        """
        layers, per_token = len(self._gates), int(self._gates[0].top_k)
        chosen_RNLK = torch.full((*packed.ids_RN.shape, layers, per_token), FREE)
        told = (torch.tensor(one).view(-1, layers, per_token) for one in routing)
        for r, row in enumerate(rows):
            stem = start = len(row.prompt_ids)
            for output in row.outputs:
                chosen_TLK = next(told)
                if start == stem:
                    chosen_RNLK[r, :stem] = chosen_TLK[:stem]
                chosen_RNLK[r, start : start + len(output) - 1] = chosen_TLK[stem:]
                start += len(output)
        return chosen_RNLK.flatten(0, 1).permute(1, 0, 2).to(packed.ids_RN.device)
