"""A float32 forward pass through a bfloat16 model without a second copy: each weight is cast while it is used."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear
from torch.overrides import TorchFunctionMode

PRODUCTS = frozenset({linear, torch.addmm, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.mm})
"""Where a weight meets tokens; the last ones in experts that transformers computes itself."""


class Float32Pass(TorchFunctionMode):
    """Within, tokens are float32 from their embedding on. Without gradients: backward passes would be in float32 too."""

    def __torch_function__(self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            args = tuple(_float(value) for value in args)
            kwargs = {name: _float(value) for name, value in (kwargs or {}).items()}
        answer = func(*args, **(kwargs or {}))
        return _float(answer) if func is embedding else answer


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
