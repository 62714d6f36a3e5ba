"""PPO's value function: a linear head on the policy's hidden states that predicts the reward still to come.

``K`` output tokens, ``H`` hidden. It reads the states without gradient, so it never changes the policy. It is stored in the checkpoint, not with the
adapter: engines that serve the adapter do not need it.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")


class ValueHead:
    """``V = h / |h| . w + b``. Until the first fit it predicts the same value at every position, the one given to ``begin``."""

    def __init__(self, hidden: int, learning_rate: float, device: torch.device | str = "cpu") -> None:
        self.weight_H = torch.zeros(hidden, device=device, requires_grad=True)
        self.bias = torch.zeros((), device=device, requires_grad=True)
        self.fits = 0
        self._optimizer = torch.optim.AdamW([self.weight_H, self.bias], lr=learning_rate, weight_decay=0.0)

    def begin(self, value: float) -> None:
        """Set the value of every position before the first fit, as a baseline for the first advantages."""
        if self.fits == 0:
            with torch.no_grad():
                self.bias.fill_(value)

    def values(self, hidden_KH: Tensor) -> Tensor:
        """Predicted reward still to come at each position. [K]."""
        states_KH = torch.nn.functional.normalize(hidden_KH.float(), dim=-1)
        return states_KH @ self.weight_H + self.bias

    def fit(self, hidden_KH: Tensor, returns_K: Tensor, updates: int) -> float:
        """Fit to the returns by ``updates`` steps on the mean squared error. Returns the error before."""
        first = 0.0
        for update in range(updates):
            self._optimizer.zero_grad(set_to_none=True)
            loss = ((self.values(hidden_KH) - returns_K) ** 2).mean()
            loss.backward()
            self._optimizer.step()
            first = float(loss.detach()) if update == 0 else first
        self.fits += 1
        return first

    def tensors(self) -> dict[str, Tensor]:
        """Weights and moments by name, for the checkpoint."""
        named = {"weight": self.weight_H, "bias": self.bias}
        moments = {
            f"{name}/{moment}": torch.as_tensor(self._optimizer.state[weight][moment])
            for name, weight in named.items()
            if weight in self._optimizer.state
            for moment in MOMENTS
        }
        return {name: weight.detach() for name, weight in named.items()} | moments | {"fits": torch.tensor(self.fits)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what ``tensors`` gave. Raises KeyError when something is missing, RuntimeError for another size."""
        with torch.no_grad():
            self.weight_H.copy_(tensors["weight"])
            self.bias.copy_(tensors["bias"])
        self.fits = int(tensors["fits"])
        for name, weight in (("weight", self.weight_H), ("bias", self.bias)):
            if f"{name}/{MOMENTS[0]}" in tensors:
                found = {moment: tensors[f"{name}/{moment}"].clone() for moment in MOMENTS}
                self._optimizer.state[weight] = found | {"step": found["step"].cpu()}
