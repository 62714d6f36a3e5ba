"""Products of tokens with a frozen weight, LoRA in the same sum. Shared by the learner and by actors on a CPU.

In bfloat16 a sum is rounded once: most of a small adapter would be lost in a product that is rounded already. Shapes: ``T`` tokens, ``I`` inputs,
``O`` outputs.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

PACKED_FOR_ROWS = 64
"""Rows of a product for which oneDNN packs weights: a decoding batch. Other sizes are correct too; larger ones gain little."""


def can_pack(dtype: torch.dtype) -> bool:
    """True when oneDNN has its own weight layout for this precision on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def packed(weight_OI: Tensor) -> Tensor:
    """A copy in oneDNN's own layout, which oneDNN would otherwise make at every product: most of the time of a small batch."""
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), PACKED_FOR_ROWS)


def packed_product(x_TI: Tensor, packed_weight: Tensor, lora_TO: Tensor | None = None, bias_O: Tensor | None = None) -> Tensor:
    """``x W^T + bias + lora``, [T, O], of a weight that ``packed`` made. Without gradients."""
    if lora_TO is None:
        return torch.ops.mkldnn._linear_pointwise(x_TI, packed_weight, bias_O, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x_TI, lora_TO, packed_weight, bias_O, "add")


def product(x_TI: Tensor, weight_OI: Tensor, lora_TO: Tensor | None = None, bias_O: Tensor | None = None) -> Tensor:
    """The same of a weight as it is, with gradients for tokens and LoRA."""
    if lora_TO is None:
        return linear(x_TI, weight_OI, bias_O)
    return torch.addmm(lora_TO if bias_O is None else lora_TO + bias_O, x_TI, weight_OI.t())
